"""What an experiment leaves to the weights that it starts from, to the number of its clips and to the device."""

from __future__ import annotations

from typing import Any

from mbt_core.config import BackboneConfig, Experiment, TrainConfig
from mbt_core.config.schema import PictureConfig
from mbt_core.errors import MBTError
from mbt_core.model.backbone import resolve_backbone
from mbt_core.pretrained.follow import follow_weights
from mbt_core.training.events import Choice
from mbt_core.training.flops import Count, count, count_step
from mbt_core.training.lower import free_bytes, is_constant

WORK = {"cpu": 4e13}
"""Kind of device -> floating-point operations that a training whose passes are ``auto`` may take: five to ten
minutes of two cores."""
WORK_OF_ACCELERATOR = 2e16
"""The same of all others: minutes of a GPU."""
EXAMPLES = 12_000
PASSES = (5, 30)
"""The fewest and the most passes over the training rows; between them `EXAMPLES` in all."""
ENOUGH = 5
"""Passes without which everything is not tuned: fewer of them do less than many of the fused layers."""
FEW = 50
"""Rows below which nothing below the fusion layer is tuned: they are too few to improve on the weights."""


ROOM = 1.1
"""Bytes on disk of each byte of cached tokens, about."""


def follow(experiment: Experiment, device: str) -> Experiment:
    """With what follows from the weights it starts from; see `follow_weights`.

    Args:
        experiment: as it was asked for.
        device: its kind (``cpu``, ``cuda`` ...); on others than the CPU pictures of ``auto`` size are large.

    Raises:
        ConfigError, DataError: as `follow_weights`.
    """
    model, modalities = follow_weights(experiment.model, experiment.modalities)
    if device != "cpu":
        modalities = {
            name: config.model_copy(update=config.largest()) if isinstance(config, PictureConfig) else config
            for name, config in modalities.items()
        }
    return experiment.model_copy(update={"model": model, "modalities": modalities})


def choose(experiment: Experiment, rows: int, device: str, held_out: int = 0) -> tuple[Experiment, dict[str, str]]:
    """With ``train.tune``, ``train.cache_lower`` and ``train.epochs`` in place of ``auto``, and why, by key.

    Everything is tuned if the device can pass over the clips often enough in minutes; else what lies above
    the fusion layer, and what enters it is computed once. Of very few clips no more than that.

    Args:
        experiment: resolved but for these.
        rows: of the train split.
        device: kind of device.
        held_out: rows of val and test, of which the cached tokens take room, too.
    """
    train, reasons = experiment.train, dict[str, str]()
    if "auto" not in (train.tune, train.cache_lower, train.epochs):
        return experiment, reasons
    budget = WORK.get(device, WORK_OF_ACCELERATOR)
    clips, where = f"{rows:,} clips", "the CPU" if device == "cpu" else f"a device {device!r}"
    wanted = min(max(EXAMPLES / rows, PASSES[0]), PASSES[1])
    tunes = [tune for tune in ("all", "fused", "head") if train.tune in ("auto", tune)]
    counted, affordable = _count(experiment), 0.0
    if rows < FEW and len(tunes) > 1:
        tunes.remove("all")
    for tune in tunes:
        chosen = train.model_copy(
            update={"tune": tune, "cache_lower": _caches(experiment, tune, rows + held_out, counted)}
        )
        affordable = _affordable(experiment, chosen, rows, budget, counted)
        if affordable >= min(wanted, ENOUGH):
            break
    if train.tune == "auto":
        reasons["train.tune"] = f"{clips} on {where}"
    if train.cache_lower == "auto":
        reasons["train.cache_lower"] = _why_cached(chosen)
    if train.epochs == "auto":
        passes = round(min(wanted, max(affordable, PASSES[0])))
        chosen = chosen.model_copy(update={"epochs": float(passes)})
        reasons["train.epochs"] = f"{clips}" if passes >= round(wanted) else f"{clips}, for minutes on {where}"
    return experiment.model_copy(update={"train": chosen}), reasons


def _count(experiment: Experiment) -> Count | None:
    """What a forward pass takes; None where a plugin's tokenizer needs values of its tensors, and cannot be counted."""
    try:
        return count(experiment.mbt_config())
    except MBTError:
        raise
    except Exception:
        return None


def _caches(experiment: Experiment, tune: str, rows: int, counted: Count | None) -> bool:
    """``train.cache_lower``, or what ``auto`` comes to where `tune` is trained: whether nothing is drawn below, and all
    fits into ``train.cache_limit``."""
    train, drop = experiment.train, experiment.model.patch_drop
    if train.cache_lower != "auto":
        return train.cache_lower
    drawn = train.mixup > 0 or any(drop.values() if isinstance(drop, dict) else [drop])
    if tune == "all" or drawn or counted is None:
        return False
    geometry = resolve_backbone(experiment.model.backbone)
    numbers = sum(tokens + 1 + geometry.registers for tokens in counted.tokens.values()) * geometry.dim
    return ROOM * 2 * numbers * rows < min(train.cache_limit * 1e9, free_bytes()[1])


def _affordable(experiment: Experiment, train: TrainConfig, rows: int, budget: float, counted: Count | None) -> float:
    """Passes over the rows that `budget` operations are enough for."""
    if counted is None:
        return 0.0
    step, parts, once = count_step(experiment.mbt_config(), train).flops, counted.flops, 0
    if train.cache_lower:
        whole = train.tune == "head" and is_constant(experiment.model.fusion, train)
        once = parts["tokenizers"] + parts["stream layers"] + (parts["fused layers"] if whole else 0)
    return (budget / rows - once) / max(step - once, 1)


def _why_cached(train: TrainConfig) -> str:
    if train.tune == "all":
        return "all is trained"
    return "nothing is trained below" if train.cache_lower else "something is drawn below, or it would take much room"


def explain(asked: Experiment, followed: Experiment, chosen: Experiment, reasons: dict[str, str]) -> list[Choice]:
    """What was left open, in the order of the configuration; nothing of an experiment that leaves no training open.

    Args:
        asked: by the user and the recipe.
        followed: with what `follow` filled.
        chosen: with everything filled.
        reasons: of `choose`.
    """
    model, train = asked.model, asked.train
    if "auto" not in (model.backbone, model.fusion.layer, train.tune, train.epochs):
        return []
    found = []
    for name, config in asked.modalities.items():
        for field in config.auto_fields():
            told = getattr(followed.modalities[name], field) != "auto"
            value = getattr(chosen.modalities[name], field)
            found.append(Choice(f"modalities.{name}.{field}", _text(value), "the weights" if told else "the data"))
    if model.backbone == "auto":
        found.append(Choice("model.backbone", _text(chosen.model.backbone), "the weights"))
    if model.pool == "auto":
        found.append(Choice("model.pool", _text(chosen.model.pool), "the weights"))
    if model.fusion.layer == "auto":
        found.append(Choice("model.fusion.layer", _text(chosen.model.fusion.layer), "two thirds of the depth"))
    for key, reason in reasons.items():
        found.append(Choice(key, _text(getattr(chosen.train, key.partition(".")[2])), reason))
    return found


def _text(value: Any) -> str:
    if isinstance(value, BackboneConfig):
        return ", ".join(f"{name} {_text(number)}" for name, number in value.model_dump(exclude_defaults=True).items())
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_text, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)

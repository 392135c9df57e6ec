"""What a configuration costs with each fusion strategy, and over fusion layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import filter as filter_names
from typing import Any

import torch

from mbt_core.analysis.measure.speed import Memory, Speed, inference, training
from mbt_core.config import Experiment, HeadConfig, MBTConfig
from mbt_core.data.collate import Preprocess, blank_batch
from mbt_core.errors import ConfigError
from mbt_core.model import MBT
from mbt_core.model.backbone import resolve_backbone
from mbt_core.plugins import registry
from mbt_core.pretrained.follow import with_stems
from mbt_core.training.flops import Count, count

CLASSES = 527
"""Where a configuration leaves the classes to the data: those of AudioSet."""
STATISTICS = {"mean": 0.0, "std": 1.0}
"""In place of the data's statistics, which cost nothing."""
BASELINE = "late"


@dataclass(frozen=True)
class Cost:
    """Of one strategy; `inference` and `training` are None where nothing was timed."""

    strategy: str
    count: Count
    inference: Speed | None = None
    training: Speed | None = None


def settle(experiment: Experiment) -> Experiment:
    """Fills in what only data could tell and what does not change the cost: classes, statistics.

    Raises:
        ConfigError: listing what has to be given.
    """
    modalities, open_fields = {}, []
    for name, config in with_stems(experiment.modalities, experiment.model.pretrained).items():
        auto = config.auto_fields()
        open_fields += [f"modalities.{name}.{field}" for field in auto if field not in STATISTICS]
        modalities[name] = config.model_copy(update={f: STATISTICS[f] for f in auto if f in STATISTICS})
    if open_fields:
        named = ", ".join(open_fields)
        raise ConfigError(f"{named}: 'auto' is filled from data; give a number each, as in --set {open_fields[0]}=8")
    head = experiment.model.head
    if not head.outputs:
        head = HeadConfig(**{**head.model_dump(include=head.model_fields_set), "classes": CLASSES})
    model = experiment.model.model_copy(update={"head": head})
    return experiment.model_copy(update={"modalities": modalities, "model": model})


def with_fusion(config: MBTConfig, strategy: str, layer: int | None = None) -> MBTConfig:
    """The same model with another strategy or fusion layer; options are of the strategy that was configured."""
    fusion = config.fusion
    changed: dict[str, Any] = {"strategy": strategy, "layer": fusion.layer if layer is None else layer}
    if strategy != fusion.strategy:
        changed["options"] = {}
    return config.model_copy(update={"fusion": fusion.model_copy(update=changed), "pretrained": None})


def strategies(config: MBTConfig) -> list[str]:
    """The configured one, then all others."""
    return list(dict.fromkeys([config.fusion.strategy, *registry().fusions]))


def bench(
    experiment: Experiment, *, device: torch.device | None = None, batch_size: int = 1, seconds: float = 5.0
) -> Iterator[Cost]:
    """Counts, and times on `device`, every strategy, the configured one first.

    Args:
        experiment: `settle`d.
        device: None: nothing is timed.
        batch_size: clips a step.
        seconds: how long each forward pass and training step is repeated.

    Raises:
        ConfigError: for a model that cannot be built.
    """
    config = experiment.mbt_config()
    memory = None if device is None else Memory(device)
    for strategy in strategies(config):
        chosen = with_fusion(config, strategy)
        speeds = () if memory is None else _speeds(chosen, experiment, memory, batch_size, seconds)
        yield Cost(strategy, count(chosen), *speeds)


def _speeds(
    config: MBTConfig, experiment: Experiment, memory: Memory, batch_size: int, seconds: float
) -> tuple[Speed, Speed]:
    model = MBT(config).to(memory.device)
    preprocess = Preprocess(model.modalities).to(memory.device)
    batch = blank_batch(model.modalities, batch_size).to(memory.device)
    train = experiment.train
    if config.fusion.strategy != experiment.model.fusion.strategy:  # patterns may be of what only that one has
        names = [name for name, _ in model.named_parameters()]
        train = train.model_copy(update={"freeze": [p for p in train.freeze if filter_names(names, p)]})
    given = (model, preprocess, batch, memory, seconds, train)
    return inference(*given), training(*given)


def over_layers(
    config: MBTConfig,
    names: Sequence[str] | None = None,
    layers: Iterable[int] | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, dict[int, float]]:
    """GFLOPs against the fusion layer: strategy -> layer -> 1e9 operations (figure 4 of the paper).

    Args:
        config: `settle`d.
        names: of strategies; all by default.
        layers: from 0 to the depth, all by default. The baseline does not depend on them.
        progress: called with a line for each strategy.
    """
    layers = range(resolve_backbone(config.backbone).depth + 1) if layers is None else list(layers)
    found: dict[str, dict[int, float]] = {}
    for name in strategies(config) if names is None else names:
        if progress:
            progress(f"counting {name} with fusion from each of {len(layers)} layers")
        once = count(with_fusion(config, name, layers[0])).gflops if name == BASELINE else None
        found[name] = {
            layer: count(with_fusion(config, name, layer)).gflops if once is None else once for layer in layers
        }
    return found

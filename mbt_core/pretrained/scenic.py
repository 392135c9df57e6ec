"""The reference's MBT (Scenic): its parameters as a model of ours, its checkpoints as a run."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from mbt_core.config import Experiment, MBTConfig
from mbt_core.config.schema import validate
from mbt_core.config.settings import apply_sets, to_yaml
from mbt_core.errors import ConfigError, DataError, unknown
from mbt_core.io.files import only_writer, write_atomically
from mbt_core.modality.patch_tokenizer import PatchTokenizer
from mbt_core.model import MBT
from mbt_core.model.stream import Stream
from mbt_core.pretrained.names import Flat
from mbt_core.pretrained.scenic_arrays import (
    check_arrays,
    factorisations,
    guess_config,
    position_count,
    reference_modalities,
    state_from,
)
from mbt_core.version import __version__

Shapes = Mapping[str, Sequence[int]]
MOST_FITS = 5


def load_scenic_params(flat: Mapping[str, Any], config: Mapping[str, Any], inputs: Shapes) -> MBT:
    """The reference's parameters as a model of ours that computes the same.

    Args:
        flat: path of a parameter (``Transformer/encoder_norm/scale`` ...) -> array.
        config: the reference's model configuration.
        inputs: the reference's name of a modality -> shape of its input, batch first and channels last. Ours has the
            channels second and keeps their number.

    Raises:
        ConfigError: for a configuration without a counterpart, and sizes that contradict the position embeddings.
        DataError: for missing or unknown arrays.
    """
    arrays = {path: np.asarray(array) for path, array in flat.items()}
    settings = modality_settings(config, inputs)
    model = MBT(validate(MBTConfig, {**model_settings(config), "modalities": settings}))
    load_arrays(model, arrays, config)
    return model


def convert_scenic(
    path: str | Path, out: str | Path, labels: str | Path | None = None, sets: Iterable[str] = ()
) -> tuple[Experiment, MBT]:
    """Writes a checkpoint of the reference as a run: ``config.yaml``, ``config.json``, ``model.safetensors``.

    Args:
        path: the checkpoint, or a folder of them (the latest is taken).
        out: a new or empty folder.
        labels: names of the classes, see `read_labels`; without it they are ``class_0`` ...
        sets: ``KEY.PATH=VALUE`` laid over what the arrays tell: ``model.fusion.layer`` (8), ``modalities.NAME`` sizes
            (those of the released models).

    Raises:
        ConfigError: for sizes that contradict the arrays, saying which would fit, and for a folder in use.
        DataError: for a file that is no such checkpoint. Nothing is written then.
    """
    from mbt_core.pretrained.flax import checkpoint_file, read_params

    path, out = checkpoint_file(Path(path)), Path(out)
    with only_writer(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"{out} exists and is not empty; choose another --out")
        experiment, model = model_from_arrays(read_params(path), str(path), sets)
        outputs = experiment.model.head.outputs
        if labels is not None:
            if len(outputs) > 1:
                raise ConfigError(f"--labels names the classes of one task, but there are {', '.join(outputs)}")
            model.classes = {task: read_labels(Path(labels), count) for task, count in outputs.items()}
        else:
            model.classes = {task: [f"class_{i}" for i in range(count)] for task, count in outputs.items()}
        model.save_pretrained(out)
        header = f"# converted from {path}\n# mbt-fusion {__version__}\n"
        write_atomically(out / "config.yaml", lambda file: file.write_text(header + to_yaml(experiment), "utf-8"))
        return experiment, model


def model_from_arrays(flat: Flat, source: str, sets: Iterable[str] = ()) -> tuple[Experiment, MBT]:
    """The experiment and the model that a checkpoint's arrays tell of; see `convert_scenic`."""
    try:
        config = guess_config(flat)
        tree: dict[str, Any] = {
            "modalities": modality_settings(config, {}),
            "model": model_settings(config),
            "evaluate": {"views": 4},
        }
        tree["model"]["head"]["task"] = "multilabel"
        experiment = _validated(apply_sets(tree, sets), config["num_layers"])
        model = MBT(experiment.mbt_config())
        load_arrays(model, flat, config)
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    return experiment, model


def _validated(tree: dict[str, Any], depth: int) -> Experiment:
    layer = tree["model"]["fusion"]["layer"]
    if isinstance(layer, int) and layer > depth:
        raise ConfigError(
            f"model.fusion.layer: {layer}, but the checkpoint has {depth} layers and does not tell which is the first "
            f"fused one; give --set model.fusion.layer=N, 0 to {depth}"
        )
    return validate(Experiment, tree)


def modality_settings(config: Mapping[str, Any], inputs: Shapes) -> dict[str, dict[str, Any]]:
    """Our modalities, in the order of ``modality_fusion``; an input without a shape is that of the released models."""
    known = reference_modalities()
    settings = {}
    for name in config["modality_fusion"]:
        if name not in known:
            raise ConfigError(f"modality_fusion: {unknown('modality', name, known)}")
        modality = known[name]
        found = modality.from_scenic(config, inputs.get(name))
        if found is None:
            raise ConfigError(f"modality_fusion: {modality.kind!r} has no settings for {name!r}")
        settings[modality.kind] = found
    return settings


def model_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our settings of a model that computes as the reference does with `config`.

    Raises:
        ConfigError: for a classifier without a counterpart.
    """
    classifier, bottleneck = config["classifier"], config["use_bottleneck"]
    pools = {"token": "cls", "gap": "mean-joint"}
    if classifier not in pools:
        raise ConfigError(
            f"classifier {classifier!r}: maximum and sum over tokens (gmp, gsp) and '0' have no counterpart here; "
            "expected token or gap"
        )
    vanilla = "self-attention" if config.get("share_encoder", False) else "cross-attention"
    return {
        "backbone": {
            "dim": config["hidden_size"],
            "depth": config["num_layers"],
            "heads": config["num_heads"],
            "mlp": config["mlp_dim"],
            "act": "gelu_tanh",
            "eps": 1e-6,
        },
        "shared_encoder": config.get("share_encoder", False),
        "pool": pools[classifier],
        "drop_path": config.get("stochastic_droplayer_rate") or 0.0,
        "drop_path_rescale": False,
        "dropout": config.get("dropout_rate", 0.1),
        "attention_dropout": config.get("attention_dropout_rate", 0.1),
        "fusion": {
            "strategy": "bottleneck" if bottleneck else vanilla,
            "layer": config["fusion_layer"],
            # the reference adds one where there are class tokens
            "bottlenecks": config["n_bottlenecks"] + (classifier == "token"),
            "eval_bottlenecks": config.get("test_with_bottlenecks", True) or not bottleneck,
        },
        "head": {"classes": config["num_classes"], "representation": config.get("representation_size")},
    }


def load_arrays(model: MBT, flat: Flat, config: Mapping[str, Any]) -> None:
    """Fills `model`, made from `config`, with the reference's arrays.

    Raises:
        ConfigError: sizes of the inputs contradict the position embeddings; the message says which would fit.
        DataError: missing or unknown arrays, or shapes that do not belong together.
    """
    check_arrays(flat, model)
    counts = {name: position_count(flat, model, name) for name in model.modalities}
    wrong = [name for name, count in counts.items() if math.prod(cast(Stream, model.streams[name]).grid) != count]
    if wrong:
        raise ConfigError("\n".join(_misfit(model, name, counts[name], config) for name in wrong))
    model.load_weights(state_from(flat, model), "the checkpoint")


def _misfit(model: MBT, name: str, count: int, config: Mapping[str, Any]) -> str:
    """What to say where modality `name`'s sizes do not give `count` tokens, with settings that do."""
    grid = cast(Stream, model.streams[name]).grid
    fits = list(islice(_fitting(model, name, count, config), MOST_FITS + 1))
    hint = f"These would fit: {'; '.join(fits[:MOST_FITS])}" if fits else "No sizes would fit"
    return (
        f"modalities.{name}: its sizes give {' x '.join(map(str, grid))} = {math.prod(grid)} tokens, but the "
        f"checkpoint has position embeddings for {count}. {hint}{' ...' if len(fits) > MOST_FITS else ''}"
    )


def _fitting(model: MBT, name: str, count: int, config: Mapping[str, Any]) -> Iterator[str]:
    """Settings that give `count` tokens, nearest to the present ones first."""
    modality = model.modalities[name]
    tokenizer = cast(PatchTokenizer, cast(Stream, model.streams[name]).tokenizer)
    settings = modality.config.model_dump(mode="json")
    grid, patch = tokenizer.grid, tokenizer.patch
    scale = (1,) * (len(grid) - len(patch)) + tuple(patch)
    for fit in sorted(factorisations(count, len(grid)), key=lambda fit: _distance(fit, grid)):
        shape = (1, *(n * p for n, p in zip(fit, scale, strict=True)), tokenizer.channels)
        try:
            wanted = modality.from_scenic(config, shape) or {}
            with torch.device("meta"):
                found = type(modality)(name, validate(type(modality.config), settings | wanted)).tokenizer(1).grid
        except ValueError:  # no valid settings
            continue
        if math.prod(found) == count:
            changed = {key: json.dumps(v, separators=(",", ":")) for key, v in wanted.items() if settings[key] != v}
            yield " ".join(f"--set modalities.{name}.{key}={value}" for key, value in changed.items())


def _distance(fit: Sequence[int], grid: Sequence[int]) -> float:
    """How far two grids are apart: nearest are those whose axes are longer or shorter by the same factor."""
    return sum(math.log(a / b) ** 2 for a, b in zip(fit, grid, strict=True))


def read_labels(path: Path, count: int) -> list[str]:
    """Class names in the official order: AudioSet's ``class_labels_indices.csv`` as it is, or one name a line.

    Raises:
        DataError: if they are not `count` different names.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    lines = text.splitlines()
    if lines and "display_name" in next(csv.reader(lines[:1])):
        rows = list(csv.DictReader(lines, skipinitialspace=True))
        try:
            rows.sort(key=lambda row: int(row["index"]))
        except (KeyError, TypeError, ValueError):
            raise DataError(f"{path}: expected the columns index and display_name, index being a number") from None
        names = [row["display_name"] for row in rows]
    else:
        names = [line.strip() for line in lines if line.strip()]
    if len(names) != count:
        raise DataError(f"{path}: {len(names)} names, but the checkpoint has {count} classes")
    if len(set(names)) < count:
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path}: the class {twice!r} is there twice")
    return names

"""The reference's MBT (Scenic): which of its arrays is which of our parameters, and its geometry read off the arrays.

Modalities are known by their cards' ``foreign_keys`` only. With K the name of a modality there and S the suffix of its
parameters (``_K``; nothing for the first one), they are ``embedding S``, ``Transformer/posembed_input S`` and
``Transformer/encoderblock_0 S``; the class token is ``cls``, or ``clsK`` for a suffixed one among several. Shared
blocks have no suffix. Shapes: see `mbt_core.pretrained.names`.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbt_core.errors import ConfigError, DataError
from mbt_core.modality import Modality
from mbt_core.modality.patch_weights import match_channels
from mbt_core.model import MBT
from mbt_core.model.fusion import JOINT
from mbt_core.model.head import SHARED
from mbt_core.plugins import PluginWarning, missing, registry
from mbt_core.pretrained.names import BLOCK_ARRAYS, Flat, block_to_timm, kernel_to_torch, listed

_PROJECT = "scenic"
_BLOCK = re.compile(r"Transformer/encoderblock_(\d+)([^/]*)/")


@dataclass(frozen=True)
class ArrayNames:
    """The names of one modality's arrays."""

    embedding: str
    positions: str
    class_token: str
    blocks: str

    @classmethod
    def of(cls, modality: type[Modality] | Modality, alone: bool, shared: bool) -> ArrayNames:
        """Of a modality that the reference knows: `alone` in its model, with `shared` blocks or its own."""
        suffix = _suffix(modality)
        return cls(
            f"embedding{suffix}",
            f"Transformer/posembed_input{suffix}/pos_embedding",
            "cls" if alone or not suffix else f"cls{modality.card.foreign_keys[_PROJECT]}",
            "Transformer/encoderblock_{}" + ("" if shared else suffix),
        )


def reference_modalities() -> dict[str, type[Modality]]:
    """Name in the reference -> our class, of all kinds that it knows, sorted by our kind."""
    found = {}
    for kind, provided in sorted(registry().modalities.items()):
        if missing(provided.spec):
            continue
        try:
            modality = registry().modality_class(kind)
        except Exception as error:
            warnings.warn(f"modality {kind!r} is broken and left out: {error}", PluginWarning, 2)
            continue
        if _PROJECT in modality.card.foreign_keys:
            found[modality.card.foreign_keys[_PROJECT]] = modality
    return found


def names_in(model: MBT) -> dict[str, ArrayNames]:
    """Our modality's name -> the reference's names of its arrays.

    Raises:
        ConfigError: for a modality that the reference does not know.
    """
    for name, modality in model.modalities.items():
        if _PROJECT not in modality.card.foreign_keys:
            raise ConfigError(f"modalities.{name}: the reference has no modality of the kind {modality.kind!r}")
    alone, shared = len(model.modalities) == 1, model.config.shared_encoder
    return {name: ArrayNames.of(m, alone, shared) for name, m in model.modalities.items()}


def check_arrays(flat: Mapping[str, np.ndarray], model: MBT) -> None:
    """Raises `DataError` that lists missing and unknown arrays, and `ConfigError` for a model it cannot be."""
    if JOINT in model.blocks:
        raise ConfigError("model.fusion.strategy: 'self-attention' in the reference needs model.shared_encoder=true")
    expected = {"Transformer/encoder_norm/scale", "Transformer/encoder_norm/bias"}
    for names in names_in(model).values():
        expected |= {f"{names.embedding}/kernel", f"{names.embedding}/bias", names.positions}
        expected |= {names.class_token} if model.config.pool == "cls" else set()
        blocks = [names.blocks.format(layer) for layer in range(model.backbone.depth)]
        expected |= {f"{block}/{array}" for block in blocks for array in BLOCK_ARRAYS}
    for dense in ("output_projection", *(["pre_logits"] if model.config.head.representation else [])):
        expected |= {f"{dense}/kernel", f"{dense}/bias"}
    # the reference keeps bottlenecks that have no influence: one modality, or no fused layer
    idle = {"bottleneck"}
    if "fusion.bottlenecks" in dict(model.named_parameters()):
        expected, idle = expected | idle, set()
    problems = listed(expected - flat.keys(), flat.keys() - expected - idle)
    if problems:
        raise DataError(f"not the arrays of this MBT: {problems}")


def state_from(flat: Mapping[str, np.ndarray], model: MBT) -> dict[str, Tensor]:
    """`model`'s complete state out of the reference's arrays, which `check_arrays` found complete.

    An input with another number of channels than the reference's gets the kernel of `match_channels`: one channel where
    the reference tiles it to three is exact.
    """
    state: dict[str, Tensor] = {}
    for name, names in names_in(model).items():
        kernel = _tensor(kernel_to_torch(flat[f"{names.embedding}/kernel"]))
        channels = model.state_dict()[f"streams.{name}.tokenizer.weight"].shape[1]
        state[f"streams.{name}.tokenizer.weight"] = match_channels(kernel, channels)
        state[f"streams.{name}.tokenizer.bias"] = _tensor(flat[f"{names.embedding}/bias"])
        state[f"streams.{name}.pos_embed"] = _tensor(flat[names.positions])
        if model.config.pool == "cls":
            state[f"streams.{name}.cls_token"] = _tensor(flat[names.class_token])
        key = SHARED if model.config.shared_encoder else name
        if f"blocks.{key}.0.norm1.weight" not in state:
            state |= _blocks(flat, names.blocks, model.backbone.depth, f"blocks.{key}")
    if "fusion.bottlenecks" in dict(model.named_parameters()):
        state["fusion.bottlenecks"] = _tensor(flat["bottleneck"])
    return state | _head(flat, model)


def _blocks(flat: Mapping[str, np.ndarray], pattern: str, depth: int, key: str) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for layer in range(depth):
        block = pattern.format(layer)
        try:
            arrays = block_to_timm({array: flat[f"{block}/{array}"] for array in BLOCK_ARRAYS})
        except DataError as error:
            raise DataError(f"{block}: {error}") from None
        state |= {f"{key}.{layer}.{name}": _tensor(array) for name, array in arrays.items()}
    return state


def _head(flat: Mapping[str, np.ndarray], model: MBT) -> dict[str, Tensor]:
    """Norm, representation and classifiers; several tasks are cut from one projection, in their order."""
    outputs = model.config.head.outputs
    weight = _tensor(kernel_to_torch(flat["output_projection/kernel"]))
    bias = _tensor(flat["output_projection/bias"])
    if len(bias) != sum(outputs.values()):
        raise ConfigError(f"model.head: {sum(outputs.values())} classes, but the checkpoint has {len(bias)}")
    parts = {
        task: {"weight": w, "bias": b}
        for task, w, b in zip(outputs, weight.split([*outputs.values()]), bias.split([*outputs.values()]), strict=True)
    }
    state = {}
    for key in model.head.norms:
        state[f"head.norms.{key}.weight"] = _tensor(flat["Transformer/encoder_norm/scale"])
        state[f"head.norms.{key}.bias"] = _tensor(flat["Transformer/encoder_norm/bias"])
        if model.config.head.representation:
            state[f"head.representations.{key}.weight"] = _tensor(kernel_to_torch(flat["pre_logits/kernel"]))
            state[f"head.representations.{key}.bias"] = _tensor(flat["pre_logits/bias"])
        for task, part in parts.items():
            state |= {f"head.classifiers.{key}.{task}.{name}": value for name, value in part.items()}
    return state


def guess_config(flat: Flat) -> dict[str, Any]:
    """The reference's model configuration as far as arrays tell; the rest is that of the released models.

    Not told are the fusion layer (8), what was pooled (``gap``), the number of sampled frames of ``temporal_sampling``
    (8, the paper's) and the order of the modalities, which is that of our kinds.

    Raises:
        DataError: the arrays are not those of an MBT.
    """
    modalities = reference_modalities()
    suffixes = {name: _suffix(modality) for name, modality in modalities.items()}
    fused = [n for n, s in suffixes.items() if f"embedding{s}/kernel" in flat]
    if not fused:
        wanted = ", ".join(f"embedding{s}/kernel" for s in suffixes.values())
        raise DataError(f"no MBT: there is none of {wanted}; found {', '.join(sorted(flat)[:20])}")
    layers = {(int(match[1]), match[2]) for path in flat if (match := _BLOCK.match(path))}
    own = {suffix for _, suffix in layers}
    shared = any(suffixes[name] and suffixes[name] not in own for name in fused)
    kernels = [_sized(flat, f"embedding{suffixes[name]}/kernel", 4, 5) for name in fused]
    tubelets = [kernel.shape[0] for kernel in kernels if kernel.ndim == 5]
    query = _sized(flat, _any(flat, "/query/kernel"), 3)
    token = any(path.startswith("cls") for path in flat)
    bottlenecks = _sized(flat, "bottleneck", 3).shape[1] - token if "bottleneck" in flat else 4
    sampled = not tubelets and "" in {suffixes[name] for name in fused}
    return {
        "hidden_size": query.shape[0],
        "num_heads": query.shape[1],
        "mlp_dim": _sized(flat, _any(flat, "/MlpBlock_0/Dense_0/bias"), 1).size,
        "num_layers": 1 + max(layer for layer, _ in layers),
        "num_classes": _sized(flat, "output_projection/bias", 1).size,
        "n_bottlenecks": bottlenecks,
        "patches": {"size": [*kernels[0].shape[-4:-2], *(tubelets or [1])]},
        "modality_fusion": fused,
        "fusion_layer": 8,
        "use_bottleneck": "bottleneck" in flat,
        "test_with_bottlenecks": True,
        "share_encoder": shared,
        "classifier": "token" if token else "gap",
        "representation_size": _sized(flat, "pre_logits/bias", 1).size if "pre_logits/bias" in flat else None,
        "dropout_rate": 0.0,
        "attention_dropout_rate": 0.0,
        "temporal_encoding_config": {
            "method": "temporal_sampling" if sampled else "3d_conv",
            "n_sampled_frames": 8,
        },
    }


def position_count(flat: Mapping[str, np.ndarray], model: MBT, name: str) -> int:
    """For how many tokens of modality `name`, without its class token, the arrays hold positions."""
    return _sized(flat, names_in(model)[name].positions, 3).shape[1] - model.prefix


def factorisations(count: int, axes: int) -> list[tuple[int, ...]]:
    """All grids of `axes` axes with `count` tokens."""
    if axes == 1:
        return [(count,)]
    divisors = {d for i in range(1, math.isqrt(count) + 1) if count % i == 0 for d in (i, count // i)}
    return [(d, *rest) for d in sorted(divisors) for rest in factorisations(count // d, axes - 1)]


def _suffix(modality: type[Modality] | Modality) -> str:
    keys = modality.card.foreign_keys
    return keys.get(f"{_PROJECT}_suffix", f"_{keys[_PROJECT]}")


def _any(flat: Mapping[str, np.ndarray], ending: str) -> str:
    """The first array of a block with this ending, or what it would be called."""
    found = (path for path in flat if _BLOCK.match(path) and path.endswith(ending))
    return next(found, f"Transformer/encoderblock_0/...{ending}")


def _sized(flat: Mapping[str, np.ndarray], path: str, *axes: int) -> np.ndarray:
    if path not in flat:
        raise DataError(f"no MBT: {path} is missing; found {', '.join(sorted(flat)[:20])}")
    if flat[path].ndim not in axes:
        expected = " or ".join(map(str, axes))
        raise DataError(f"no MBT: {path} is {list(flat[path].shape)}, expected {expected} axes")
    return flat[path]


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.require(array, np.float32, ["C", "W"]))

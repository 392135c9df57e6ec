"""Parameters and floating-point operations of a model, part by part, without running it.

Shapes: N tokens of a modality.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mbt_core.config import MBTConfig, TrainConfig
from mbt_core.data.collate import Preprocess, blank_batch
from mbt_core.model import MBT
from mbt_core.model.loss import example_losses
from mbt_core.training.memory import full_length
from mbt_core.training.optimizer import freeze

PARTS = ("tokenizers", "stream layers", "fused layers", "head")


@dataclass(frozen=True)
class Count:
    """Of a forward pass of one example with everything present, sequences at their greatest length.

    Args:
        flops: part (of `PARTS`) -> floating-point operations of matrix products and convolutions, two for a
            multiplication and an addition. Preprocessing, norms and activations are not counted.
        parameters: part -> number; class tokens and positions are of the tokenizers, bottlenecks of the fused layers.
        tokens: modality -> N, without class and register tokens.
    """

    flops: dict[str, int]
    parameters: dict[str, int]
    tokens: dict[str, int]

    @property
    def gflops(self) -> float:
        """1e9 floating-point operations in all."""
        return sum(self.flops.values()) / 1e9


def count(config: MBTConfig) -> Count:
    """Counts a model that never exists: its tensors have shapes only.

    Raises:
        ConfigError: for a model that cannot be built, or an input without a size yet.
    """
    with torch.device("meta"):
        model = MBT(config).eval()
    inputs = _on_meta(Preprocess(model.modalities)(blank_batch(model.modalities, 1)))
    # a fused attention would be one operation, which is not counted on every device
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(inputs, transform=full_length(model))
    layer = config.fusion.first
    flops = dict.fromkeys(PARTS, 0)
    for module, found in counter.get_flop_counts().items():
        name = module.partition(".")[2]
        if name == "head" or (name.count(".") == 2 and name.startswith(("streams.", "blocks."))):
            flops[_part_of(name, layer)] += sum(found.values())
    flops["fused layers"] += counter.get_total_flops() - sum(flops.values())  # a strategy's own modules
    parameters = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        parameters[_part_of(name, layer)] += parameter.numel()
    return Count(flops, parameters, {name: math.prod(model.stream(name).grid) for name in model.modalities})


@dataclass(frozen=True)
class Step:
    """Of a training step with one example, as `Count` counts.

    Args:
        flops: of forward and backward pass. Where all is trained about three forward passes; what is frozen below
            everything that is trained has no backward pass.
        parameters: that are trained.
        tokens: of all modalities, without class and register tokens.
    """

    flops: int
    parameters: int
    tokens: int

    @property
    def gflops(self) -> float:
        """1e9 floating-point operations."""
        return self.flops / 1e9


def count_step(config: MBTConfig, train: TrainConfig) -> Step:
    """Counts a training step of a model that never exists, with ``train.tune`` and ``train.freeze``.

    Raises:
        ConfigError: as `count`, and as `mbt_core.training.optimizer.freeze`.
    """
    with torch.device("meta"):
        model = MBT(config).eval()
        zeros = {task: torch.zeros(1, outputs) for task, outputs in config.head.outputs.items()}
    freeze(model, train)
    inputs = _on_meta(Preprocess(model.modalities)(blank_batch(model.modalities, 1)))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        prediction = model(inputs, transform=full_length(model))
        example_losses(prediction, dict.fromkeys([*model.modalities, ""], zeros), config.head).sum().backward()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    tokens = sum(math.prod(model.stream(name).grid) for name in model.modalities)
    return Step(counter.get_total_flops(), trained, tokens)


def _part_of(name: str, fusion_layer: int) -> str:
    """The part that a module or parameter belongs to."""
    top, *below = name.split(".")
    if top == "blocks":
        return "stream layers" if int(below[1]) < fusion_layer else "fused layers"
    return {"streams": "tokenizers", "head": "head"}.get(top, "fused layers")


def _on_meta(inputs: Any) -> Any:
    if isinstance(inputs, Tensor):
        return inputs.to("meta")
    if isinstance(inputs, dict):
        return {name: _on_meta(x) for name, x in inputs.items()}
    return None if inputs is None else tuple(_on_meta(x) for x in inputs)

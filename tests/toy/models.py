"""Tiny models of anonymous modalities, and inputs for them.

Shapes: B batch, N elements, F features.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mbt_core import MBT
from mbt_core.config.settings import merge

STRATEGIES = ("bottleneck", "bottleneck-sequential", "cross-attention", "self-attention", "late")
FIRST_STRATEGY = [STRATEGIES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in STRATEGIES[1:])]
"""For tests that take seconds: the others are slow tests."""
POOLS = ("cls", "mean", "mean-joint")
COUNTS = (1, 2, 3, 5)
INSTANCES: dict[str, dict[str, Any]] = {
    "gamma": {},
    "alpha": {},
    "beta": {},
    "delta": {"kind": "alpha", "channels": 1, "samples": 8},
    "epsilon": {"kind": "gamma", "features": 2, "longest": 4},
}


def tiny(strategy: str = "bottleneck", count: int = 3, pool: str = "cls", **over: Any) -> dict[str, Any]:
    """A model's configuration: width 8, 3 layers, the last 2 fused, 5 classes; `over` is laid on it."""
    base = {
        "modalities": {name: dict(INSTANCES[name]) for name in list(INSTANCES)[:count]},
        "backbone": {"dim": 8, "depth": 3, "heads": 2, "mlp": 12},
        "fusion": {"strategy": strategy, "layer": 1, "bottlenecks": 2},
        "head": {"classes": 5},
        "pool": pool,
    }
    return merge(base, over)


def build_tiny(strategy: str = "bottleneck", count: int = 3, pool: str = "cls", **over: Any) -> MBT:
    """The model in evaluation mode and float64, no parameter at zero: differences show to 1e-12."""
    torch.manual_seed(0)
    model = MBT(tiny(strategy, count, pool, **over)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def inputs_for(model: MBT, batch: int = 4, seed: int = 0) -> dict[str, Any]:
    """Random float64 inputs; sequences have 1, 2, 3, ... elements and are padded."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    made: dict[str, Any] = {}
    for name, config in model.config.modalities.items():
        if config.kind == "alpha":
            made[name] = normal(batch, config.channels, config.samples)
        elif config.kind == "beta":
            made[name] = normal(batch, 1, *config.size)
        else:
            longest = min(batch, config.longest)
            lengths = torch.arange(batch) % longest + 1
            mask = torch.arange(longest) < lengths[:, None]
            made[name] = (normal(batch, longest, config.features), mask)
    return made


def sample(inputs: dict[str, Any], index: int, names: list[str]) -> dict[str, Any]:
    """One sample of a batch, only the modalities `names`, padding cut off."""
    alone = {}
    for name in names:
        given = inputs[name]
        if isinstance(given, tuple):
            x, mask = given
            alone[name] = (x[index : index + 1, mask[index]], None)
        else:
            alone[name] = given[index : index + 1]
    return alone

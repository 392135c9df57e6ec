"""What a cell's model costs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from mbt_core.config import Experiment, MBTConfig
from mbt_core.training.flops import count


@dataclass(frozen=True)
class Cost:
    """Of a forward pass of one example with everything present: 1e9 floating-point operations, and parameters."""

    gflops: float
    parameters: int


def cost_of(experiment: Experiment) -> Cost:
    """The cost of a resolved experiment's model."""
    return _cost(experiment.mbt_config().model_dump_json(exclude={"pretrained"}))


@lru_cache(maxsize=256)
def _cost(config: str) -> Cost:
    counted = count(MBTConfig.model_validate_json(config))
    return Cost(counted.gflops, sum(counted.parameters.values()))

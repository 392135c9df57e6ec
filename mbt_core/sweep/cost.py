"""What a cell's model costs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mbt_core.config import Experiment, MBTConfig
from mbt_core.data.collate import Preprocess
from mbt_core.model import MBT
from mbt_core.training.memory import blank_batch


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
    with torch.random.fork_rng(devices=[]):
        model = MBT(MBTConfig.model_validate_json(config)).eval()
    inputs = Preprocess(model.modalities)(blank_batch(model, 1))
    # fused attention of a CPU is not counted
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(inputs)
    return Cost(counter.get_total_flops() / 1e9, sum(p.numel() for p in model.parameters()))

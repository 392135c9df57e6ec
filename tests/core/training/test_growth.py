"""A long run takes no more memory at its end than after its start."""

import gc
import re
from pathlib import Path

import pytest
import torch

from mbt_core.run import train
from mbt_core.training.events import Listener
from small import make_small_demo, tiny_experiment

STEPS, WARM = 2_000, 600
"""After so many steps caches are full: of decoded clips, of the allocator; and there was an evaluation."""


def resident() -> float:
    """MiB that this process takes."""
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def tensors() -> int:
    gc.collect()
    return sum(isinstance(x, torch.Tensor) for x in gc.get_objects())


class Watch(Listener):
    """Notes, at each logged step, the memory and the number of tensors."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[float, int]] = {}

    def step(self, step, values):
        self.seen[step] = resident(), tensors()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's memory there")
@pytest.mark.parametrize("sets", [(), ("model.checkpointing=true", "model.patch_drop=0.25", "train.mixup=0.3")])
def test_no_growth(tmp_path, sets):
    data, watch = make_small_demo(tmp_path / "demo"), Watch()
    more = ("train.batch_size=2", f"train.steps={STEPS}", "train.eval_every=500", "train.log_every=100")
    train(tiny_experiment(data, *more, "train.save_every=5", *sets), tmp_path / "run", listeners=[watch])
    (early, few), (late, many) = watch.seen[WARM], watch.seen[STEPS]
    assert late - early < 8, watch.seen
    assert many <= few + 2, watch.seen

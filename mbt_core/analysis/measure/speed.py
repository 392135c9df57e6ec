"""Time and memory of forward passes and of training steps.

Shapes: B batch, C outputs of a task.
"""

from __future__ import annotations

import ctypes
import gc
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mbt_core.config import TrainConfig
from mbt_core.data.collate import Batch
from mbt_core.model import MBT
from mbt_core.model.block import compile_blocks
from mbt_core.model.loss import example_losses
from mbt_core.training.memory import full_length
from mbt_core.training.optimizer import freeze, make_optimizer, set_lr, set_training


@dataclass(frozen=True)
class Speed:
    """Of batches that are on the device already, preprocessing included.

    Args:
        clips_per_second: examples a second.
        peak_memory: bytes, model and optimiser included; None: not known here.
    """

    clips_per_second: float
    peak_memory: int | None


class Memory:
    """Watches memory: of a GPU what tensors take, of the CPU what the process takes in addition to what it has now."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = 0 if device.type == "cuda" else _resident("VmRSS")

    def reset(self) -> None:
        """Forgets the peak so far."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        gc.collect()
        with suppress(OSError, AttributeError):  # only Linux can
            ctypes.CDLL(None).malloc_trim(0)  # else what an earlier model has left would count
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def peak(self) -> int | None:
        """Bytes at the peak since `reset`."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        highest = _resident("VmHWM") if self.device.type == "cpu" else None
        return None if highest is None or self.before is None else highest - self.before


def _resident(field: str) -> int | None:
    """Bytes of this process, as Linux tells them."""
    with suppress(OSError):
        found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
        return int(found[1]) * 1024 if found else None
    return None


def inference(
    model: MBT, preprocess: nn.Module, batch: Batch, memory: Memory, seconds: float, config: TrainConfig
) -> Speed:
    """Speed of forward passes, in evaluation mode; the arguments are those of `training`."""
    model.eval()

    @torch.inference_mode()
    def run() -> None:
        with torch.autocast(memory.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            model(preprocess(batch), transform=full_length(model))

    return _repeat(run, len(batch), memory, seconds)


def training(
    model: MBT, preprocess: nn.Module, batch: Batch, memory: Memory, seconds: float, config: TrainConfig
) -> Speed:
    """Speed of whole training steps: forward, loss, backward, update. The weights stay as they are.

    What the configuration freezes is frozen then, and blocks are compiled if it says so, which takes no part.

    Args:
        model: on the device.
        preprocess: `Preprocess`, on the device.
        batch: of stand-ins, on the device.
        memory: of the device.
        seconds: how long to go on; at least one step is measured.
        config: optimiser, precision, what is trained, and whether blocks are compiled.

    Raises:
        ConfigError: as `mbt_core.training.optimizer.freeze`.
    """
    freeze(model, config)
    set_training(model)
    head = model.config.head
    zeros = {task: torch.zeros(len(batch), n, device=memory.device) for task, n in head.outputs.items()}
    targets = dict.fromkeys([*model.modalities, ""], zeros)
    optimizer = make_optimizer(model, config, memory.device)
    set_lr(optimizer, 0.0)  # all is computed, and nothing changes

    def run() -> None:
        with torch.no_grad():
            inputs = preprocess(batch)
        with torch.autocast(memory.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            prediction = model(inputs, transform=full_length(model))
            loss = example_losses(prediction, targets, head).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    if config.compile:
        compile_blocks(model)
        run()
    return _repeat(run, len(batch), memory, seconds)


def _repeat(run: Callable[[], None], examples: int, memory: Memory, seconds: float) -> Speed:
    """Runs for `seconds` after a first time that does not count, unless it took that long."""

    def timed(limit: float) -> tuple[int, float]:
        start, times = _now(memory.device), 0
        while times == 0 or _now(memory.device) - start < limit:
            run()
            times += 1
        return times, _now(memory.device) - start

    memory.reset()
    times, passed = timed(0)
    if passed < seconds:
        times, passed = timed(seconds)
    return Speed(times * examples / passed, memory.peak())


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()

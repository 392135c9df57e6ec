"""What a run costs on many devices, computed from what one of them does."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mbt_core.analysis.measure.limits import Reading
from mbt_core.training.flops import Step

GRADIENT = 4
"""Bytes that are exchanged per trained parameter, float32."""


@dataclass(frozen=True)
class Scale:
    """A run on many devices, computed, not measured: `world` times the speed of one, exchange not counted.

    Args:
        world: devices.
        batch: examples a step over all devices.
        clips: training clips of an epoch.
        steps: optimiser steps in all.
        trained: of a training step with one example.
        device: training clips a second of one device; None: not known.
        reading: of one core; None: not known.
    """

    world: int
    batch: int
    clips: int
    steps: int
    trained: Step
    device: float | None
    reading: Reading | None

    @property
    def tokens(self) -> int:
        """Patch tokens of all modalities a step."""
        return self.batch * self.trained.tokens

    @property
    def step_gflops(self) -> float:
        """1e9 operations of a training step."""
        return self.batch * self.trained.gflops

    @property
    def exchanged(self) -> float:
        """Bytes that a device sends a step: a ring all-reduce of the gradients of what is trained."""
        return 2 * (self.world - 1) / self.world * GRADIENT * self.trained.parameters

    @property
    def speed(self) -> float | None:
        """Training clips a second of all devices."""
        return None if self.device is None else self.world * self.device

    @property
    def seconds(self) -> float | None:
        """Of the whole run, evaluations not counted."""
        return None if self.speed is None else self.steps * self.batch / self.speed

    @property
    def bytes_per_second(self) -> float | None:
        """Read by all machines."""
        if self.speed is None or self.reading is None or self.reading.bytes_per_clip is None:
            return None
        return self.speed * self.reading.bytes_per_clip

    @property
    def cores(self) -> int | None:
        """Reading cores of all machines."""
        if self.speed is None or self.reading is None:
            return None
        return math.ceil(self.speed / self.reading.clips_per_second)

    def table(self) -> list[tuple[str, str]]:
        """What, and how much of it, for those that are known."""
        rows = [
            ("training clips", f"{self.clips:,}"),
            ("steps", f"{self.steps:,} of {self.batch} clips, {self.batch / self.world:g} a device"),
            ("epochs", f"{self.steps * self.batch / self.clips:.1f}"),
            ("tokens a step", f"{self.tokens:,}"),
            ("TFLOPs a step", f"{self.step_gflops / 1e3:,.3g}"),
            ("PFLOPs in all", f"{self.step_gflops * self.steps / 1e6:,.3g}"),
            ("gradients sent by a device", f"{self.exchanged / 1e6:,.0f} MB a step"),
        ]
        if self.speed is not None and self.seconds is not None:
            rows += [
                ("clips a second", f"{self.speed:,.3g}"),
                ("TFLOP/s of a device", f"{self.speed * self.trained.gflops / self.world / 1e3:,.3g}"),
                ("gradients sent by a device", f"{self.exchanged * self.speed / self.batch / 1e9:,.3g} GB/s"),
                ("hours in all", f"{self.seconds / 3600:,.3g}"),
                ("device hours", f"{self.seconds * self.world / 3600:,.3g}"),
            ]
        if self.cores is not None:
            rows.append(("reading cores", f"{self.cores:,}"))
        if self.bytes_per_second is not None:
            rows.append(("read from files", f"{self.bytes_per_second / 1e6:,.3g} MB/s"))
        return rows

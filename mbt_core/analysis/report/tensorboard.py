"""TensorBoard: the numbers of a run, and at its end the pictures of its report."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mbt_core.analysis.report.write import gather, pictures
from mbt_core.errors import MBTWarning
from mbt_core.training.events import Listener


class TensorBoard(Listener):
    """TensorBoard event files in the run folder."""

    def run_start(self, folder: Path, config: Mapping[str, Any], step: int, steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        # TensorBoard itself hides what an interrupted run logged after the step that this one goes on from
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        self._write("train", step, metrics)

    def epoch(self, step: int, metrics: Mapping[str, float]) -> None:
        self._write("val", step, metrics)

    def run_end(self, step: int, metrics: Mapping[str, float]) -> None:
        self._write("test", step, metrics)
        try:
            self._draw(step)
        except Exception as error:  # a finished training must not be lost
            warnings.warn(f"no pictures in TensorBoard: {error}", MBTWarning, stacklevel=2)
        self.writer.close()

    def _write(self, group: str, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(f"{group}/{name}", value, step)

    def _draw(self, step: int) -> None:
        for name, picture in pictures(gather(self.folder)):
            self.writer.add_image(name, picture, step, dataformats="HWC")

"""Progress of a run on the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from mbt_cli.output import WIDE, table
from mbt_core.evaluate.metrics import as_text
from mbt_core.training.events import Choice, Listener


class Progress(Listener):
    """A bar with loss, clips per second and time left; a line per evaluation. Plain lines without a terminal."""

    def __init__(self) -> None:
        width = None if sys.stderr.isatty() else WIDE
        self.console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True, width=width)
        self.bar: Bar | None = None
        self._last = 0.0

    def run_start(self, folder: Path, config: Mapping[str, Any], step: int, steps: int) -> None:
        self.console.print(f"run folder {folder}" + (f", from step {step}" if step else ""))
        self.steps = steps
        self._start_bar(steps, step)

    def decoded(self, done: int, total: int) -> None:
        if self.bar is None:
            self._start_bar(total, 0)
        if self.bar is not None:
            self.bar.update(self.task, completed=done, total=total, description="reading clips")
            if done == total:
                self._stop_bar()

    def _start_bar(self, total: int, done: int) -> None:
        if not self.console.is_terminal:
            return
        columns = (MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        self.bar = Bar(*columns, console=self.console, transient=True)
        self.task = self.bar.add_task("", total=total, completed=done)
        self.bar.start()

    def close(self) -> None:
        """Gives the terminal back, however the run ended."""
        self._stop_bar()

    def _stop_bar(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        text = f"loss {metrics['loss']:.4f}  {metrics['clips_per_second']:.0f} clips/s"
        if self.bar is not None:
            self.bar.update(self.task, completed=step, description=text)
        elif time.monotonic() - self._last > 15 or step >= self.steps:
            self._last = time.monotonic()
            self.console.print(f"step {step}/{self.steps}  {text}")

    def epoch(self, step: int, metrics: Mapping[str, float]) -> None:
        shown = [f"{name} {as_text(name, value)}" for name, value in metrics.items() if "[" not in name]
        self.console.print(f"step {step}  val: {'  '.join(shown)}")

    def message(self, text: str) -> None:
        self.console.print(text)

    def chosen(self, choices: Sequence[Choice]) -> None:
        made = table(["setting", "chosen", "by"], choices)
        made.columns[1].justify = made.columns[2].justify = "left"
        self.console.print(made)

    def run_end(self, step: int, metrics: Mapping[str, float]) -> None:
        self._stop_bar()

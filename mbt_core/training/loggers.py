"""The logger that every run has: JSON lines."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mbt_core.errors import MBTError
from mbt_core.io.files import write_atomically
from mbt_core.training.events import Listener


class JsonLines(Listener):
    """``metrics.jsonl``: an object per logged step, evaluation and end: ``{"event", "step", "time", NAME: value}``."""

    def run_start(self, folder: Path, config: Mapping[str, Any], step: int, steps: int) -> None:
        self.path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(self.path) if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(self.path, lambda path: path.write_text(text))

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        self._write("step", step, metrics)

    def epoch(self, step: int, metrics: Mapping[str, float]) -> None:
        self._write("val", step, metrics)

    def run_end(self, step: int, metrics: Mapping[str, float]) -> None:
        self._write("end", step, metrics)

    def _write(self, event: str, step: int, metrics: Mapping[str, float]) -> None:
        values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        line = {"event": event, "step": step, "time": round(time.time(), 3), **values}
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise MBTError(f"{self.path}: cannot be written: {error.strerror}") from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; those that are none, as a killed process or a bad disk leaves, are dropped."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_bytes().splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):  # bytes that are not UTF-8 are a ValueError too
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines

"""What ``mbt compare`` and ``mbt transfer`` share: running a sweep with a line per cell, and showing what it found."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from mbt_cli.output import fail, note, print_json, show, table
from mbt_cli.progress import Progress
from mbt_core.sweep.engine import Sweep, Watcher
from mbt_core.sweep.grid import Cell
from mbt_core.sweep.report import Report
from mbt_core.sweep.results import Result
from mbt_core.training.events import Choice, Listener
from mbt_core.training.loop import Interrupted

Finish = Callable[[Path, Sequence[Result], str, str, bool], Report]


class Bar(Progress):
    """The bar of one cell's training, without its lines; of the first one with what is to be known of the data."""

    talks = False

    def run_start(self, folder: Path, config: Mapping[str, Any], step: int, steps: int) -> None:
        self.steps = steps
        self._start_bar(steps, step)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.bar is not None:
            super().step(step, metrics)

    def epoch(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def message(self, text: str) -> None:
        if self.talks:
            super().message(text)

    def chosen(self, choices: Sequence[Choice]) -> None:
        if self.talks:
            super().chosen(choices)

    def stop(self) -> None:
        """Takes the bar away, also of a training that failed."""
        self._stop_bar()


class Lines(Watcher):
    """A line per cell on stderr, with the time left; tables are written after every one."""

    def __init__(self, quiet: bool, save: Callable[[], object]) -> None:
        self.quiet, self.save = quiet, save
        self.bar = Bar()
        self.begun = time.monotonic()

    def cell_start(self, cell: Cell, number: int, total: int) -> Sequence[Listener]:
        self.number, self.total, self.cell_begun = number, total, time.monotonic()
        self.bar.talks = number == 1
        return [] if self.quiet else [self.bar]

    def cell_end(self, result: Result) -> None:
        self.bar.stop()
        now = time.monotonic()
        if not self.quiet:
            found = ", ".join(f"{name} {result.metrics[name]:.4f}" for name in result.main if name in result.metrics)
            end = f"failed: {result.error}" if result.status == "failed" else found or result.status
            left = (now - self.begun) / self.number * (self.total - self.number)
            rest = f"; about {clock(left)} left" if left else ""
            note(f"[{self.number}/{self.total}] {result.cell.title}: {end} ({clock(now - self.cell_begun)}{rest})")
        self.save()


def clock(seconds: float) -> str:
    """``42 s``, ``12 min``, ``3.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def require_one_process() -> None:
    """Raises `ConfigError` if a launcher has started several."""
    from mbt_core.distributed.launch import place
    from mbt_core.errors import ConfigError

    if place().world > 1:
        raise ConfigError(
            "a sweep trains cell by cell, each in one process; a launcher has started several that belong together: "
            "start it without, as often as you like at a time, or give the launcher a command that trains one cell "
            "(mbt compare --dry-run prints them; of folds: mbt train --recipe OUT/folds.yaml --set data.fold=I)"
        )


def run_sweep(
    sweep: Sweep, title: str, finish: Finish, *, device: str, dry_run: bool, as_json: bool, quiet: bool
) -> None:
    """Trains what is missing, writes and shows the results; with `dry_run`, prints the commands instead.

    Exits with 1 if a cell failed, as an interrupted run if it was.
    """
    from mbt_core.training.folder import command_line

    require_one_process()
    if dry_run:
        commands = sweep.commands()
        if as_json:
            print_json({"commands": commands})
            return
        for command in commands:
            typer.echo(command)
        return

    def save(figure: bool = True) -> Report:
        return finish(sweep.out, sweep.results(), title, command_line(), figure)

    total, todo = len(sweep.cells), len(sweep.todo())
    if not quiet:
        note(f"{total} {sweep.unit}, {total - todo} finished already; results in {sweep.out}")
    lines = Lines(quiet, lambda: save(figure=False))
    try:
        sweep.run(device, lines)
    except (Interrupted, KeyboardInterrupt) as stop:
        lines.bar.stop()
        save()
        fail(f"interrupted; {sweep.again} goes on with it", getattr(stop, "exit_code", 130))
    report = save()
    failed = [result for result in sweep.results() if result.status == "failed"]
    if as_json:
        print_json(report.document)
    else:
        for name, (columns, rows) in report.tables.items():
            if rows:
                show(name)
                show(table(columns, rows))
        if report.text:
            show(report.text)
        note("written: " + ", ".join(map(str, report.files)))
    if failed:
        reasons = "".join(f"\n  {result.cell.name}: {result.error}" for result in failed)
        fail(f"{len(failed)} of {total} {sweep.unit} failed ({sweep.again} tries them again):{reasons}", 1)

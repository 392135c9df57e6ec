"""``mbt train --folds``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mbt_cli.output import note
from mbt_cli.sweeping import require_one_process, run_sweep
from mbt_core.config import Experiment
from mbt_core.training.folder import RunFolder, command_line


def train_folds(
    folds: int | None,
    out: Path | None,
    resume: Path | None,
    assembled: Callable[[], tuple[str, Experiment]],
    device: str,
    quiet: bool,
) -> None:
    """Trains folds and shows what they come to; goes on with those in `resume`.

    Args:
        folds: how many; None: as many as were begun.
        out, resume: as of ``mbt train``.
        assembled: name of a new run, and what was asked for; not called where only a folder is given.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        quiet: no progress.
    """
    from mbt_core.sweep.cross_validation import report
    from mbt_core.sweep.folds import begin, goes_on, rows_of

    require_one_process()
    named = out or resume
    folder = None if named is None else RunFolder(named)
    try:
        if folder is not None and (folds is None or out is None):
            sweep = goes_on(folder.path, folds, device=device)
        else:
            assert folds is not None
            name, experiment = assembled()
            folder = folder or RunFolder.named(Path("runs"), f"{name}-folds")
            sweep = begin(folder.path, experiment, folds, command_line(), resume=resume is not None, device=device)
        total = len(sweep.cells)
        if not quiet and sweep.todo():
            rows, tested = rows_of(sweep)
            test = f", and all on the {tested:,} of test" if tested else ""
            note(f"{total} folds of {rows:,} rows: each run is scored on about {round(rows / total):,}{test}")
        run_sweep(sweep, f"{total} folds", report, device=device, dry_run=False, as_json=False, quiet=quiet)
    finally:
        if folder is not None and named is None:
            folder.release()

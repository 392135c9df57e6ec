"""``mbt report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mbt_cli.output import note, show


def report(
    run: Annotated[Path, typer.Argument(help="Run folder, or RUN/eval-... of an evaluation.", show_default=False)],
) -> None:
    """Write the page of a run again from what it left: curves, metrics, hardest clips, attention, calibration."""
    from mbt_core.analysis.report.write import write_report

    show(f"wrote {write_report(run)}")


def leave_report(folder: Path, quiet: bool = False) -> None:
    """Writes the page after work that must not be lost: what goes wrong is told, no more."""
    from mbt_core.analysis.report.write import try_report

    path = try_report(folder)
    if path is not None and not quiet:
        note(f"wrote {path}")

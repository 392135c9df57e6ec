"""The curves of missing modalities: on the page of a run, and as files beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mbt_core.analysis.page.colours import names_of
from mbt_core.analysis.report import figures
from mbt_core.analysis.report.figures import Line
from mbt_core.analysis.report.sections import Drawn, limits, shown
from mbt_core.config import HeadConfig
from mbt_core.evaluate.metrics import metric_names
from mbt_core.evaluate.missing_modalities import Point, write_csv
from mbt_core.evaluate.table import About, read_about
from mbt_core.io.files import write_atomically

NAME = "missing"
XLABEL = "share of the rows that lose it"


def write_missing(folder: Path, head: HeadConfig) -> list[Path]:
    """Writes ``missing.csv``, ``missing.png`` and ``missing.svg`` beside the predictions of an evaluation.

    Where no metric has a value at all points, there is nothing to draw: only the table is written.

    Args:
        folder: that has ``predictions.parquet``; see `mbt_core.evaluate.table.About`.
        head: of the run: tasks and their kinds.

    Returns:
        What was written; nothing if all were unreadable.
    """
    points = _points(read_about(folder))
    if not points:
        return []
    write_atomically(folder / f"{NAME}.csv", lambda path: write_csv(path, points))
    drawn = {metric: (_lines(points, metric), limits(metric)) for metric in _main(points, head)}
    if drawn:
        figures.save(figures.panels(drawn, XLABEL), folder, NAME)
    return [folder / f"{NAME}.{kind}" for kind in ("csv", "png", "svg") if drawn or kind == "csv"]


def drawn_curves(about: About, head: HeadConfig) -> list[Drawn]:
    """A figure for the main metric of each task; none if the evaluation does not tell."""
    points = _points(about)
    return [
        Drawn(metric, figures.lines(_lines(points, metric), limits(metric), XLABEL), _caption(points, metric))
        for metric in _main(points, head)
    ]


def _points(about: About) -> list[Point]:
    return [Point(**point) for point in about.missing]


def _main(points: Sequence[Point], head: HeadConfig) -> list[str]:
    """The first metric of each task that all points have: some have no value where targets do not vary."""
    found = []
    for task, outputs in head.outputs.items():
        names = metric_names(head.kind_of(task), outputs)
        metrics = [name if head.tasks is None else f"{task}/{name}" for name in names]
        found += [m for m in metrics if points and all(m in point.metrics for point in points)][:1]
    return found


def _lines(points: Sequence[Point], metric: str) -> list[Line]:
    colours = names_of(dict.fromkeys(point.modality for point in points))
    return [
        Line(f"without {name}", colours[name], [(p.fraction, p.metrics[metric]) for p in points if p.modality == name])
        for name in colours
    ]


def _caption(points: Sequence[Point], metric: str) -> str:
    ends = [f"{shown(metric, p.metrics[metric])} when all lose {p.modality}" for p in points if p.fraction == 1]
    return f"From {shown(metric, points[0].metrics[metric])} with whatever the clips have to {', '.join(ends)}."

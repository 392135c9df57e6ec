"""``mbt eval``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mbt_cli.options import DeviceOption, JsonOption, MaxMissingOption
from mbt_cli.output import metrics_table, note, print_json, show, table
from mbt_cli.report import leave_report

if TYPE_CHECKING:
    from rich.table import Table

    from mbt_core.evaluate.missing_modalities import Point


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder.", show_default=False)],
    data: Annotated[
        str | None, typer.Option(help="Another manifest; the run's own by default.", show_default=False)
    ] = None,
    split: Annotated[str | None, typer.Option(help="Default: test, else val.", show_default=False)] = None,
    views: Annotated[int | None, typer.Option(help="Windows per clip, averaged.", min=1, show_default=False)] = None,
    subsets: Annotated[bool, typer.Option("--subsets", help="Every subset of the modalities, in one pass.")] = False,
    missing: Annotated[
        bool, typer.Option("--missing", help="Metrics as ever more rows lose a modality; in missing.csv, .png, .svg.")
    ] = False,
    max_missing: MaxMissingOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Evaluate a run on a split of a data set; predictions.parquet and report.html of it go to the run folder.

    Those of other data or another split than test go to a folder of their own in it, eval-DATA-SPLIT.
    """
    from mbt_core.evaluate.missing_modalities import missing_curves, subsets_for_curves
    from mbt_core.evaluate.subsets import all_subsets, confusion
    from mbt_core.report.missing import write_missing
    from mbt_core.run import load

    opened = load(run)
    names = tuple(opened.experiment.modalities)
    curves = subsets_for_curves(names) if missing else []

    def leave(folder: Path) -> None:
        if missing:
            for path in write_missing(folder, opened.experiment.model.head):
                note(f"wrote {path}")
        leave_report(folder)

    wanted = all_subsets(names) if subsets else curves
    chosen, found = opened.evaluate(data, split, views, wanted, device, written=leave, max_missing=max_missing)
    whole = found[names]
    metrics = whole.metrics()
    by_subset = {"+".join(subset): evaluation.metrics() for subset, evaluation in found.items()} if subsets else {}
    points = missing_curves(found) if missing else []
    if as_json:
        document = {"split": chosen, "examples": len(whole.index), "failed": len(whole.failed), "metrics": metrics}
        of_subsets = {"subsets": by_subset, "confusion": confusion(found)} if subsets else {}
        print_json(document | of_subsets | ({"missing": [vars(point) for point in points]} if missing else {}))
        return
    show(f"{chosen} split of {run}: {len(whole.index)} examples, {len(whole.failed)} failed")
    show(metrics_table(metrics, names))
    if subsets:
        keys = [key for key in metrics if "[" not in key]
        rows = [[subset, *(f"{m[key]:.4f}" if key in m else "" for key in keys)] for subset, m in by_subset.items()]
        show("subsets of the modalities", table(["modalities", *keys], rows))
        changes = [
            [c["from"], c["adding"], c["task"], f"{c['lost']:.2%}", f"{c['gained']:.2%}"] for c in confusion(found)
        ]
        if changes:
            columns = ["from", "adding", "task", "right to wrong", "wrong to right"]
            show("modality confusion", table(columns, changes))
    if points:
        show("rows that lose a modality", _curves_table(points))


def _curves_table(points: Sequence[Point]) -> Table:
    counts = ("lost", "absent", "kept")
    keys = list(points[0].metrics)
    rows = [
        [
            p.modality,
            f"{p.fraction:g}",
            *(str(vars(p)[name]) for name in counts),
            *(f"{p.metrics[k]:.4f}" for k in keys),
        ]
        for p in points
    ]
    return table(["without", "fraction", *counts, *keys], rows)

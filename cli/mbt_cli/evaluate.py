"""``mbt eval``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mbt_cli.options import DeviceOption, JsonOption, MaxMissingOption
from mbt_cli.output import metrics_table, note, print_json, show, table
from mbt_cli.report import leave_report

if TYPE_CHECKING:
    from rich.table import Table

    from mbt_core.evaluate.evaluator import Evaluation, Subset
    from mbt_core.evaluate.missing_modalities import Point


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder.", show_default=False)],
    data: Annotated[
        str | None, typer.Option(help="Another manifest; the run's own by default.", show_default=False)
    ] = None,
    split: Annotated[str | None, typer.Option(help="Default: test, else val.", show_default=False)] = None,
    views: Annotated[int | None, typer.Option(help="Windows per clip, averaged.", min=1, show_default=False)] = None,
    subsets: Annotated[bool, typer.Option("--subsets", help="Every subset of the modalities, in one pass.")] = False,
    rows: Annotated[
        str | None,
        typer.Option(
            help="Of --subsets: common, the rows that all of them answer (default), or own, all that each answers.",
            show_default=False,
        ),
    ] = None,
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
    from mbt_core.analysis.report.missing import write_missing
    from mbt_core.errors import ConfigError
    from mbt_core.evaluate.baseline import baselines, remarks
    from mbt_core.evaluate.missing_modalities import missing_curves, subsets_for_curves
    from mbt_core.evaluate.subsets import all_subsets, by_name, confusion, on_rows
    from mbt_core.run import load

    if rows is not None and not subsets:
        raise ConfigError("--rows chooses the rows of --subsets; give it too, or leave out --rows")
    kind: Any = rows or "common"
    on_rows({}, kind)  # a wrong word is told before any work
    opened = load(run)
    names = tuple(opened.experiment.modalities)
    curves = subsets_for_curves(names) if missing else []

    def leave(folder: Path) -> None:
        if missing:
            for path in write_missing(folder, opened.experiment.model.head):
                note(f"wrote {path}")
        leave_report(folder)

    wanted = all_subsets(names) if subsets else curves
    chosen, found = opened.evaluate(
        data, split, views, wanted, device, written=leave, max_missing=max_missing, rows=kind
    )
    whole = found[names]
    metrics = whole.metrics()
    compared = on_rows(found, kind) if subsets else {}
    points = missing_curves(found) if missing else []
    if as_json:
        each = {name: {"examples": count} for name, count in whole.examples.items() if name}
        counts = {"examples": len(whole.index), "failed": len(whole.failed)}
        constant = {b.metric: b.constant for b in baselines(whole)}
        document = {"split": chosen, **counts, "metrics": metrics, "baseline": constant, "modalities": each}
        of_subsets = {"rows": kind, "subsets": by_name(compared), "confusion": confusion(compared)} if subsets else {}
        print_json(document | of_subsets | ({"missing": [vars(point) for point in points]} if missing else {}))
        return
    show(f"{chosen} split of {run}: {len(whole.index)} examples, {len(whole.failed)} failed")
    show(metrics_table(metrics, names, whole.examples if metrics else None), *remarks(whole, opened.classes))
    if subsets:
        _show_subsets(compared, kind, metrics, len(whole.index))
    if points:
        show("rows that lose a modality", _curves_table(points))


def _show_subsets(compared: Mapping[Subset, Evaluation], rows: str, metrics: Mapping[str, float], count: int) -> None:
    """The tables of subsets; `metrics` and `count` are those of all rows that were evaluated."""
    from mbt_core.evaluate.metrics import as_text
    from mbt_core.evaluate.subsets import by_name, confusion

    common = max((len(evaluation.index) for evaluation in compared.values()), default=0)
    if rows == "own":
        which = "each on the rows that have any of it: their numbers differ"
    elif common == count:
        which = f"on all {count} rows"
    else:
        which = f"on the {common} of {count} rows that all of them answer"
        if not common:
            note("no row is answered by all subsets: nothing can be compared; --rows own shows each on its own rows")
    keys = [key for key in metrics if "[" not in key]
    lines = [
        [subset, str(values["examples"]), *(as_text(key, values[key]) if key in values else "" for key in keys)]
        for subset, values in by_name(compared).items()
    ]
    show(f"subsets of the modalities, {which}", table(["modalities", "examples", *keys], lines))
    changes = [
        [c["from"], c["adding"], c["task"], str(c["examples"]), f"{c['lost']:.2%}", f"{c['gained']:.2%}"]
        for c in confusion(compared)
    ]
    if changes:
        columns = ["from", "adding", "task", "examples", "right to wrong", "wrong to right"]
        show("modality confusion", table(columns, changes))


def _curves_table(points: Sequence[Point]) -> Table:
    from mbt_core.evaluate.metrics import as_text

    counts = ("examples", "lost", "absent", "kept")
    keys = list(points[0].metrics)
    rows = [
        [
            p.modality,
            f"{p.fraction:g}",
            *(str(vars(p)[name]) for name in counts),
            *(as_text(k, p.metrics[k]) for k in keys),
        ]
        for p in points
    ]
    return table(["without", "fraction", *counts, *keys], rows)

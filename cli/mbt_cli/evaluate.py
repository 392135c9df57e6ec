"""``mbt eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mbt_cli.options import DeviceOption, JsonOption
from mbt_cli.output import metrics_table, print_json, show, table
from mbt_cli.report import leave_report


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder.", show_default=False)],
    data: Annotated[
        str | None, typer.Option(help="Another manifest; the run's own by default.", show_default=False)
    ] = None,
    split: Annotated[str | None, typer.Option(help="Default: test, else val.", show_default=False)] = None,
    views: Annotated[int | None, typer.Option(help="Windows per clip, averaged.", min=1, show_default=False)] = None,
    subsets: Annotated[bool, typer.Option("--subsets", help="Every subset of the modalities, in one pass.")] = False,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Evaluate a run on a split of a data set; predictions.parquet and report.html of it go to the run folder.

    Those of other data or another split than test go to a folder of their own in it, eval-DATA-SPLIT.
    """
    from mbt_core.evaluate.subsets import all_subsets, confusion
    from mbt_core.run import load

    opened = load(run)
    names = tuple(opened.experiment.modalities)
    wanted = all_subsets(names) if subsets else ()
    chosen, found = opened.evaluate(data, split, views, wanted, device, written=leave_report)
    whole = found[names]
    metrics = whole.metrics()
    by_subset = {"+".join(subset): evaluation.metrics() for subset, evaluation in found.items()} if subsets else {}
    if as_json:
        document = {"split": chosen, "examples": len(whole.index), "failed": len(whole.failed), "metrics": metrics}
        print_json({**document, "subsets": by_subset, "confusion": confusion(found)} if subsets else document)
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

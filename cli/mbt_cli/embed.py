"""``mbt embed``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mbt_cli.options import DeviceOption, MaxMissingOption
from mbt_cli.output import note, show


def embed(
    run: Annotated[Path, typer.Argument(help="Run folder.", show_default=False)],
    out: Annotated[
        Path,
        typer.Option(
            help="File to write: .parquet (id, fused, one column a modality), .npz (the same) or .npy (fused only).",
            show_default=False,
        ),
    ],
    data: Annotated[
        str | None, typer.Option(help="Another manifest, labels or not; the run's own by default.", show_default=False)
    ] = None,
    split: Annotated[str | None, typer.Option(help="Default: all rows.", show_default=False)] = None,
    views: Annotated[int | None, typer.Option(help="Windows per clip, averaged.", min=1, show_default=False)] = None,
    device: DeviceOption = "auto",
    max_missing: MaxMissingOption = None,
) -> None:
    """Write pooled embeddings of a data set, fused and of each modality."""
    from mbt_core.run import load

    report = load(run).embed(out, data, split, views, device, max_missing=max_missing)
    show(f"{out}: {report.rows} rows, {report.width} numbers each")
    if report.failed:
        examples = "".join(f"\n  {name}: {message}" for name, message in list(report.failed.items())[:3])
        note(f"{len(report.failed)} rows could not be read and have no embedding:{examples}")

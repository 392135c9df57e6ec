"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ModalitiesOption = Annotated[
    str | None, typer.Option("--modalities", "-m", help="NAME or NAME=KIND, separated by commas.", show_default=False)
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        help="Name of a recipe or a YAML file. Default: fine-tune with --pretrained, demo without --data, else small.",
        show_default=False,
    ),
]
PretrainedOption = Annotated[
    str | None,
    typer.Option(
        help="Weights to start from, whose geometry the model takes: a timm name, a weight file (NAME@FILE says which "
        "timm model it is of), a run or a folder of the hub.",
        show_default=False,
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option(
        help="Manifest (CSV, Parquet, JSONL), folder with one sub-folder per class, or shards.", show_default=False
    ),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="KEY.PATH=VALUE of any setting; may be repeated.", show_default=False)
]
TuneOption = Annotated[
    str | None, typer.Option(help="all, fused (from the fusion layer on) or head.", show_default=False)
]
CacheLowerOption = Annotated[
    bool, typer.Option("--cache-lower", help="With --tune: compute the frozen layers once, keep them on disk.")
]
ResumeOption = Annotated[
    Path | None,
    typer.Option(help="Run folder to go on with; with the same --out: if it is there.", show_default=False),
]
AcceptChangedDataOption = Annotated[
    bool, typer.Option("--accept-changed-data", help="With --resume: go on though the data have changed.")
]
FoldsOption = Annotated[
    int | None,
    typer.Option(
        help="Cross-validation: so many runs, each scored on rows that it was not trained on.",
        min=2,
        show_default=False,
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
MaxMissingOption = Annotated[
    float | None,
    typer.Option(
        help="Share of the named files that may be missing or unreadable; the run's data.max_missing by default.",
        min=0,
        max=1,
        show_default=False,
    ),
]
FpsOption = Annotated[
    float | None,
    typer.Option(
        help="Frames a second of folders of pictures. Given, a folder of frames is one clip; else each picture is.",
        show_default=False,
    ),
]
SeedsOption = Annotated[int, typer.Option(help="Trainings of each cell, from train.seed on.", min=1)]
OutOption = Annotated[Path | None, typer.Option(help="Folder of the cells and results.", show_default=False)]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print one `mbt train` per unfinished cell, for a cluster, and stop.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]

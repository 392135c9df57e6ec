"""``mbt convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from mbt_cli.output import show

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def convert() -> None:
    """Convert checkpoints from and to other formats."""


@app.command()
def scenic(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of the reference (Scenic), or a folder of them.")],
    out: Annotated[Path, typer.Option(help="Run folder, new or empty.", show_default=False)],
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Class names in the official order: class_labels_indices.csv, or one name a line.", show_default=False
        ),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="KEY.PATH=VALUE of what the arrays do not tell: model.fusion.layer (8), sizes of the inputs (those of "
            "the released models). May be repeated.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make a run of a checkpoint of the reference implementation, for eval, predict, explain."""
    from mbt_core.pretrained.scenic import convert_scenic

    experiment, model = convert_scenic(checkpoint, out, labels, sets or ())
    backbone, fusion, streams = model.backbone, experiment.model.fusion, cast(dict[str, Any], model.streams)
    inputs = ", ".join(f"{name} {' x '.join(map(str, stream.grid))}" for name, stream in streams.items())
    classes = ", ".join(f"{count} classes" for count in experiment.model.head.outputs.values())
    show(
        f"{out}: dim {backbone.dim}, depth {backbone.depth}, heads {backbone.heads}; tokens {inputs}; "
        f"{fusion.strategy} from layer {fusion.layer}; pool {experiment.model.pool}; {classes}"
    )

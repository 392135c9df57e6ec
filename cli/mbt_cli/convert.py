"""``mbt convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from mbt_cli.output import note, show

RunArgument = Annotated[Path, typer.Argument(help="Run folder.", show_default=False)]
SubsetOption = Annotated[
    str | None,
    typer.Option("--modalities", "-m", help="Names separated by commas. Default: all.", show_default=False),
]
PreprocessedOption = Annotated[
    bool, typer.Option("--preprocessed", help="Take what the tokenizers take, not frames and waveforms.")
]

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


@app.command()
def onnx(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="File to write: .onnx; what is to be known of it goes to .onnx.json.")],
    modalities: SubsetOption = None,
    preprocessed: PreprocessedOption = False,
) -> None:
    """Export a run to ONNX, checked against the model with ONNX Runtime."""
    _export(run, out, "onnx", modalities, preprocessed)


@app.command()
def torch_export(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="File to write: .pt2; what is to be known of it goes to .pt2.json.")],
    modalities: SubsetOption = None,
    preprocessed: PreprocessedOption = False,
) -> None:
    """Export a run by torch.export, checked against the model."""
    _export(run, out, "torch-export", modalities, preprocessed)


def _export(
    run: Path, out: Path, to: Literal["onnx", "torch-export"], modalities: str | None, preprocessed: bool
) -> None:
    from mbt_core.deploy.export import export
    from mbt_core.run import load

    opened = load(run)
    names = None if modalities is None else [name.strip() for name in modalities.split(",")]
    done = export(opened.model, out, to, names, preprocessed, opened.experiment)
    if done.note is not None:
        note(f"The inputs are preprocessed ones: {done.note}")
    inputs = ", ".join(f"{p['name']} {p['dtype']} {p['shape']}" for p in done.metadata["inputs"])
    outputs = ", ".join(p["name"] for p in done.metadata["outputs"])
    show(f"{out}: {inputs} -> {outputs}; largest difference from the model {done.difference:.1e}")

"""``mbt predict``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mbt_cli.output import fail, note, print_json, show, table
from mbt_cli.train import DeviceOption

if TYPE_CHECKING:
    from mbt_core.evaluate.predict import FilePrediction


def predict(
    run: Annotated[Path, typer.Argument(help="Run folder.", show_default=False)],
    files: Annotated[list[Path], typer.Argument(help="Media files or folders of them.", show_default=False)],
    top: Annotated[int, typer.Option(help="How many labels.", min=1)] = 5,
    every: Annotated[
        float | None,
        typer.Option(help="Slide a window over each file, a start every so many seconds.", show_default=False),
    ] = None,
    device: DeviceOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Classify media files with whatever modalities each has."""
    from mbt_core.run import load

    predictions = load(run).predict(files, top, every, device)
    if as_json:
        print_json([p.as_json() for p in predictions])
    else:
        for prediction in predictions:
            _show(prediction)
    failed = sum(p.error is not None for p in predictions)
    if failed:
        fail(f"{failed} of {len(predictions)} could not be classified", 1)


def _show(prediction: FilePrediction) -> None:
    if prediction.error is not None:
        note(f"{prediction.file}: {prediction.error}")
        return
    place = "" if prediction.start is None else f"  {prediction.start:.1f}-{prediction.end:.1f} s"
    show(f"{prediction.file}{place}  ({' + '.join(prediction.modalities)})")
    for task, best in prediction.top.items():
        shares = all(0 <= score <= 1 for _, score in best)  # not so the numbers of a regression
        rows = [[label, f"{score:.3f}", ("█" * round(20 * score) or "▏") if shares else ""] for label, score in best]
        made = table([task, "score", ""], rows)
        made.columns[2].justify = "left"
        show(made)

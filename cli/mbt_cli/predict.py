"""``mbt predict``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mbt_cli.options import DeviceOption, JsonOption
from mbt_cli.output import fail, note, print_json, show, table

if TYPE_CHECKING:
    from mbt_core.config import HeadConfig
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
    as_json: JsonOption = False,
) -> None:
    """Classify media files with whatever modalities each has."""
    from mbt_core.run import load

    opened = load(run)
    done, failed = [], 0
    for prediction in opened.predict_stream(files, top, every, device):
        failed += prediction.error is not None
        done.append(prediction.as_json())
        if not as_json:
            _show(prediction, opened.experiment.model.head)
    if as_json:
        print_json(done)
    if failed:
        fail(f"{failed} of {len(done)} could not be classified", 1)


def _show(prediction: FilePrediction, head: HeadConfig) -> None:
    if prediction.error is not None:
        note(f"{prediction.file}: {prediction.error}")
        return
    place = "" if prediction.start is None else f"  {prediction.start:.1f}-{prediction.end:.1f} s"
    show(f"{prediction.file}{place}  ({' + '.join(prediction.modalities)})")
    for task, best in prediction.top.items():
        if head.kind_of(task) == "regression":
            show(table([task, "value"], [[label, f"{value:.4g}"] for label, value in best]))
            continue
        made = table([task, "score", ""], [[label, f"{p:.3f}", "█" * round(20 * p) or "▏"] for label, p in best])
        made.columns[2].justify = "left"
        show(made)

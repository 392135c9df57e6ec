"""``mbt predict``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mbt_cli.options import DeviceOption, FpsOption, JsonOption, MaxMissingOption
from mbt_cli.output import fail, note, print_json, show, table

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from mbt_core.config import HeadConfig
    from mbt_core.evaluate.predict import FilePrediction


def predict(
    run: Annotated[Path, typer.Argument(help="Run folder.", show_default=False)],
    files: Annotated[
        list[Path] | None, typer.Argument(help="Media files or folders of them.", show_default=False)
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="In place of files: a manifest, labels or not; answers tell the id.", show_default=False),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of --data; all rows by default.", show_default=False)] = None,
    top: Annotated[int, typer.Option(help="How many labels.", min=1)] = 5,
    every: Annotated[
        float | None,
        typer.Option(
            help="Slide a window over each file, a start every so many seconds and one at its end.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A .jsonl or .csv file for the answers, a line each.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with --out: leave out what it answers.")] = False,
    fps: FpsOption = None,
    max_missing: MaxMissingOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Classify media files, or rows of a manifest, with whatever modalities each has; exits with 1 if some fail."""
    from mbt_core.errors import ConfigError
    from mbt_core.run import load

    if resume and out is None:
        raise ConfigError("--resume goes on with the answers of --out FILE; give it")
    if out is not None and as_json:
        raise ConfigError("--json is for the answers on stdout; leave out --out, or --json")
    if (data is None) == (not files):
        raise ConfigError("expected files or folders, or --data MANIFEST" + (", not both" if files else ""))
    given = {"--every": every, "--fps": fps} if data is not None else {"--split": split, "--max-missing": max_missing}
    for option, value in given.items():
        if value is not None:
            raise ConfigError(
                f"{option} is {'not for' if data is not None else 'for'} the rows of --data; leave it out"
            )
    opened = load(run)

    def answer(answered: Container[tuple[str, float | None]]) -> Iterator[FilePrediction]:
        if data is not None:
            return opened.predict_rows(data, split, top, device, answered, max_missing)
        return opened.predict_stream(files or (), top, every, device, answered, fps)

    if out is not None:
        from mbt_core.evaluate.answers import Answers

        done = failed = 0
        answers = Answers(out, opened.model.config.head, top, resume)
        # wrong usage ends here, before the file is made
        stream = answer(answers)
        with answers:
            for prediction in stream:
                answers.add(prediction)
                _complain(prediction)
                failed += prediction.error is not None
                done += 1
        before = f", {answers.kept} were there before" if answers.kept else ""
        note(f"{done - failed} answers added to {out}{before}")
        _end(failed, done)
        return
    found, failed = [], 0
    for prediction in answer(()):
        failed += prediction.error is not None
        found.append(prediction.as_json())
        if not as_json:
            _complain(prediction)
            _show(prediction, opened.experiment.model.head)
    if as_json:
        print_json(found)
    _end(failed, len(found))


def _end(failed: int, done: int) -> None:
    if failed:
        fail(f"{failed} of {done} could not be classified", 1)


def _complain(prediction: FilePrediction) -> None:
    if prediction.error is not None:
        note(f"{prediction.file}: {prediction.error}")


def _show(prediction: FilePrediction, head: HeadConfig) -> None:
    if prediction.error is not None:
        return
    place = "" if prediction.start is None else f"  {prediction.start:.1f}-{prediction.end:.1f} s"
    show(f"{prediction.file}{place}  ({' + '.join(prediction.modalities)})")
    for task, best in prediction.top.items():
        if head.kind_of(task) == "regression":
            show(table([task, "value"], [[label, f"{value:.6g}"] for label, value in best]))
            continue
        made = table([task, "score", ""], [[label, f"{p:.3f}", "█" * round(20 * p) or "▏"] for label, p in best])
        made.columns[2].justify = "left"
        show(made)

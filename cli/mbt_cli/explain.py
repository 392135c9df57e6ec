"""``mbt explain``."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated

import typer

from mbt_cli.options import DeviceOption, FpsOption
from mbt_cli.output import fail, note, show, table


def explain(
    run: Annotated[Path, typer.Argument(help="Run folder.", show_default=False)],
    files: Annotated[list[Path], typer.Argument(help="Media files or folders of them.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    method: Annotated[
        str,
        typer.Option(
            help="contributions (of all layers), rollout (attention of all layers), last (of the last layer) or "
            "gradient (for one label)."
        ),
    ] = "contributions",
    label: Annotated[
        str | None,
        typer.Option(help="What gradient explains. Default: the first answer, or first number.", show_default=False),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="The label's task. Default: the first one.", show_default=False)
    ] = None,
    top: Annotated[int, typer.Option(help="How many labels.", min=1)] = 5,
    fps: FpsOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Show what predictions rest on: relevance over every input, and what came across from other modalities."""
    from mbt_core.analysis.explain.explain import explain_files
    from mbt_core.analysis.explain.page import write_page
    from mbt_core.analysis.explain.rollout import METHODS
    from mbt_core.errors import ConfigError, unknown
    from mbt_core.io.files import only_writer
    from mbt_core.run import Hardware, load

    if method not in METHODS:
        raise ConfigError(f"--method: {unknown('method', method, METHODS)}")
    if (label or task) and method != "gradient":
        raise ConfigError("--label and --task choose what --method gradient explains")
    _check(out)
    opened = load(run)
    opened.check_one_file()
    found = []
    with only_writer(out):
        for e in explain_files(
            opened.model,
            files,
            opened.experiment,
            device=Hardware(device).fabric("32").device,
            method=method,
            task=task,
            label=label,
            top=top,
            fps=fps,
        ):
            found.append(e)
            if e.prediction.error is not None:
                note(f"{e.prediction.file}: {e.prediction.error}")
                continue
            show(f"{e.prediction.file}  ({' + '.join(e.prediction.modalities)})")
            columns = list(e.views[0].shares)
            rows = [[v.name or "all together", *(f"{share:.1%}" for share in v.shares.values())] for v in e.views]
            show(table(["prediction", *columns], rows))
        write_page(out, found, str(run), method)
        show(f"wrote {out}")
    failed = sum(e.prediction.error is not None for e in found)
    if failed:
        fail(f"{failed} of {len(found)} could not be explained", 1)


def _check(out: Path) -> None:
    """Finds before any work that a page cannot be written; nothing is left behind. Raises `ConfigError`."""
    from mbt_core.errors import ConfigError

    try:
        if out.is_dir():
            raise ConfigError(f"--out {out}: this is a folder; name a file in it, e.g. {out / 'report.html'}")
        with TemporaryFile(dir=next(folder for folder in out.absolute().parents if folder.exists())):
            pass
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written: {error.strerror}. Choose another place") from None

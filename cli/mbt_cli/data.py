"""``mbt data``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mbt_cli.output import fail, note, print_json, show, table
from mbt_cli.train import SetOption

app = typer.Typer(
    help="Make, check and prepare data.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)


@app.command("demo")
def demo(
    out: Annotated[Path | None, typer.Option(help="Folder; the cache by default.", show_default=False)] = None,
) -> None:
    """Make the demo's videos (once) and print the path of their manifest."""
    from mbt_core.plugins import load_object, registry

    make = load_object(registry().datasets["demo"].spec.make)
    typer.echo(make(out))


@app.command("build")
def build(
    name: Annotated[str, typer.Argument(help="Data set; `mbt plugins list` shows all.", show_default=False)],
    annotations: Annotated[Path, typer.Option(help="Folder of the official annotation files.", show_default=False)],
    media: Annotated[Path, typer.Option(help="Folder of the media files, at any depth.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Manifest to write: .parquet, .csv or .jsonl.", show_default=False)],
    subset: Annotated[
        str | None,
        typer.Option(help="A part of the data set, e.g. mini, 500k or full of audioset.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn, e.g. the 500k of audioset.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Make the manifest of a benchmark from its annotation files and whatever media files are there."""
    from mbt_core.data.build import build_manifest

    report = build_manifest(name, annotations, media, out, subset, seed)
    if as_json:
        print_json(report.as_json())
        return
    rows = [
        [split, str(found["rows"]), column, str(found["present"][column]), str(found["missing"][column])]
        for split, found in report.splits.items()
        for column in found["present"]
    ]
    show(table(["split", "rows", "column", "present", "missing"], rows))
    for task, count in report.classes.items():
        note(f"{task}: {count} classes")
    for line in report.notes:
        note(line)
    note(f"what is missing is listed in {report.missing_path}")


@app.command("check")
def check(
    data: Annotated[str, typer.Argument(help="Manifest, folder with one sub-folder per class, or shards.")],
    modalities: Annotated[
        str | None, typer.Option("--modalities", "-m", help="NAME or NAME=KIND, separated by commas.")
    ] = None,
    sets: SetOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if anything is missing or unreadable.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Open every file of a data set and report what is there, missing or unreadable."""
    from mbt_core.recipes import assemble

    experiment, _ = assemble(modalities or default_modalities(), None, data, sets or ())
    from mbt_core.data.check import check as run_check
    from mbt_core.run import make_modalities, open_manifest

    instances = make_modalities(experiment)
    report = run_check(open_manifest(experiment.data, instances, experiment.model.head), instances)
    if as_json:
        print_json(report)
    else:
        _show(report)
    bad = sum(m["missing"] + m["unreadable"] for s in report["splits"].values() for m in s["modalities"].values())
    if strict and bad:
        fail(f"{bad} files are missing or unreadable", 1)


def default_modalities() -> str:
    """All installed kinds that miss nothing."""
    from mbt_core.plugins import missing, registry

    return ",".join(kind for kind, provided in registry().modalities.items() if not missing(provided.spec))


def _show(report: dict[str, Any]) -> None:
    columns = ["split", "rows", "modality", "present", "missing", "unreadable", "seconds", "sizes", "rates"]
    rows = []
    for split, found in report["splits"].items():
        for number, (name, m) in enumerate(found["modalities"].items()):
            head = [split, str(found["rows"])] if number == 0 else ["", ""]
            rows.append([*head, name, *(str(m[key]) for key in ("present", "missing", "unreadable")), *_media(m)])
    show(table(columns, rows))
    for task, count in report["classes"].items():
        note(f"{task}: {count} classes")


def _media(found: dict[str, Any]) -> list[str]:
    seconds = found.get("seconds")
    span = f"{seconds['min']:.1f}-{seconds['max']:.1f}" if seconds else ""
    rates = {**(found.get("frame_rates") or {}), **(found.get("sample_rates") or {})}
    return [span, ", ".join(found.get("sizes") or {}), ", ".join(str(rate) for rate in rates)]

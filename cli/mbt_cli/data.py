"""``mbt data``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mbt_cli.options import JsonOption, ModalitiesOption, RecipeOption, SetOption
from mbt_cli.output import fail, note, print_json, show, table

ENDS = 15
"""Classes of each end that are shown where there are many."""
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
    as_json: JsonOption = False,
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


@app.command("pack")
def pack(
    data: Annotated[str, typer.Argument(help="Manifest, or folder with one sub-folder per class.")],
    out: Annotated[
        Path, typer.Option(help="Folder of the shards; go on where it was interrupted.", show_default=False)
    ],
    modalities: ModalitiesOption = None,
    fps: Annotated[float, typer.Option(help="Most frames a second; videos with fewer keep all.")] = 25.0,
    short_side: Annotated[int, typer.Option(help="Shorter side of larger frames in pixels.")] = 256,
    quality: Annotated[int, typer.Option(help="Of the JPEGs, 1 to 100.")] = 85,
    window: Annotated[float, typer.Option(help="Seconds of the longest window that will be read.")] = 8.0,
    shard_size: Annotated[int, typer.Option(help="Rows of a shard.")] = 256,
    part: Annotated[str, typer.Option(help="i/n: only the i-th of n parts, for array jobs.")] = "0/1",
    root: Annotated[
        str | None, typer.Option(help="What the manifest's paths are relative to.", show_default=False)
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; one per core.", min=1, show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """Pack clips into shards (WebDataset tar files), of which training reads only the frames that it needs."""
    from mbt_core.config import DataConfig
    from mbt_core.config.recipes import parse_instances
    from mbt_core.data.packing import pack as run_pack
    from mbt_core.data.shards import located
    from mbt_core.errors import ConfigError
    from mbt_core.plugins import registry

    wanted = modalities or default_modalities(data)
    if wanted is None:
        raise ConfigError(f"{data}: no such file or folder, or nothing in it that a modality reads")
    numbers = part.split("/")
    if len(numbers) != 2 or not all(number.isdigit() for number in numbers):
        raise ConfigError(f"--part {part}: expected i/n, e.g. 3/16")
    reads = {name: registry().modality_class(kind).reads for name, kind in parse_instances(wanted).items()}
    report = run_pack(
        located(data),
        reads,
        DataConfig(root=root),
        out,
        fps=fps,
        short_side=short_side,
        quality=quality,
        window=window,
        shard_size=shard_size,
        part=(int(numbers[0]), int(numbers[1])),
        workers=workers,
        progress=lambda done, total: note(f"{done} of {total} shards"),
    )
    if as_json:
        print_json(report.as_json())
        return
    found = report.as_json() | {"size": f"{report.nbytes / 1e9:.2f} GB"}
    shown = ("shards", "shards_done", "rows", "frames", "size", "missing", "unreadable")
    show(table([key.replace("_", " ") for key in shown], [[str(found[key]) for key in shown]]))
    for line in report.examples:
        note(line)


@app.command("stats")
def stats(
    data: Annotated[str, typer.Argument(help="Manifest, folder with one sub-folder per class, or shards.")],
    modalities: ModalitiesOption = None,
    recipe: RecipeOption = None,
    sets: SetOption = None,
    split: Annotated[str, typer.Option(help="Whose rows.")] = "train",
    limit: Annotated[int | None, typer.Option(help="Rows to look at; all.", min=1, show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """Mean and deviation of the inputs (of spectrograms, of pixels), and how often each class comes."""
    from mbt_core.config.recipes import assemble

    chosen = modalities or (None if recipe else default_modalities(data))
    experiment, _ = assemble(chosen, recipe, data, sets or ())
    from mbt_core.data.check import fit_modalities
    from mbt_core.data.source import open_manifest
    from mbt_core.data.stats import statistics
    from mbt_core.pretrained.follow import with_stems
    from mbt_core.training.resolve import make_modalities

    manifest = open_manifest(experiment.data, make_modalities(experiment), experiment.model.head)
    stemmed = with_stems(experiment.modalities, experiment.model.pretrained)
    experiment.modalities = fit_modalities(manifest, stemmed, experiment.data.timeout, experiment.data.workers)
    report = statistics(manifest, make_modalities(experiment), experiment.data, split, limit=limit)
    if as_json:
        print_json(report)
        return
    rows = [
        [name, str(found["clips"]), f"{found.get('mean', float('nan')):g}", f"{found.get('std', float('nan')):g}"]
        for name, found in report["modalities"].items()
    ]
    show(table(["modality", "clips", "mean", "std"], rows))
    for task, counts in report["classes"].items():
        ordered = sorted(counts.items(), key=lambda item: -item[1])
        show(table([task, "rows"], [[name, str(count)] for name, count in ordered]))
    if report["failed"]:
        note(f"{report['failed']} of {report['rows']} rows name no files, or could not be read")


@app.command("check")
def check(
    data: Annotated[str, typer.Argument(help="Manifest, folder with one sub-folder per class, or shards.")],
    modalities: Annotated[
        str | None, typer.Option("--modalities", "-m", help="NAME or NAME=KIND, separated by commas.")
    ] = None,
    sets: SetOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if anything is missing or unreadable.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Open every file of a data set and report what is there, missing or unreadable."""
    from mbt_core.config.recipes import assemble

    experiment, _ = assemble(modalities or default_modalities(data), None, data, sets or ())
    from mbt_core.data.check import check as run_check
    from mbt_core.data.duplicates import tell
    from mbt_core.data.source import open_manifest
    from mbt_core.training.resolve import held_out, make_modalities

    instances = make_modalities(experiment)
    manifest = open_manifest(experiment.data, instances, experiment.model.head)
    report = run_check(manifest, instances, timeout=experiment.data.timeout, workers=experiment.data.workers)
    if as_json:
        print_json(report)
    else:
        _show(report)
        for line in [*held_out(experiment.data, manifest), *tell(report["repeats"])]:
            note(line)
    bad = sum(m["missing"] + m["unreadable"] for s in report["splits"].values() for m in s["modalities"].values())
    if strict and bad:
        fail(f"{bad} files are missing or unreadable", 1)


def default_modalities(data: str) -> str | None:
    """Kinds with a column of their own, and where there are shared files those of the recipe for one's own data."""
    from mbt_core.config.recipes import DEFAULT_WITH_DATA, read_recipe
    from mbt_core.data.shards import located
    from mbt_core.data.tables import read_table
    from mbt_core.io.remote import is_there
    from mbt_core.plugins import missing, registry

    if not is_there(data):
        return None
    columns = read_table(located(data), lambda name: name == "id")[1]
    shared = read_recipe(DEFAULT_WITH_DATA).tree["modalities"] if "path" in columns else ()
    usable = [kind for kind, provided in registry().modalities.items() if not missing(provided.spec)]
    found = [kind for kind in usable if kind in shared or {kind, f"{kind}.path"} & set(columns)]
    return ",".join(found) or None


def _show(report: dict[str, Any]) -> None:
    states = ("present", "absent", "missing", "unreadable")
    from mbt_core.data.channels import channel_lines

    rows, untold = [], 0
    problems: dict[str, None] = {}
    channels: dict[str, None] = {}
    for split, found in report["splits"].items():
        for number, (name, m) in enumerate(found["modalities"].items()):
            head = [split, str(found["rows"])] if number == 0 else ["", ""]
            rows.append([*head, name, *(str(m[key]) for key in states), *_media(m)])
            problems |= dict.fromkeys(m["problems"])
            channels |= dict.fromkeys(channel_lines(name, m))
            untold += m["missing"] + m["unreadable"] - len(m["problems"])
    show(table(["split", "rows", "modality", *states, "seconds", "sizes", "rates"], rows))
    for line in (*channels, *problems):
        note(line)
    if untold > 0:
        note("... and more: of each split and modality the first are shown")
    for task, count in report["classes"].items():
        _show_classes(task, {split: found["class_counts"][task] for split, found in report["splits"].items()})
        note(f"{task}: {count} classes")


def _show_classes(task: str, counts: dict[str, dict[str, int]]) -> None:
    """How many rows of each split have each class, from the commonest down; of many classes both ends."""
    names = list(next(iter(counts.values()), ()))
    rows = [[name, *(str(of_split[name]) for of_split in counts.values())] for name in names]
    rows.sort(key=lambda row: -sum(map(int, row[1:])))
    left_out = len(rows) - 2 * ENDS
    if left_out > 0:
        rows[ENDS:-ENDS] = [["...", *("" for _ in counts)]]
    if rows:
        show(table([task, *counts], rows))
    if left_out > 0:
        note(f"{left_out} classes between these are left out; --json has all")


def _media(found: dict[str, Any]) -> list[str]:
    seconds = found.get("seconds")
    span = f"{seconds['min']:.1f}-{seconds['max']:.1f}" if seconds else ""
    rates = {**(found.get("frame_rates") or {}), **(found.get("sample_rates") or {})}
    return [span, ", ".join(found.get("sizes") or {}), ", ".join(str(rate) for rate in rates)]

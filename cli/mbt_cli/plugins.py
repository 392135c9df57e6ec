"""``mbt plugins``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mbt_cli.options import JsonOption
from mbt_cli.output import note, print_json, show, table

app = typer.Typer(
    help="List, write and check plugins.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="KEY=VALUE of the kind's settings; may be repeated.", show_default=False),
]


@app.command("list")
def list_plugins(as_json: JsonOption = False) -> None:
    """List what the installed plugins provide, where it comes from, and what is missing to use it."""
    from mbt_core.plugins import registry

    found = registry()
    groups = {
        "modality": found.modalities,
        "fusion": found.fusions,
        "dataset": found.datasets,
        "recipe": found.recipes,
        "logger": found.loggers,
        "command": found.commands,
    }
    rows = [
        {
            "what": what,
            "kind": name,
            "plugin": p.plugin,
            "version": p.version,
            "from": p.location,
            "missing": p.install_hint,
        }
        for what, provided in groups.items()
        for name, p in sorted(provided.items())
    ]
    if as_json:
        print_json(rows)
        return
    made = table(["what", "kind", "plugin", "version", "from", "missing"], [list(row.values()) for row in rows])
    for column in made.columns:
        column.justify = "left"
    show(made)


@app.command("new")
def new(name: Annotated[str, typer.Argument(help="Of the kind of modality, [a-z][a-z0-9_]*.")]) -> None:
    """Write ./mbt-NAME, a complete package of a new modality that trains at once, and print its path."""
    from mbt_core.testing.scaffold import write_package

    folder = write_package(name, Path())
    note(f"a modality over .npy arrays; change mbt_{name}/__init__.py and mbt_{name}/modality.py to yours. Next:")
    note(f"  pip install -e ./{folder.name}")
    note(f"  mbt plugins check {name}")
    typer.echo(folder)


@app.command("check")
def check(
    kind: Annotated[str, typer.Argument(help="Kind of modality.")],
    sets: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the conformance suite on a kind of modality, with small real files; exit with 1 on a fault."""
    from mbt_core.config.settings import apply_sets
    from mbt_core.testing.conformance import check_kind

    results = check_kind(kind, apply_sets({}, sets or ()))
    if as_json:
        print_json([asdict(result) for result in results])
    else:
        made = table(["check", "result", ""], [[r.check, r.status, r.message] for r in results])
        for column in made.columns:
            column.justify = "left"
        show(made)
    faults = sum(result.status == "fault" for result in results)
    if faults:
        note(f"{kind}: {faults} of {len(results)} checks found a fault")
        raise typer.Exit(1)

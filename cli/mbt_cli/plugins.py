"""``mbt plugins``."""

from __future__ import annotations

from typing import Annotated

import typer

from mbt_cli.output import print_json, show, table

app = typer.Typer(
    help="List plugins and what they need.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)


@app.command("list")
def list_plugins(as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False) -> None:
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

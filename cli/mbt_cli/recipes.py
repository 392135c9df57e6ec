"""``mbt recipes``."""

from __future__ import annotations

from typing import Annotated

import typer

from mbt_cli.output import show, table

app = typer.Typer(help="List and show recipes.", no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@app.command("list")
def list_recipes() -> None:
    """List the recipes that `mbt train --recipe NAME` can run."""
    from mbt_core.config.recipes import read_recipe
    from mbt_core.plugins import registry

    rows = []
    for name, provided in sorted(registry().recipes.items()):
        first = read_recipe(name).header.splitlines()
        rows.append([name, first[0] if first else "", provided.plugin])
    made = table(["recipe", "what", "from"], rows)
    made.columns[1].justify = made.columns[2].justify = "left"
    show(made)


@app.command("show")
def show_recipe(name: Annotated[str, typer.Argument(help="Name of a recipe or a YAML file.")]) -> None:
    """Print a recipe's file."""
    from pathlib import Path

    from mbt_core.config.recipes import read_recipe
    from mbt_core.plugins import registry

    read_recipe(name)
    known = registry().recipes
    path = known[name].spec.path if name in known else Path(name)
    typer.echo(path.read_text(encoding="utf-8"), nl=False)

"""What the commands print: tables for people, one JSON document for programs, errors on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from mbt_core.io.files import finite

if TYPE_CHECKING:
    from rich.table import Table

LONG = 2000
"""Characters of a line of an error."""
WIDE = 200
"""Columns of a table that is not shown on a terminal."""


def fail(message: str, code: int) -> NoReturn:
    """Prints ``Error: message`` on stderr, what is endless in a line left out, and exits with `code`."""
    lines = message.split("\n")
    shown = [line if len(line) <= LONG else f"{line[: LONG // 2]} ... {line[-LONG // 2 :]}" for line in lines]
    print("Error:", "\n".join(shown), file=sys.stderr)
    raise typer.Exit(code)


def note(message: str) -> None:
    """A line on stderr, so that stdout stays the result's."""
    print(message, file=sys.stderr)


def print_json(document: Any) -> None:
    """One JSON document on stdout; what is not a finite number is null."""
    json.dump(finite(document), sys.stdout, indent=1, ensure_ascii=False, allow_nan=False, default=str)
    sys.stdout.write("\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A rich table; the first column to the left, the others to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD)
    for number, column in enumerate(columns):
        made.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def show(*renderables: Any) -> None:
    """Prints to stdout with rich. Lines of text are never broken; nor are tables where there is no terminal."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else WIDE)
    for renderable in renderables:
        console.print(renderable, soft_wrap=isinstance(renderable, str))


def metrics_table(
    metrics: Mapping[str, float], modalities: Sequence[str], examples: Mapping[str, int] | None = None
) -> Table:
    """One row a metric, one column for the fused result and each of several modalities.

    `examples`: of how many rows a column is, by modality, ``""`` for the fused result; above the metrics.
    """
    from mbt_core.evaluate.metrics import as_text

    names = list(dict.fromkeys(name.partition("[")[0] for name in metrics))
    several = modalities if len(modalities) > 1 else ()
    sources = [m for m in several if any(f"{name}[{m}]" in metrics for name in names)]

    def cell(key: str) -> str:
        return as_text(key, metrics[key]) if key in metrics else ""

    rows = [] if examples is None else [["examples", *(str(examples[m]) for m in ("", *sources))]]
    rows += [[name, cell(name), *(cell(f"{name}[{m}]") for m in sources)] for name in names]
    return table(["metric", "fused" if several else modalities[0], *sources], rows)

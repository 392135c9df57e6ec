"""What a sweep leaves in its folder: ``results.csv``, ``results.md`` and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mbt_core.io.files import write_atomically
from mbt_core.sweep import plot, transfer
from mbt_core.sweep.results import Result, columns, document, markdown_table, summarise, write_csv

OVER = "mean over them"
"""In place of a way of tuning and a share: of all conditions. (`all` is a way of tuning.)"""
Table = tuple[list[str], list[list[str]]]


@dataclass(frozen=True)
class Report:
    """For the terminal.

    Args:
        tables: title -> names of the columns and rows.
        text: a verdict.
        document: for ``--json``.
        files: what was written.
    """

    tables: dict[str, Table]
    text: str
    document: dict[str, Any]
    files: list[Path] = field(default_factory=list)


def comparison(out: Path, results: Sequence[Result], title: str, command: str, figure: bool = True) -> Report:
    """Writes and returns what `mbt compare` found so far; `figure`: with the figure, which takes a second."""
    rows = summarise(results)
    tables = {title: columns(rows)}
    report = Report(tables, "", {"out": str(out), **document(results, rows)})
    write(out, results, report, title, command)
    if figure and any(row.count for row in rows):
        report.files.extend(plot.save(plot.comparison(rows, title), out, "results"))
    return report


def study(out: Path, results: Sequence[Result], title: str, command: str, figure: bool = True) -> Report:
    """Writes and returns what `mbt transfer` found so far; `figure`: as in `comparison`."""
    rows = summarise(results)
    found = transfer.effects(results)
    metric = plot.score_name(results)
    words = transfer.verdict(found, metric)
    against = [
        [
            e.init,
            *(e.condition or (OVER, OVER)),
            str(len(e.differences)),
            e.text.replace("95 % interval ", ""),
            e.word,
        ]
        for e in found
    ]
    names = ["start", "tune", "fraction", "seeds", f"difference of {metric} (95 % interval)", "verdict"]
    effects = [
        {
            **{"init": e.init, "baseline": e.baseline, "condition": e.condition, "differences": e.differences},
            **{"mean": e.mean, "interval": e.interval, "verdict": e.word},
        }
        for e in found
    ]
    tables = {title: columns(rows), "against the baseline": (names, against)}
    known = {"out": str(out), **document(results, rows), "effects": effects, "verdict": words}
    report = Report(tables, words, known)
    write(out, results, report, title, command)
    if figure and any(row.count for row in rows):
        report.files.extend(plot.save(plot.transfer(results, rows, title, transfer.NAMES), out, "results"))
    return report


def write(out: Path, results: Sequence[Result], report: Report, title: str, command: str, unit: str = "cells") -> None:
    """Writes the table of all results and the page, and adds them to the report's files."""
    parts = [f"# {title}\n\n`{command}`\n"]
    parts += [f"\n{report.text}\n"] if report.text else []
    for name, table in report.tables.items():
        heading = f"\n## {name}\n" if name != title else ""
        parts += [f"{heading}\n{markdown_table(*table)}"] if table[1] else []
    failed = [f"- `{r.cell.name}`: {r.error}\n" for r in results if r.status == "failed"]
    parts += ["\nFailed:\n\n", *failed] if failed else []
    left = sum(r.status in ("missing", "unfinished", "running elsewhere") for r in results)
    parts += [f"\n{left} of {len(results)} {unit} are not finished yet.\n"] if left else []
    text = "".join(parts)
    write_csv(out / "results.csv", results)
    write_atomically(out / "results.md", lambda path: path.write_text(text, encoding="utf-8"))
    report.files.extend([out / "results.csv", out / "results.md"])

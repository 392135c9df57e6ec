"""Writes the manifest of a data set from its official annotation files and a folder of media."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from mbt_core.data.columns import is_number
from mbt_core.data.labels import classes_path
from mbt_core.errors import ConfigError, DataError, unknown
from mbt_core.io.files import only_writer, write_atomically
from mbt_core.plugins import load_object, registry
from mbt_core.plugins.hookspecs import BuiltData

SUFFIXES = (".parquet", ".csv", ".jsonl")


@dataclass(frozen=True)
class BuildReport:
    """What was written.

    Args:
        path: the manifest.
        splits: split -> ``{"rows": number, "present": {COLUMN: number}, "missing": {COLUMN: number}}``.
        classes: task -> number of classes.
        missing_path: the list of what is not on disk.
        notes: how the files were read.
    """

    path: str
    splits: dict[str, dict[str, Any]]
    classes: dict[str, int]
    missing_path: str
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def build_manifest(
    name: str, annotations: Path, media: Path, out: Path, subset: str | None = None, seed: int = 0
) -> BuildReport:
    """Builds data set `name`: all its rows, with empty cells for what is not on disk.

    Writes `out`, and beside it ``OUT.missing.csv`` (id, column, a name that was expected) and ``NAME.classes.json``.
    Files are named relative to `out`'s folder if they lie below it, else absolutely.

    Args:
        name: of a registered data set.
        annotations, media: folders.
        out: ``.parquet``, ``.csv`` or ``.jsonl``.
        subset: a part of the data set, where it has several.
        seed: of what is drawn.

    Raises:
        ConfigError: for an unknown data set or format, or a manifest that another process is writing.
        DataError: for annotation files that are not as expected, or that say different things of one id.
    """
    known = {n: provided.spec for n, provided in registry().datasets.items() if provided.spec.build}
    if name not in known:
        raise ConfigError(unknown("data set to build", name, known))
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"--out {out}: expected a file ending in {', '.join(SUFFIXES)}")
    with only_writer(out):
        built = _without_duplicates(load_object(known[name].build)(annotations, media, subset, seed), annotations)
        return _write_built(built, media, out)


def _write_built(built: BuiltData, media: Path, out: Path) -> BuildReport:
    """Writes the manifest and what lies beside it; see `build_manifest`."""
    base = Path(os.path.abspath(media))
    folder = Path(os.path.abspath(out.parent))
    prefix = f"{base.relative_to(folder)}{os.sep}" if base.is_relative_to(folder) else f"{base}{os.sep}"
    if base == folder:
        prefix = ""
    missing_path = out.with_name(f"{out.name}.missing.csv")
    classes_file = classes_path(out)
    write_atomically(missing_path, lambda path: _write_missing(built, path))
    write_atomically(
        classes_file, lambda path: path.write_text(json.dumps(built.classes, indent=1, ensure_ascii=False))
    )
    write_atomically(out, lambda path: _write(_table(built, prefix), path, out.suffix))
    return _report(built, out, missing_path)


def _without_duplicates(built: BuiltData, annotations: Path) -> BuiltData:
    """Each row once. Raises `DataError` for rows of one id that differ."""
    first: dict[str, int] = {}
    for i, name in enumerate(built.columns["id"]):
        k = first.setdefault(name, i)
        if k == i:
            continue
        told = [f"{column} {c[k]!r} and {c[i]!r}" for column, c in built.columns.items() if c[k] != c[i]]
        if told:
            raise DataError(f"{annotations}: {name!r} is there twice, with the {'; '.join(told)}; remove one of them")
    rows, count = list(first.values()), len(built.columns["id"])
    if len(rows) == count:
        return built
    return replace(
        built,
        columns={column: [cells[i] for i in rows] for column, cells in built.columns.items()},
        expected=[built.expected[i] for i in rows],
        notes=[*built.notes, f"{count - len(rows)} rows are there more than once in the annotation files: taken once"],
    )


def _table(built: BuiltData, prefix: str) -> pa.Table:
    arrays = {}
    for name, cells in built.columns.items():
        shown = [prefix + cell if cell else "" for cell in cells] if name in built.files else cells
        try:
            arrays[name] = pa.array(shown, pa.float64() if is_number(name) else pa.string())
        except UnicodeEncodeError:
            raise DataError(f"a file name in column {name!r} is not valid UTF-8; rename it") from None
    return pa.table(arrays)


def _write(table: pa.Table, path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pa.parquet.write_table(table, path)
    elif suffix == ".csv":
        pa.csv.write_csv(table, path)
    else:
        with path.open("w", encoding="utf-8") as file:
            for row in table.to_pylist():
                file.write(json.dumps({key: cell for key, cell in row.items() if cell is not None}) + "\n")


def _write_missing(built: BuiltData, path: Path) -> None:
    rows = [
        (built.columns["id"][i], column, built.expected[i])
        for column in built.files
        for i, cell in enumerate(built.columns[column])
        if not cell
    ]
    ids, columns, expected = zip(*rows, strict=True) if rows else ((), (), ())
    text = pa.string()
    table = pa.table([pa.array(cells, text) for cells in (ids, columns, expected)], ["id", "column", "expected"])
    pa.csv.write_csv(table, path)


def _report(built: BuiltData, out: Path, missing_path: Path) -> BuildReport:
    splits: dict[str, dict[str, Any]] = {}
    for i, split in enumerate(built.columns["split"]):
        found = splits.setdefault(
            split, {"rows": 0, "present": dict.fromkeys(built.files, 0), "missing": dict.fromkeys(built.files, 0)}
        )
        found["rows"] += 1
        for column in built.files:
            found["present" if built.columns[column][i] else "missing"][column] += 1
    classes = {task: len(names) for task, names in built.classes.items()}
    return BuildReport(str(out), splits, classes, str(missing_path), built.notes)

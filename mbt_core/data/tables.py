"""Reads a manifest's rows, whatever their format, into a pyarrow table, and normalises its columns.

Formats: CSV (and TSV), Parquet, JSONL, and a folder ``DIR/[split/]CLASS/file``. Everything is done column by
column, so that millions of rows take seconds.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from mbt_core.data.shards import is_packed, read_shards
from mbt_core.errors import DataError
from mbt_core.io.files import LARGEST_TABLE, check_bytes, is_folder, open_regular, read_parquet

EXPECTED = "a manifest (.csv, .tsv, .parquet, .jsonl) or a folder with one sub-folder per class"
BLOCK = 1 << 24
"""Bytes parsed at a time; a row must be shorter."""
KEY = re.compile(rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"\s*+:')
"""Of an object in JSON."""
LINES = 1 << 18
"""Bytes of lines whose keys are looked for at a time."""
CELL = 16
"""Bytes that pyarrow takes for a cell of JSON, also an empty one."""
SPLIT_FOLDERS = {"train", "training", "val", "valid", "validation", "test", "testing"}
JUNK = {"thumbs.db", "desktop.ini"}

Wanted = Callable[[str], bool]


def read_table(path: Path, wanted: Wanted) -> tuple[pa.Table, list[str]]:
    """Reads the columns of `path` that are `wanted`.

    Returns:
        The table, and the names of all columns found.

    Raises:
        DataError: for a file that is missing, empty, malformed, or of another format.
    """
    if path.is_dir() and is_packed(path):
        return read_shards(path, wanted)
    if path.is_dir():
        table = read_folder(path)
        return table, table.column_names
    readers = {".csv": _csv, ".tsv": _csv, ".parquet": _parquet, ".pq": _parquet, ".jsonl": _jsonl, ".ndjson": _jsonl}
    reader = readers.get(path.suffix.lower())
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder; expected {EXPECTED}")
    if reader is None:
        raise DataError(f"{path}: a manifest cannot be a {path.suffix or 'file without suffix'}; expected {EXPECTED}")
    try:
        table, names = reader(path, wanted)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except (pa.ArrowInvalid, pa.ArrowKeyError, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{path}: malformed: {_reason(error)}") from None
    if table.num_rows == 0:
        raise DataError(f"{path}: no rows")
    return table, names


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "invalid UTF8" in text:
        return "not UTF-8 text; save it as UTF-8"
    return text if len(text) <= 300 else text[:297] + "..."


def _csv(path: Path, wanted: Wanted) -> tuple[pa.Table, list[str]]:
    mark = "\t" if path.suffix.lower() == ".tsv" else ","
    with io.TextIOWrapper(open_regular(path, LARGEST_TABLE), encoding="utf-8-sig", newline="") as file:
        try:
            header = next(csv.reader(file, delimiter=mark), [])
        except csv.Error as error:
            raise DataError(f"{path}: malformed header: {error}") from None
    names = _header(path, header)
    chosen = [name for name in names if wanted(name)] or names[:1]  # all ignored: keep one to count rows
    convert = pa.csv.ConvertOptions(
        include_columns=chosen, column_types=dict.fromkeys(chosen, pa.string()), strings_can_be_null=False
    )
    parse = pa.csv.ParseOptions(delimiter=mark, newlines_in_values=True)

    def read(threads: bool) -> pa.Table:
        # names given: the header's line is skipped as the first row is (quoted line breaks included)
        options = pa.csv.ReadOptions(column_names=names, skip_rows_after_names=1, block_size=BLOCK, use_threads=threads)
        return pa.csv.read_csv(path, options, parse, convert)

    try:
        table = read(True)
    except pa.ArrowInvalid:
        _check_quotes(path, mark)
        return read(False), names  # fails again, but one thread knows the row's number
    _check_quotes(path, mark, table.num_rows)
    return table, names


def _check_quotes(path: Path, mark: str, rows: int = -1) -> None:
    """Raises `DataError` for a quote that is not closed: the rows up to the next quote, or the end, would be its value.

    Args:
        path: of the CSV file.
        mark: what separates its cells.
        rows: that were found in it; where they are all its lines, and quotes come in pairs, it is not looked through.
    """
    content = path.read_bytes()
    lines = content.count(b"\n") + (not content.endswith(b"\n"))
    if lines == rows + 1 and content.count(b'"') % 2 == 0:
        return
    # a quote that begins a cell, up to the one that closes it, and what stands where the cell should end
    quoted = re.compile(rb'"(?<![^%b\r\n]")([^"]*+(?:""[^"]*+)*+)("?)([^%b\r\n]?)' % (mark.encode(), mark.encode()))
    for found in quoted.finditer(content):
        if not found[2] or (found[3] and b"\n" in found[1]):
            line = content.count(b"\n", 0, found.start()) + 1
            raise DataError(f'{path}: line {line}: a quote is opened and not closed; close it, or write it as ""')


def _header(path: Path, names: list[str]) -> list[str]:
    names = [name.strip() for name in names]
    if not any(names):
        raise DataError(f"{path}: empty; expected a header with the names of the columns in the first line")
    twice = {name for name in names if names.count(name) > 1 and name}
    if twice:
        raise DataError(f"{path}: column {sorted(twice)[0]!r} is there twice")
    return names


def _parquet(path: Path, wanted: Wanted) -> tuple[pa.Table, list[str]]:
    with open_regular(path, LARGEST_TABLE) as file:
        found = pa.parquet.read_schema(file).names
    names = dict(zip(found, _header(path, found), strict=True))
    table = read_parquet(path, [old for old, name in names.items() if wanted(name)] or found[:1])
    return table.rename_columns([names[old] for old in table.column_names]), list(names.values())


def _jsonl(path: Path, wanted: Wanted) -> tuple[pa.Table, list[str]]:
    _check_keys(path)
    options = pa.json.ReadOptions(block_size=BLOCK)
    table = pa.json.read_json(path, options)
    # what looks like a date is text like any other: read such columns again, as they are written
    dates = [field.name for field in table.schema if pa.types.is_temporal(field.type)]
    if dates:
        schema = pa.schema([(name, pa.string()) for name in dates])
        table = pa.json.read_json(path, options, pa.json.ParseOptions(explicit_schema=schema))
    table.validate(full=True)
    names = _header(path, table.column_names)
    table = table.rename_columns(names)
    return table.select([name for name in names if wanted(name)] or names[:1]), names


def _check_keys(path: Path) -> None:
    """Raises `DataError` for an empty JSONL file, `OSError` for one whose rows times keys would not fit into memory."""
    keys: set[bytes] = set()
    rows = 0
    with open_regular(path, LARGEST_TABLE) as file:
        while lines := file.readlines(LINES):
            rows += len(lines)
            keys.update(KEY.findall(b"".join(lines)))
            check_bytes(CELL * rows * len(keys), LARGEST_TABLE)  # a key of one row is a column of all
    if not rows:
        raise DataError(f"{path}: empty; expected one JSON object per line")


def read_folder(root: Path) -> pa.Table:
    """``DIR/CLASS/file`` or ``DIR/SPLIT/CLASS/file`` -> id and path (relative), label, split.

    The first level holds splits if all its folders are called train, val, valid, validation or test. Hidden files
    are left out.
    """
    top = list(_entries(root, folders=True))
    has_splits = bool(top) and all(entry.name.lower() in SPLIT_FOLDERS for entry in top)
    rows: list[tuple[str, str, str]] = []
    for split, folder in [(e.name, e.path) for e in top] if has_splits else [("", str(root))]:
        for label in _entries(Path(folder), folders=True):
            for entry in _entries(Path(label.path), folders=False):
                rows.append((os.path.relpath(entry.path, root), label.name, split))
            deeper = next(_entries(Path(label.path), folders=True), None)
            if deeper:
                raise DataError(
                    f"{deeper.path}: a folder inside the folder of class {label.name!r}; expected "
                    f"{root}/[train|val|test/]CLASS/file"
                )
    if not rows:
        raise DataError(f"{root}: no files in sub-folders; expected {root}/[train|val|test/]CLASS/file")
    paths, labels, splits = zip(*rows, strict=True)
    try:
        return pa.table({"id": paths, "path": paths, "label": labels, "split": splits})
    except UnicodeEncodeError:
        bad = next(path for path in paths if not _encodable(path))
        raise DataError(f"{root}: the file name {bad!r} is not valid UTF-8; rename it") from None


def _entries(folder: Path, folders: bool) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        for entry in sorted(found, key=lambda entry: entry.name):
            if not entry.name.startswith(".") and entry.name.lower() not in JUNK and is_folder(entry) == folders:
                yield entry


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

"""Reads annotation files, with messages for what is missing in them."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from mbt_core.errors import ConfigError, DataError, unknown


def find_file(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of `names` that is in `folder`. Raises `ConfigError` if that is no folder."""
    if not folder.is_dir():
        raise ConfigError(f"--annotations {folder}: there is no such folder")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def need_file(folder: Path, *names: str) -> Path:
    """`find_file` that raises `DataError` if none is there."""
    found = find_file(folder, names)
    if found is None:
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
        raise DataError(f"{folder}: no {' or '.join(names)}; found: {there}")
    return found


@contextmanager
def _text_of(path: Path) -> Iterator[TextIO]:
    """The opened file; what goes wrong while it is read as CSV is a `DataError` that names it."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{path}: malformed CSV: {error}") from None


def read_lines(path: Path, width: int) -> Iterator[list[str]]:
    """Rows of a CSV file without header, from the line after comments (``#``) on, without empty lines.

    Raises:
        DataError: for a row with fewer than `width` cells, and for what is no CSV in UTF-8.
    """
    with _text_of(path) as file:
        for number, cells in enumerate(csv.reader(file, skipinitialspace=True), start=1):
            if not cells or cells[0].startswith("#"):
                continue
            if len(cells) < width:
                raise DataError(f"{path}: row {number}: expected {width} cells, got {cells}")
            yield cells


def read_records(path: Path, *columns: str) -> Iterator[dict[str, str]]:
    """Rows of a CSV file with a header.

    Raises:
        DataError: if the file or a row of it lacks one of `columns`, and for what is no CSV in UTF-8.
    """
    with _text_of(path) as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        for name in columns:
            if name not in (reader.fieldnames or ()):
                raise DataError(f"{path}: {unknown('column', name, reader.fieldnames or ())}")
        for record in reader:
            for name in columns:
                if record[name] is None:
                    raise DataError(f"{path}: line {reader.line_num}: it ends before the column {name!r}; complete it")
            yield record


def seconds(text: str, where: str) -> float:
    """``"30"``, ``"30.000"`` or ``"00:01:02.50"`` -> seconds. Raises `DataError`."""
    try:
        value = 0.0
        for part in text.split(":"):
            value = 60 * value + float(part)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: expected seconds or HH:MM:SS, got {text!r}")
    return round(value, 6)


def whole_number(text: str, where: str) -> int:
    """Raises `DataError` if it is none."""
    try:
        return int(text)
    except ValueError:
        raise DataError(f"{where}: expected a whole number, got {text!r}") from None


def number_above_0(text: str, where: str) -> float:
    """Raises `DataError` if it is none."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise DataError(f"{where}: expected a number above 0, got {text!r}")
    return value

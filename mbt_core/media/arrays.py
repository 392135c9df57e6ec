"""Arrays out of .npy, .npz, .csv and .parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from csv import reader
from io import BytesIO
from threading import Lock
from typing import Any, BinaryIO

import numpy as np

from mbt_core.media.errors import reason

NAMED = "array"  # the one to take of several arrays in an .npz
LARGEST = 1 << 31
"""Bytes of a file or of the array in it; compressed, a small file can hold any number."""
_HEADERS = Lock()
"""numpy parses headers by `ast`, which now and then fails in threads of Python 3.11 (cpython issue 106905)."""


def load_array(file: BinaryIO, suffix: str) -> np.ndarray:
    """float32 array of at least two dimensions out of a file with this suffix, see `Clip.array`."""
    try:
        check_size(file.seek(0, 2))
        file.seek(0)
        loaded = LOADERS[suffix](file)
    except Exception as error:  # parsers say what they like about damaged files
        raise ValueError(reason(error)) from error
    if loaded.dtype.kind not in "biuf" or loaded.ndim == 0:
        raise ValueError(f"expected numbers, found {loaded.dtype} of shape {loaded.shape}")
    return np.ascontiguousarray(np.atleast_2d(loaded), np.float32)


def check_size(nbytes: int) -> None:
    """Raises `ValueError` for more than `LARGEST` bytes."""
    if nbytes > LARGEST:
        raise ValueError(f"{nbytes:,} bytes are too large, expected at most {LARGEST:,}: cut the array into files")


def load_npy(file: BinaryIO) -> np.ndarray:
    """The array of an .npy file."""
    with _HEADERS:
        return np.load(file, allow_pickle=False)


def load_npz(file: BinaryIO) -> np.ndarray:
    """The only array of an .npz file, or the one called "array"."""
    with _HEADERS, np.load(file, allow_pickle=False) as arrays:
        names = list(arrays)
        if len(names) != 1 and NAMED not in names:
            raise ValueError(f"it holds {names}: expected one array, or one of them named {NAMED!r}")
        check_size(max(member.file_size for member in arrays.zip.infolist()))
        return arrays[NAMED if NAMED in names else names[0]]


def load_csv(file: BinaryIO) -> np.ndarray:
    """[columns, rows] of a comma-separated file; empty lines at its end, and a comma at the end of all, do not count.

    The first line is a header unless it holds numbers only; 0,1,2 .. without a gap is one, too. A column of numbers
    with other text in it raises `ValueError`.
    """
    from pyarrow import csv, types

    options = csv.ConvertOptions(strings_can_be_null=True)
    content = file.read().rstrip()
    lines = BytesIO(content.lstrip()).readline().decode("utf-8-sig").splitlines()
    head = [cell.strip() for cell in next(reader(lines), [])]
    names = _is_header(head, options.null_values)
    table = csv.read_csv(
        BytesIO(content.lstrip() if names else content),
        csv.ReadOptions(autogenerate_column_names=not names),
        csv.ParseOptions(ignore_empty_lines=len(head) > 1),
        options,
    )
    if types.is_null(table.columns[-1].type) and not (names and head[-1]):
        table = table.select(range(table.num_columns - 1))
    for place, name in enumerate(table.column_names):
        if types.is_string(table.column(place).type) or types.is_binary(table.column(place).type):
            table = table.set_column(place, name, _parsed(name, table.column(place)))
    return from_table(table)


def _is_header(cells: Sequence[str], nulls: Sequence[str]) -> bool:
    """Whether the first line of a .csv file names its columns."""
    numbered = cells[1:] if cells and not cells[0] else cells  # before it the rows' numbers, without a name
    if len(numbered) > 1 and numbered == [str(place) for place in range(len(numbered))]:
        return True
    return not all(is_number(cell) or cell in nulls for cell in cells)


def _parsed(name: str, column: Any) -> Any:
    """A column of text as numbers if all cells are some (+1), as it is if none is; raises `ValueError` for a mix."""
    import pyarrow

    cells = column.to_pylist()
    numbers = {cell: is_number(cell) for cell in set(cells) if cell is not None}
    if not any(numbers.values()):
        return column
    for place, cell in enumerate(cells):
        if cell is not None and not numbers[cell]:
            raise ValueError(
                f"column {name!r} holds numbers, but {cell!r} at sample {place}: empty the cell if it is a gap, or "
                "remove the column"
            )
    return pyarrow.chunked_array([[None if cell is None else float(cell) for cell in cells]], pyarrow.float64())


def load_parquet(file: BinaryIO) -> np.ndarray:
    """[columns, rows] of a Parquet file."""
    from pyarrow import parquet

    opened = parquet.ParquetFile(file)
    check_size(8 * opened.metadata.num_rows * opened.metadata.num_columns)
    table = opened.read()
    table.validate(full=True)  # damaged columns can be read, and end the process where they are used
    return from_table(table)


def from_table(table: Any) -> np.ndarray:
    """[columns, rows] of the columns that hold numbers, or nothing at all; empty cells are NaN."""
    from pyarrow import float32, types

    tests = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal)
    if not any(test(column.type) for test in tests for column in table.columns):
        raise ValueError(f"no column holds numbers; columns: {table.column_names}")
    columns = [c for c in table.columns if any(test(c.type) for test in (*tests, types.is_null))]
    return np.stack([column.cast(float32(), safe=False).to_numpy() for column in columns])


def is_number(cell: str | bytes) -> bool:
    """Whether a cell of a .csv file is a number."""
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in str(cell)  # in Python 1_000 is one


LOADERS = {".npy": load_npy, ".npz": load_npz, ".csv": load_csv, ".parquet": load_parquet}

"""Arrays out of .npy, .npz, .csv and .parquet files."""

from __future__ import annotations

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
    """[columns, rows] of a comma-separated file; a first line with a number in it is no header."""
    from pyarrow import csv

    head = file.readline().decode().strip().split(",")
    file.seek(0)
    return from_table(csv.read_csv(file, csv.ReadOptions(autogenerate_column_names=any(map(is_number, head)))))


def load_parquet(file: BinaryIO) -> np.ndarray:
    """[columns, rows] of a Parquet file."""
    from pyarrow import parquet

    opened = parquet.ParquetFile(file)
    check_size(8 * opened.metadata.num_rows * opened.metadata.num_columns)
    table = opened.read()
    table.validate(full=True)  # damaged columns can be read, and end the process where they are used
    return from_table(table)


def from_table(table: Any) -> np.ndarray:
    """[columns, rows] of the columns that hold numbers; empty cells are NaN."""
    from pyarrow import types

    columns = [c for c in table.columns if types.is_integer(c.type) or types.is_floating(c.type)]
    if not columns:
        raise ValueError(f"no column holds numbers; columns: {table.column_names}")
    return np.stack([column.to_numpy().astype(np.float32) for column in columns])


def is_number(cell: str) -> bool:
    """Whether a cell of a .csv file is a number."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


LOADERS = {".npy": load_npy, ".npz": load_npz, ".csv": load_csv, ".parquet": load_parquet}

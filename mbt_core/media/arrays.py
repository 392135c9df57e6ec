"""Arrays out of .npy, .npz, .csv and .parquet files."""

from __future__ import annotations

import math
from threading import Lock
from typing import BinaryIO

import numpy as np

from mbt_core.io.files import check_bytes, decoded_bytes
from mbt_core.media.channels import LARGEST, Stored, channels_of, not_numbers
from mbt_core.media.deadline import Deadline, read_all
from mbt_core.media.delimited import load_csv
from mbt_core.media.errors import MediaError, reason

NAMED = "array"  # the one to take of several arrays in an .npz
_HEADERS = Lock()
"""numpy parses headers by `ast`, which now and then fails in threads of Python 3.11 (cpython issue 106905)."""


def load_array(file: BinaryIO, suffix: str, deadline: Deadline) -> Stored:
    """The array of at least two dimensions out of a file with this suffix, see `Clip.array`.

    Raises:
        ValueError: if it cannot be read, or takes more than `LARGEST` bytes.
        MediaError: when the time is over.
    """
    try:
        check_bytes(file.seek(0, 2), LARGEST)
        file.seek(0)
        if suffix == ".csv":
            return load_csv(read_all(file, LARGEST, deadline))
        if suffix == ".parquet":
            return load_parquet(file)
        loaded = ARRAYS[suffix](file)
    except MediaError:
        raise
    except Exception as error:  # parsers say what they like about damaged files
        why = reason(error)
        raise ValueError(f"{why}: cut the array into files" if "too large" in why else why) from error
    if loaded.dtype.kind not in "biuf" or loaded.ndim == 0:
        raise ValueError(f"expected numbers, found {loaded.dtype} of shape {loaded.shape}")
    return Stored(np.atleast_2d(loaded))


def load_npy(file: BinaryIO) -> np.ndarray:
    """The array of an .npy file."""
    size = file.seek(0, 2)
    file.seek(0)
    with _HEADERS:
        _check_header(file, size)
        file.seek(0)
        return np.load(file, allow_pickle=False)


def load_npz(file: BinaryIO) -> np.ndarray:
    """The only array of an .npz file, or the one called "array"."""
    with _HEADERS, np.load(file, allow_pickle=False) as arrays:
        names = list(arrays)
        if len(names) != 1 and NAMED not in names:
            raise ValueError(f"it holds {names}: expected one array, or one of them named {NAMED!r}")
        check_bytes(max(member.file_size for member in arrays.zip.infolist()), LARGEST)
        name = NAMED if NAMED in names else names[0]
        member = next(member for member in arrays.zip.infolist() if member.filename in (name, f"{name}.npy"))
        with arrays.zip.open(member) as opened:
            _check_header(opened, member.file_size)
        return arrays[name]


def _check_header(file: BinaryIO, size: int) -> None:
    """Raises `ValueError` or `OSError` for an array of more bytes than allowed, or than a file of `size` can hold."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"expected numbers, found an array of format {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        return  # refused, whatever its size
    count = math.prod(shape)
    check_bytes(count * dtype.itemsize, LARGEST)
    if count * dtype.itemsize > size - file.tell():
        raise ValueError(f"truncated: its header says {list(shape)} of {dtype}, it holds {size:,} bytes")


def load_parquet(file: BinaryIO) -> Stored:
    """The channels of a Parquet file; of what are no numbers nothing is read."""
    from pyarrow import parquet

    opened = parquet.ParquetFile(file)
    others = {field.name: not_numbers(field.type) for field in opened.schema_arrow if not_numbers(field.type)}
    wanted = [name for name in opened.schema_arrow.names if name not in others]
    leaves = [opened.metadata.schema.column(number).path for number in range(opened.metadata.num_columns)]
    nested = next((leaf for leaf in leaves for name in wanted if leaf.startswith(f"{name}.")), None)
    if nested is not None:
        raise ValueError(f"column {nested!r} is called like a part of another column: rename it")
    if not wanted:
        raise ValueError(f"no column holds numbers; columns: {opened.schema_arrow.names}")
    check_bytes(decoded_bytes(opened.metadata, wanted), LARGEST)
    table = opened.read(columns=wanted)
    table.validate(full=True)  # damaged columns can be read, and end the process where they are used
    stored = channels_of(table, named=True)
    return Stored(stored.array, stored.columns, {**others, **stored.left_out})


ARRAYS = {".npy": load_npy, ".npz": load_npz}
LOADERS = (*ARRAYS, ".csv", ".parquet")

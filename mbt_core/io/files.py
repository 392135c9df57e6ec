"""Reading and writing files: the door to regular files, atomic writes, and readers that never unpickle."""

from __future__ import annotations

import json
import math
import os
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import get_ident
from typing import TYPE_CHECKING, Any, BinaryIO

from mbt_core.errors import DataError, InUseError, MBTError

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

SUMS = "crc32"
"""Key of a safetensors file's metadata: checksums of tensors and of the other metadata, in one (their order is random).
A file without it, from elsewhere, is taken as it is."""
LARGEST_JSON = 1 << 28
"""Bytes of a JSON document."""
LARGEST_TABLE = 1 << 31
"""Bytes of a table's file, and of its columns in memory: a few repeated strings can be any number of bytes."""
KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))


def open_regular(path: str | Path, largest: int | None = None, *, follow: bool = True) -> BinaryIO:
    """Opens a file for reading: the one door, which devices and pipes (endless, or silent for ever) do not pass.

    Args:
        path: of the file, or of a link to it.
        largest: bytes it may have; None: any number.
        follow: False: a link is refused, too.

    Raises:
        OSError: if it is not there, no regular file, or too large.
    """
    status = os.stat(path, follow_symlinks=follow)  # before it is opened, for which a pipe would wait
    if not stat.S_ISREG(status.st_mode):
        kind = next((kind for is_one, kind in KINDS if is_one(status.st_mode)), "a link or a device")
        raise OSError(f"not a file but {kind}")
    if largest is not None:
        check_bytes(status.st_size, largest)
    file = Path(path).open("rb")  # noqa: SIM115 - the caller closes it
    if not os.path.samestat(os.fstat(file.fileno()), status):
        file.close()
        raise OSError("it was replaced while it was opened")
    return file


def check_bytes(nbytes: int, largest: int) -> None:
    """Raises `OSError` for too many."""
    if nbytes > largest:
        raise OSError(f"{nbytes:,} bytes are too large, expected at most {largest:,}")


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` fill a temporary sibling, then renames it to `path`: readers see the old file or the new one.

    Raises:
        MBTError: if it cannot be written (disk full, no permission); the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode  # as the user's umask has it; some writers make private files
        write(temporary)
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except Exception as error:
        # safetensors reports a full disk as an error of its own
        if isinstance(error, OSError) or "SafetensorError" in type(error).__name__:
            reason = getattr(error, "strerror", None) or str(error)
            raise MBTError(f"{path}: cannot be written: {reason}. What was saved before is untouched") from error
        raise
    finally:
        with suppress(OSError):  # or it would hide the error above
            temporary.unlink(missing_ok=True)


@contextmanager
def locked(lock: Path) -> Iterator[bool]:
    """Holds the file `lock`, made with its folders, while the context lasts; no other process may hold it then.

    The lock belongs to this process: none that it starts or forks inherits it, and it ends with the process, however
    that ends. Where files cannot be locked there is none. What was made for it is removed again.

    Yields:
        Whether it is held, or cannot be; False: another process holds it.
    """
    made = [path for path in lock.parents if not path.exists()]
    file, free = _lock(lock)
    try:
        yield free
    finally:
        if file is not None:
            with suppress(OSError):
                lock.unlink()  # while it is still locked: who opens it now sees that it is gone
            os.close(file)
        for path in made:
            with suppress(OSError):  # what was to be written there is there
                path.rmdir()


@contextmanager
def only_writer(out: Path, part: str = "") -> Iterator[None]:
    """Keeps other processes from writing to `out`, a file or a folder (or to a `part` of it), while the context lasts.

    Raises:
        InUseError: if another process is writing there.
    """
    with locked(out.with_name(f".{out.name}{part}.lock")) as free:
        if not free:
            raise InUseError(f"--out {out}: another process is writing there; wait for it, stop it, or choose another")
        yield


def _lock(path: Path) -> tuple[int | None, bool]:
    """The locked file (None: it cannot be made or locked here), and whether no other process holds it."""
    try:
        import fcntl
    except ImportError:
        return None, True
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:  # a folder that cannot be written to says so where it matters
        return None, True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file), path.stat()):
            return file, True
        free = False  # whoever held it has just let go of it, and another may have taken its place
    except (BlockingIOError, PermissionError, FileNotFoundError):
        free = False
    except OSError:  # the file system has no locks
        free = True
    os.close(file)
    return None, free


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one; what cannot be told, as of a link to itself, is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def read_json(path: Path) -> Any:
    """Raises `DataError` for a file that is missing or no JSON."""
    try:
        with open_regular(path, LARGEST_JSON) as file:
            return json.loads(file.read().decode())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from None


def finite(value: Any) -> Any:
    """A tree for JSON, in which what is not a finite number is None."""
    if isinstance(value, Mapping):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes tensors with checksums of them and of the metadata, atomically. Raises `MBTError` if it cannot."""
    from safetensors.torch import save_file

    whole = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    about = dict(metadata or {})
    about[SUMS] = f"{_tensor_sum(whole)} {_metadata_sum(about)}"
    write_atomically(path, lambda temporary: save_file(whole, temporary, about))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Raises `DataError` for a file that is missing, truncated, damaged or of another format (no pickle is loaded)."""
    with _opened(path) as file:
        said = (file.metadata() or {}).get(SUMS)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    if said is not None and said.partition(" ")[0] != _tensor_sum(tensors):
        raise DataError(f"{path}: damaged: its tensors are not those that were written (their checksum differs)")
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, without reading its tensors. Raises `DataError` as `read_safetensors`."""
    with _opened(path) as file:
        found = dict(file.metadata() or {})
    said = found.pop(SUMS, None)
    if said is not None and said.partition(" ")[2] != _metadata_sum(found):
        raise DataError(f"{path}: damaged: its metadata is not what was written (its checksum differs)")
    return found


def read_shapes(path: Path, prefix: str = "") -> dict[str, list[int]]:
    """Shapes of the tensors whose names begin with `prefix`, by the rest of their names, without reading any.

    Raises:
        DataError: as `read_safetensors`.
    """
    with _opened(path) as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - not a dictionary
        return {name.removeprefix(prefix): file.get_slice(name).get_shape() for name in names}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            yield file
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (SafetensorError, ValueError) as error:
        raise DataError(f"{path}: no safetensors file, or a truncated one: {error}") from None


def _metadata_sum(metadata: Mapping[str, str]) -> str:
    return f"{zlib.crc32(json.dumps(sorted(metadata.items())).encode()):08x}"


def _tensor_sum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of names, types, shapes and content (some 6 GB/s)."""
    import torch

    total = 0
    for name, x in sorted(tensors.items()):
        total = zlib.crc32(f"{name} {x.dtype} {list(x.shape)}".encode(), total)
        total = zlib.crc32(x.reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The columns of one Parquet file, checked: damaged ones can be read, and end the process where they are used.

    Raises:
        pyarrow.ArrowException, OSError: if the file is missing, malformed, damaged or too large.
    """
    import pyarrow as pa
    from pyarrow import parquet

    with open_regular(path, LARGEST_TABLE) as file:
        opened = parquet.ParquetFile(file)
        schema, metadata = opened.schema_arrow, opened.metadata
        missing = [name for name in columns or () if name not in schema.names]
        if missing:
            raise pa.ArrowKeyError(f"no column {missing[0]!r}")
        check_bytes(decoded_bytes(metadata, columns), LARGEST_TABLE)
        leaves = [metadata.schema.column(number) for number in range(metadata.num_columns)]
        # Texts stay dictionaries until their sizes are known.
        texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        table = parquet.ParquetFile(file, metadata=metadata, read_dictionary=texts).read(columns=columns)
        table.validate(full=True)
        check_bytes(sum(_text_bytes(chunk) for column in table.columns for chunk in column.chunks), LARGEST_TABLE)
        return table.cast(pa.schema([schema.field(name) for name in table.column_names], schema.metadata))


def decoded_bytes(metadata: Any, columns: Sequence[str] | None) -> int:
    """Bytes of some columns of a Parquet file in memory, without what their texts take if dictionaries are unpacked."""
    total = 0
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            chunk, leaf = metadata.row_group(group).column(number), metadata.schema.column(number)
            if columns is not None and not any(f"{leaf.path}.".startswith(f"{name}.") for name in columns):
                continue
            width = {"BYTE_ARRAY": 8, "FIXED_LEN_BYTE_ARRAY": leaf.length}.get(leaf.physical_type, 8)
            total += max(chunk.num_values * width, chunk.total_uncompressed_size)
    return total


def _text_bytes(array: pa.Array) -> int:
    """Bytes of the texts of dictionary-encoded columns, also inside of lists and structures, each where it is used."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_dictionary(kind) and not pa.types.is_primitive(kind.value_type):
        lengths = pc.binary_length(array.dictionary).cast(pa.int64())
        return pc.sum(lengths.take(array.indices)).as_py() or 0
    if pa.types.is_map(kind):
        return _text_bytes(array.keys) + _text_bytes(array.items)
    if pa.types.is_struct(kind):
        return sum(map(_text_bytes, array.flatten()))
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return _text_bytes(array.flatten()) if is_list else 0

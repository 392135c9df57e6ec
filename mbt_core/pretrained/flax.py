"""Flax's msgpack checkpoints: the parameters are read and all else is skipped; the released form can be written.

The file is one msgpack map without header or checksum. Parameters are a tree of maps below `optimizer/target` (the
released MBT checkpoints), `optimizer/target/params` (older ones, with pre-Linen names), `params` (newer ones) or the
file itself. Leaves are extension types: 1 an array, 2 a complex number, 3 a numpy scalar; the payload of 1 and 3 is a
msgpack array (shape, dtype name, little-endian bytes in C order). Arrays above 2**30 bytes are cut into chunks.

Importing this module raises a ConfigError if `msgpack`, which is optional, is not installed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mbt_core.errors import ConfigError, DataError
from mbt_core.pretrained.files import as_float32, looks_like
from mbt_core.pretrained.names import Flat, to_linen

try:
    import msgpack
except ModuleNotFoundError as error:
    raise ConfigError("Flax checkpoints need msgpack: pip install 'mbt-fusion[convert]'") from error

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"
_INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
_LITTLE_ENDIAN = {
    name: np.dtype(name).newbyteorder("<") for name in ["bool", *_INTEGERS, "float16", "float32", "float64"]
}
_DTYPES = _LITTLE_ENDIAN | {"bfloat16": np.dtype("V2")}
_READ_BYTES = 2**20
# Flax cuts longer arrays; the rest is room for shape and dtype
_MAX_LEAF_BYTES = 2**30 + 2**16
# an MBT's tree is 7 deep and has fewer than 2000 entries: these bound what a hostile file can make us build
_MAX_DEPTH, _MAX_ENTRIES, _MAX_KEY, _MAX_DIMS = 32, 100_000, 200, 32


class _Ext(NamedTuple):
    code: int
    data: bytes


def read_params(path: Path) -> Flat:
    """The parameters of a Flax checkpoint, flat and under Linen names (`embedding/kernel`), as float32.

    The file is walked twice, once over everything to find the parameters and any damage, once over the parameters:
    memory beyond the result stays below a few times the largest array.

    Args:
        path: the file, or a folder, of which the `checkpoint_N` with the highest N is taken.

    Raises:
        DataError: the file is missing, truncated, damaged, no checkpoint or without parameters.
    """
    path = checkpoint_file(path)
    try:
        if kind := looks_like(path):
            raise ValueError(f"{kind}, where a Flax msgpack checkpoint is expected")
        with path.open("rb", buffering=0) as file:
            return _read(file, path.stat().st_size)
    except (msgpack.UnpackException, ValueError, OSError) as error:
        raise DataError(f"{path}: {_reason(error)}") from error


def checkpoint_file(path: Path) -> Path:
    """`path` itself, or for a folder its `checkpoint_N` with the highest N.

    Raises:
        DataError: there is no such file.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if not path.is_dir():
        return path
    steps = [
        (int(match[1]), file) for file in path.iterdir() if (match := re.fullmatch(r"checkpoint_(\d+)", file.name))
    ]
    files = [(step, file) for step, file in steps if file.is_file()]
    if not files:
        orbax = "; its checkpoint_N are folders, of another format (Orbax)" if steps else ""
        raise DataError(f"{path}: a folder without a file checkpoint_N{orbax}")
    return max(files)[1]


def write_params(
    path: Path,
    flat: Mapping[str, np.ndarray],
    momentum: Mapping[str, np.ndarray] | None = None,
    step: int = 0,
) -> None:
    """Writes a checkpoint of the released form, in one go (a temporary file, then a rename).

    Args:
        path: the file; its folder must exist.
        flat: parameters by path without `params/`; kept in their dtype, at most 2**30 bytes each.
        momentum: the optimiser's buffers by the same paths; without it the optimiser's state holds the step only.
        step: the number of completed steps.
    """
    state = {f"{name}/momentum": array for name, array in (momentum or {}).items()}
    count, zero = np.array(step, np.int32), np.array(0, np.int32)
    root = {
        "global_step": count,
        "optimizer": {"target": _nested(flat), "state": {"step": count, "param_states": _nested(state)}},
        "model_state": {},
        "rng": np.zeros(2, np.uint32),
        "accum_train_time": zero,
    }
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines(_pack(root))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    match error:
        case msgpack.OutOfData():
            return "truncated, the checkpoint goes on after the file's last byte"
        case msgpack.BufferFull():
            return f"damaged, one entry has more than {_MAX_LEAF_BYTES} bytes"
        case msgpack.StackError():
            return "damaged, nested too deeply"
        case UnicodeDecodeError():
            return "damaged, a name is not UTF-8"
        case OSError(strerror=str(text)):
            return text
    return str(error) or "damaged, not valid msgpack"


def _read(file: BinaryIO, size: int) -> Flat:
    offsets = _Walk(file).offsets(size)
    root = next((name for name in ("optimizer/target", "params") if name in offsets), "")
    if not root and "Transformer" not in offsets:
        found = ", ".join(list(offsets)[:20]) or "nothing"
        raise ValueError(f"no parameters: neither optimizer/target nor params nor Transformer; found {found}")
    tree = _Walk(file, offsets[root]).tree(f"{root}/") if root else _Walk(file).tree()
    if isinstance(tree, dict) and isinstance(tree.get("params"), dict):
        tree = tree["params"]
    flat = dict(_flattened(tree, "")) if isinstance(tree, dict) else {}
    if not flat:
        raise ValueError(f"no parameters: {root or 'Transformer'} holds no arrays")
    return to_linen(flat)


class _Walk:
    """Walks one msgpack object of a file from `start` on, entry by entry; only what is asked for is decoded."""

    def __init__(self, file: BinaryIO, start: int = 0) -> None:
        file.seek(start)
        self.file, self.start, self.entries = file, start, 0
        self.unpacker = msgpack.Unpacker(file, read_size=_READ_BYTES, max_buffer_size=_MAX_LEAF_BYTES, ext_hook=_Ext)

    def offsets(self, size: int) -> dict[str, int]:
        """The position in the file of every top-level value, and of those below `optimizer`.

        Everything is passed over once, so a file that is damaged anywhere in its structure is refused here.
        """
        offsets: dict[str, int] = {}
        for key in self.keys():
            if key == "optimizer" and self.next_type() == "map":
                offsets |= {f"{key}/{sub}": self.skip() for sub in self.keys()}
            else:
                offsets[key] = self.skip()
        if self.offset() != size:
            raise ValueError(f"damaged, {size - self.offset()} bytes follow the end of the checkpoint")
        return offsets

    def tree(self, where: str = "", depth: int = 0) -> Any:
        """What comes next: nested dicts with float32 arrays, numbers and strings as leaves, chunks joined."""
        kind = self.next_type()
        if kind == "array":
            raise ValueError(f"{where[:-1]} is a list, where a parameter or a group of them is expected")
        if kind != "map":
            return _leaf(self.unpacker.unpack(), where[:-1])
        if depth == _MAX_DEPTH:
            raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")
        node: dict[str, Any] = {}
        for key in self.keys():
            if key in node or "/" in key:
                raise ValueError(f"damaged, {where}{key} is there twice or holds a slash")
            node[key] = self.tree(f"{where}{key}/", depth + 1)
        return _joined(node, where[:-1]) if _CHUNKED in node else node

    def keys(self) -> Iterator[str]:
        """The keys of the map that comes next; the caller consumes each value before it asks for the next key."""
        if self.next_type() != "map":
            raise ValueError("not a msgpack map of names, as a Flax checkpoint is")
        count = self.unpacker.read_map_header()
        self.entries += count
        if self.entries > _MAX_ENTRIES:
            raise ValueError(f"damaged, more than {_MAX_ENTRIES} entries")
        for _ in range(count):
            if self.next_type() != "str":
                raise ValueError(f"damaged, a key at byte {self.offset()} is not a string")
            key = self.unpacker.unpack()
            if len(key) > _MAX_KEY:
                raise ValueError(f"damaged, a name of {len(key)} characters")
            yield key

    def skip(self) -> int:
        """Passes over what comes next, without decoding it, and returns where that began."""
        start = self.offset()
        self.unpacker.skip()
        return start

    def offset(self) -> int:
        """The position in the file of what comes next."""
        return self.start + self.unpacker.tell()

    def next_type(self) -> str:
        """`map`, `array`, `str` or `other`, without consuming anything: the type byte decides."""
        position = self.file.tell()
        self.file.seek(self.offset())
        first = self.file.read(1)
        self.file.seek(position)
        if not first:
            raise msgpack.OutOfData
        byte = first[0]
        if 0x80 <= byte <= 0x8F or byte in (0xDE, 0xDF):
            return "map"
        if 0x90 <= byte <= 0x9F or byte in (0xDC, 0xDD):
            return "array"
        return "str" if 0xA0 <= byte <= 0xBF or byte in (0xD9, 0xDA, 0xDB) else "other"


def _leaf(value: Any, where: str) -> Any:
    if not isinstance(value, _Ext):
        return value
    if value.code == _COMPLEX:
        raise ValueError(f"{where} is a complex number, where real numbers are expected")
    if value.code not in (_ARRAY, _SCALAR):
        raise ValueError(f"{where} is of the unknown extension type {value.code}")
    try:
        return _array(value.data)
    except ValueError as error:
        raise ValueError(f"{where}: {str(error) or 'not valid msgpack'}") from error


def _array(payload: bytes) -> np.ndarray:
    """An array out of (shape, dtype name, bytes); nothing is allocated before the three agree."""
    parts = msgpack.unpackb(payload, max_array_len=_MAX_DIMS, max_map_len=0)
    if not isinstance(parts, list) or len(parts) != 3:
        raise ValueError("not an array of shape, dtype and bytes")
    shape, dtype, data = parts
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**31 for n in shape):
        raise ValueError(f"{str(shape)[:60]} is no shape")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"elements of type {str(dtype)[:60]}, where real numbers are expected")
    known = _DTYPES[dtype]
    if not isinstance(data, bytes) or math.prod(shape) * known.itemsize != len(data):
        raise ValueError(f"{len(data) if isinstance(data, bytes) else 'no'} bytes do not hold {dtype} {shape}")
    return as_float32(np.frombuffer(data, known).reshape(shape))


def _joined(node: dict[str, Any], where: str) -> np.ndarray:
    """An array out of its chunks, which are 1-D pieces of it in C order."""
    shape, chunks = _numbered(node.get("shape")), _numbered(node.get("chunks"))
    if not (
        shape
        and chunks
        and all(type(n) is int and 0 <= n < 2**31 for n in shape)
        and all(isinstance(chunk, np.ndarray) and chunk.ndim == 1 for chunk in chunks)
        and math.prod(shape) == sum(chunk.size for chunk in chunks)
    ):
        raise ValueError(f"{where}: the chunks do not make up the array of shape {str(shape)[:60]}")
    return np.concatenate(chunks).reshape(shape)


def _numbered(node: Any) -> list[Any] | None:
    """The values of {"0": ..., "1": ...} in order."""
    if not isinstance(node, dict) or node.keys() != {str(i) for i in range(len(node))}:
        return None
    return [node[str(i)] for i in range(len(node))]


def _flattened(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{key}/")
        elif isinstance(value, np.ndarray):
            yield f"{prefix}{key}", value
        else:
            raise ValueError(f"{prefix}{key} is a {type(value).__name__}, where an array is expected")


def _nested(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The tree of `flat`, its entries sorted, as Flax keeps them."""
    tree: dict[str, Any] = {}
    for path in sorted(flat):
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = flat[path]
    return tree


def _pack(node: dict[str, Any] | np.ndarray) -> Iterator[bytes]:
    if isinstance(node, dict):
        yield msgpack.Packer().pack_map_header(len(node))
        for key, value in node.items():
            yield msgpack.packb(key)
            yield from _pack(value)
    else:
        assert node.nbytes <= 2**30, "Flax cuts longer arrays, which no MBT has"
        payload = msgpack.packb((node.shape, node.dtype.name, node.tobytes()))
        yield msgpack.packb(msgpack.ExtType(_ARRAY, payload))

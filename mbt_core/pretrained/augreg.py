"""AugReg and big_vision ViTs: `.npz` archives with pre-Linen Flax names, numpy only, nothing unpickled.

Source: Steiner et al., "How to train your ViT?", 2021. The release has the names at the top level; a training
checkpoint of big_vision has them below `opt/target/`, beside the optimiser's state, which is not even decompressed.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np

from mbt_core.errors import DataError
from mbt_core.pretrained.files import as_float32, looks_like
from mbt_core.pretrained.names import Flat, to_linen

_CHECKPOINT = "opt/target/"
# far above any ViT's array: an archive of a few MB may claim to unpack to a thousand times its size
_MAX_BYTES = 2**31


def read_params(path: Path) -> Flat:
    """The ViT's parameters, flat and under Scenic's names (`Transformer/encoderblock_0/...`), as float32.

    Raises:
        DataError: the file is no `.npz`, is damaged, holds pickled objects or no ViT.
    """
    try:
        kind = looks_like(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    if kind != "a numpy archive (.npz)":
        raise DataError(f"{path}: {kind or 'unknown content'}, where a numpy archive (.npz) is expected")
    try:
        with zipfile.ZipFile(path) as archive:
            return to_linen({name: _read(archive, info) for name, info in _members(archive).items()})
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    # a damaged archive raises what it likes: zlib, lzma, struct, tokenize, OS, NotImplemented ... errors
    except Exception as error:
        raise DataError(f"{path}: damaged, {error or type(error).__name__}") from error


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    infos = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    for prefix in (_CHECKPOINT, ""):
        if f"{prefix}embedding/kernel" in infos:
            return {name.removeprefix(prefix): infos[name] for name in infos if name.startswith(prefix)}
    found = ", ".join(sorted(infos)[:20]) or "nothing"
    raise ValueError(f"no ViT: embedding/kernel is neither at the top nor below {_CHECKPOINT}; found {found}")


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """One array; its bytes are read before anything of the size its header declares is allocated."""
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(member)
        else:
            raise ValueError(f"{info.filename}: .npy version {version} is unknown")
        if dtype.hasobject:
            raise ValueError(f"{info.filename} holds pickled objects, which are never loaded")
        size = math.prod(shape) * dtype.itemsize
        if size != info.file_size - member.tell() or size > _MAX_BYTES:
            raise ValueError(f"{info.filename}: {info.file_size} bytes do not hold {dtype} {list(shape)}")
        data = member.read()
    return as_float32(np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C"))

"""What the readers of weight files share: telling a file's kind from its content, and float32 arrays."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

_MAGIC = {
    b"\x93NUMPY": "a numpy array (.npy)",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "a gzip archive",
    b"version https://git-lfs": "a Git LFS pointer (the file itself was not downloaded)",
    b"<!DOCTYPE": "a web page",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"<?xml": "an XML document",
    b"PK\x05\x06": "an empty zip archive",
    **{bytes([0x80, protocol]): "a Python pickle" for protocol in range(2, 6)},
}


def looks_like(path: Path) -> str | None:
    """The kind of a weight file in words, with its article, told from its content; None if none is recognised.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return "an empty file"
    if head.startswith(b"PK\x03\x04"):
        return _zip_kind(path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size:
        return "a safetensors file"
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


def _zip_kind(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return "a damaged or truncated zip archive (.npz and torch's .pth are such archives)"
    if any(name.endswith("data.pkl") for name in names):
        return "a torch file (.pth)"
    if names and all(name.endswith(".npy") for name in names):
        return "a numpy archive (.npz)"
    return "a zip archive"


def as_float32(array: np.ndarray) -> np.ndarray:
    """A C-contiguous, writable float32 copy of real numbers of any width.

    Two-byte void elements are taken for bfloat16, which numpy itself does not know and stores as such.

    Raises:
        ValueError: the elements are no real numbers.
    """
    if array.dtype == np.dtype("V2"):
        return (array.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"elements of type {array.dtype}, where real numbers are expected")
    return array.astype(np.float32, order="C")

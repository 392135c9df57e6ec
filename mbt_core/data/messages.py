"""Messages between two processes: small ones through their socket, large ones in memory that both have.

Sending never waits for the other side to read more than a few bytes, so that two who send cannot wait for each other.
Tensors and arrays arrive in the shared memory itself, which lives as long as they do.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import socket
import tempfile
from collections.abc import Sequence
from itertools import accumulate
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor

SMALL = 1 << 15
"""Bytes up to which a message goes through the socket."""
ALIGNED = 64
INLINE, SHARED = b"=", b"@"
HAS_DESCRIPTORS = hasattr(socket, "send_fds")


class _Pickler(pickle.Pickler):
    """Leaves the content of arrays and tensors in `buffers`."""

    def __init__(self, file: io.BytesIO, buffers: list[pickle.PickleBuffer]) -> None:
        super().__init__(file, protocol=5, buffer_callback=buffers.append)

    def reducer_override(self, value: Any) -> Any:
        if type(value) is not Tensor or value.requires_grad or value.device.type != "cpu" or value.is_sparse:
            return NotImplemented
        content: Any = value.contiguous().reshape(-1).view(torch.uint8).numpy()
        return _tensor, (pickle.PickleBuffer(content), value.dtype, tuple(value.shape))


def _tensor(content: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not memoryview(content).nbytes:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(content, dtype=dtype).view(shape)


def send(connection: Connection, message: Any) -> None:
    """Sends anything that can be pickled.

    Raises:
        OSError: if the other side is gone, or there is no memory to share.
    """
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    _Pickler(stream, buffers).dump(message)
    parts = [memoryview(stream.getbuffer()), *(buffer.raw() for buffer in buffers)]
    sizes = np.array([len(parts), *(part.nbytes for part in parts)], np.uint64)
    parts.insert(0, memoryview(sizes.tobytes()))
    offsets = _offsets([part.nbytes for part in parts])
    if offsets[-1] > SMALL and HAS_DESCRIPTORS:
        _share(connection, parts, offsets)
        return
    content = bytearray(offsets[-1])
    for offset, part in zip(offsets, parts, strict=False):
        content[offset : offset + part.nbytes] = part
    connection.send_bytes(content + INLINE)


def _offsets(sizes: Sequence[int]) -> list[int]:
    """Where each part begins, and where the last one ends."""
    return [0, *accumulate(-(-size // ALIGNED) * ALIGNED for size in sizes)]


def _share(connection: Connection, parts: Sequence[memoryview], offsets: Sequence[int]) -> None:
    descriptor = _memory()
    try:
        os.ftruncate(descriptor, offsets[-1])
        for offset, part in zip(offsets, parts, strict=False):
            written = 0
            while written < part.nbytes:
                written += os.pwrite(descriptor, part[written:], offset + written)
        connection.send_bytes(SHARED)
        with socket.socket(fileno=os.dup(connection.fileno())) as channel:
            socket.send_fds(channel, [SHARED], [descriptor])
    finally:
        os.close(descriptor)


def _memory() -> int:
    """Memory as a file without a name; it is not what /dev/shm is limited to."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("mbt")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def receive(connection: Connection) -> Any:
    """The next message.

    Raises:
        EOFError, OSError: if the other side is gone, also in the midst of sending.
    """
    content = bytearray(connection.recv_bytes())
    view = _shared(connection) if content == SHARED else memoryview(content)
    count = int(np.frombuffer(view, np.uint64, 1)[0])
    sizes = np.frombuffer(view, np.uint64, count, offset=8).tolist()
    offsets = _offsets([8 * (count + 1), *sizes])[1:]
    parts = [view[offset : offset + size] for offset, size in zip(offsets, sizes, strict=False)]
    return pickle.loads(parts[0], buffers=parts[1:])


def _shared(connection: Connection) -> memoryview:
    with socket.socket(fileno=os.dup(connection.fileno())) as channel:
        _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
    if not descriptors:
        raise EOFError
    try:
        size = os.fstat(descriptors[0]).st_size
        # all pages at once, where the system can: each would be a fault of its own
        return memoryview(mmap.mmap(descriptors[0], size, flags=mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)))
    finally:
        os.close(descriptors[0])

"""The time that one call may take, and reading a file within it."""

from __future__ import annotations

import time
from typing import BinaryIO

from mbt_core.io.files import check_bytes
from mbt_core.media.errors import MediaError

PIECE = 1 << 24
"""Bytes read between two looks at the clock."""


class Deadline:
    """Begins when it is made.

    Args:
        name: of the clip, for the error.
        seconds: of wall time.
    """

    def __init__(self, name: str, seconds: float) -> None:
        self.name, self.seconds = name, seconds
        self._end = time.monotonic() + seconds

    def check(self) -> None:
        """Raises `MediaError` when the time is over."""
        if time.monotonic() > self._end:
            raise MediaError(f"{self.name}: took longer than {self.seconds:g} s to read")


def read_all(file: BinaryIO, largest: int, deadline: Deadline) -> bytes:
    """The content of a file, from its start.

    Raises:
        OSError: if it has more than `largest` bytes, of which none is read.
        MediaError: when the time is over.
    """
    size = file.seek(0, 2)
    check_bytes(size, largest)
    file.seek(0)
    pieces, remaining = [], size  # what is written to it meanwhile is not read
    while remaining > 0:
        deadline.check()
        pieces.append(file.read(min(PIECE, remaining)))
        if not pieces[-1]:
            break
        remaining -= len(pieces[-1])
    return b"".join(pieces)

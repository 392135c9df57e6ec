"""How long a file says it is: demuxers read a truncated one as if it had simply ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

# Top-level boxes of ISO/IEC 14496-12 files (mp4, mov): any other name is no box but something appended.
BOXES = b"ftyp styp moov moof mdat mfra sidx ssix free skip wide uuid meta pdin udta emsg prft".split()
ELEMENTS = (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67")  # Matroska and WebM: the EBML header, the Segment
UNKNOWN_RIFF = 0x7FFFF000  # from this length on, the writer did not know it (it wrote to a pipe)
RIFF_SLACK = 256  # bytes; some writers count their headers wrongly


def is_truncated(file: BinaryIO, check_clock: Callable[[], None] = lambda: None) -> bool:
    """Whether an mp4, mov, wav, avi, mkv or webm file ends inside a part whose length it states.

    False for other formats and where no length is stated. Moves the position in the file. `check_clock` is called for
    each part, of which there may be millions, and raises when the time is over.
    """
    size = file.seek(0, 2)
    at, length, slack = 0, 1, 0
    while length and at < size:
        check_clock()
        file.seek(at)
        length, slack = part(file.read(16))
        at += length
    return at > size + slack


def part(head: bytes) -> tuple[int, int]:
    """Bytes of the top-level part that starts with these 16, 0 if unknown, and by how many they may be wrong."""
    if len(head) < 16:
        return 0, 0
    if head[4:8] in BOXES:
        return box_length(head), 0
    if head[:4] == b"RIFF":
        return riff_length(head), RIFF_SLACK
    if head[:4] in ELEMENTS:
        return element_length(head), 0
    return 0, 0


def box_length(head: bytes) -> int:
    """ISO base media file format: 32 bits of length, name, and 64 bits of length if the first is 1."""
    short = int.from_bytes(head[:4], "big")
    length = int.from_bytes(head[8:16], "big") if short == 1 else short
    return length if length >= 8 else 0


def riff_length(head: bytes) -> int:
    """RIFF: name, 32 bits of length without these 8 bytes, padded to an even number."""
    length = int.from_bytes(head[4:8], "little")
    return 0 if length >= UNKNOWN_RIFF else 8 + length + length % 2


def element_length(head: bytes) -> int:
    """EBML: an id of 4 bytes, then as many bytes of length as the first of them has leading zeros, plus one."""
    width = 9 - head[4].bit_length()
    marked = int.from_bytes(head[4 : 4 + width], "big")
    length = marked - (1 << 7 * width)
    return 0 if width > 8 or length == (1 << 7 * width) - 1 else 4 + width + length

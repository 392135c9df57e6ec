"""Reads and writes the pages of Ogg files (RFC 3533), for tests that change them."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

HEADER = struct.Struct("<4sBBqIIIB")


class Page(NamedTuple):
    """One page: flags, granule position, serial number of the stream, number of the page, lacing, and content."""

    flags: int
    granule: int
    serial: int
    number: int
    lacing: bytes
    body: bytes


def pages(data: bytes) -> list[Page]:
    """All pages of a file."""
    result, at = [], 0
    while at < len(data):
        _, _, flags, granule, serial, number, _, count = HEADER.unpack_from(data, at)
        lacing = data[at + HEADER.size : at + HEADER.size + count]
        begin = at + HEADER.size + count
        at = begin + sum(lacing)
        result.append(Page(flags, granule, serial, number, lacing, data[begin:at]))
    return result


def written(every: Iterable[Page]) -> bytes:
    """The file of these pages, their checksums made anew."""
    parts = []
    for page in every:
        fields = (b"OggS", 0, page.flags, page.granule, page.serial, page.number)
        blank = HEADER.pack(*fields, 0, len(page.lacing)) + page.lacing + page.body
        parts.append(HEADER.pack(*fields, checksum(blank), len(page.lacing)) + page.lacing + page.body)
    return b"".join(parts)


def checksum(data: bytes) -> int:
    """CRC-32 as Ogg has it: polynomial 0x04C11DB7, neither reflected nor inverted."""
    value = 0
    for byte in data:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1) ^ (0x104C11DB7 if value & 0x80000000 else 0)
    return value

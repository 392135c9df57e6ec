"""PNGs without what is packed beside the picture: little of it unpacks to gigabytes, and nothing here reads it."""

from __future__ import annotations

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PACKED = (b"zTXt", b"iTXt", b"iCCP")
"""Chunks of compressed text and colour profiles."""


def plain_png(content: bytes) -> bytes:
    """The file without such chunks; any other content as it is."""
    if not content.startswith(SIGNATURE) or not any(name in content for name in PACKED):
        return content
    chunks, at = [SIGNATURE], len(SIGNATURE)
    while at < len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        if content[at + 4 : at + 8] not in PACKED:
            chunks.append(content[at:end])
        at = end
    return b"".join(chunks)

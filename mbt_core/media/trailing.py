"""What follows the last frame of a file and belongs to none: a tag, a newline, padding."""

from __future__ import annotations

from typing import Any

# Formats, and ends of names of formats (single pictures), that are nothing but one packet after the other, which start
# alike: what follows the last passes for one more.
UNFRAMED = ("mp3", "aac", "ac3", "eac3", "_pipe")
MOST = 1 << 14  # bytes; more than that may be sound that was overwritten


class Trailer:
    """Packets that do not decode and do not start as those before them: nothing is lost if none follows that does.

    Args:
        form: FFmpeg's name of the file's format.
    """

    def __init__(self, form: str) -> None:
        self.is_possible = form.endswith(UNFRAMED)
        self.head: bytes | None = None  # the first bytes of all packets that decoded; empty: they differ
        self.size = 0
        self.error: Exception | None = None  # why the first one does not decode

    def follows(self, packet: Any) -> None:
        """`packet` was decoded."""
        if self.is_possible and packet is not None:
            head = bytes(memoryview(packet)[:2])
            self.head = head if self.head in (None, head) else b""

    def takes(self, packet: Any, error: Exception) -> bool:
        """Whether `packet`, which raised `error`, may be such."""
        if not self.head or packet is None or bytes(memoryview(packet)[:2]) == self.head:
            return False
        self.size += packet.size
        self.error = self.error or error
        return self.size <= MOST

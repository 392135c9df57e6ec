"""What can be read of a media file."""

from __future__ import annotations

from enum import StrEnum, auto


class Reads(StrEnum):
    """Equal to plain strings: ``Reads.FRAMES == "frames"``."""

    FRAMES = auto()
    WAVEFORM = auto()
    ARRAY = auto()
    TEXT = auto()

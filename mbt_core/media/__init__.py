"""Frames, waveforms, arrays and text out of media files."""

from mbt_core.media.clip import Clip
from mbt_core.media.errors import MediaError
from mbt_core.media.memory import MemoryClip, decode_all

__all__ = ["Clip", "MediaError", "MemoryClip", "decode_all"]

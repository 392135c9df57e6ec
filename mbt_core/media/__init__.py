"""Frames, waveforms, arrays and text out of media files."""

from mbt_core.media.clip import Clip
from mbt_core.media.errors import MediaError
from mbt_core.media.memory import MemoryClip, decode_all
from mbt_core.media.opening import exists, open_clip

__all__ = ["Clip", "MediaError", "MemoryClip", "decode_all", "exists", "open_clip"]

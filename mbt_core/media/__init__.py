"""Frames, waveforms, arrays and text out of media files."""

from mbt_core.media.clip import Clip
from mbt_core.media.errors import MediaError

__all__ = ["Clip", "MediaError"]

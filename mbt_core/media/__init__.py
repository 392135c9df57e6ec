"""Frames, waveforms, arrays and text out of media files."""

from mbt_core.media.clip import Clip
from mbt_core.media.errors import MediaError
from mbt_core.media.memory import MemoryClip, decode_all
from mbt_core.media.opening import exists, file_of, open_clip
from mbt_core.media.shards import ShardClip

__all__ = ["Clip", "MediaError", "MemoryClip", "ShardClip", "decode_all", "exists", "file_of", "open_clip"]

"""Frames, waveforms, arrays and text out of media files."""

from mbt_core.media.clip import Clip
from mbt_core.media.errors import MediaError
from mbt_core.media.memory import MemoryClip, decode_all
from mbt_core.media.opening import absence, exists, identity, open_clip
from mbt_core.media.recordings import recordings
from mbt_core.media.shard_clip import ShardClip

__all__ = [
    "Clip",
    "MediaError",
    "MemoryClip",
    "ShardClip",
    "absence",
    "decode_all",
    "exists",
    "identity",
    "open_clip",
    "recordings",
]

"""Opens whatever a row of a manifest names: a file, a folder of pictures, a clip in a shard."""

from __future__ import annotations

import os
from typing import cast

from mbt_core.media.clip import Clip
from mbt_core.media.shards import ShardClip, packed


def exists(path: str) -> bool:
    """Whether there is something at `path`; of a clip in a shard, whether there is the shard."""
    return packed(path) is not None or os.path.exists(path)


def file_of(path: str) -> str:
    """The file that holds it: `path`, or the shard."""
    place = packed(path)
    return path if place is None else place[0]


def open_clip(path: str, *, timeout: float = 60.0, fps: float | None = None) -> Clip:
    """The clip at `path`, or a `ShardClip`, which is read like a `Clip`; see there for the arguments."""
    if packed(path) is None:
        return Clip(path, timeout=timeout, fps=fps)
    return cast(Clip, ShardClip(path, timeout=timeout))

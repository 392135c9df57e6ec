"""Opens whatever a row of a manifest names: a file, a folder of pictures, a clip in a shard, a recording."""

from __future__ import annotations

import os
import stat
from typing import cast

from mbt_core.io.files import is_folder
from mbt_core.io.remote import about, url_of
from mbt_core.media.clip import Clip
from mbt_core.media.errors import MediaError
from mbt_core.media.folders import numbering
from mbt_core.media.recordings import Recording, recorded, recordings
from mbt_core.media.shard_clip import ShardClip
from mbt_core.media.shards import packed


def exists(path: str) -> bool:
    """Whether there is something at `path`; of a clip in a shard, whether there is the shard.

    What is in a damaged file of recordings counts as there: reading it says what is wrong.
    """
    if packed(path) is not None or os.path.exists(path):
        return True
    place = recorded(path)
    try:
        return place is not None and place[1] in recordings(place[0])
    except MediaError:
        return True


def absence(path: str) -> str:
    """What is said of a `path` that does not exist: also a link can lead nowhere."""
    return f"{path}: {'a link that leads to no file' if os.path.islink(path) else 'there is no such file'}"


def identity(path: str) -> list[str | int]:
    """What tells what is at `path` from what was there before: its real path, and time and size of the file it is in.

    Of a folder of pictures it tells which come and go, in the sub-folders too; not one that is written anew in place.

    Raises:
        OSError: if there is none.
        MediaError: for a folder that is none of pictures.
    """
    place = packed(path) or recorded(path)
    file = path if place is None else place[0]
    url = url_of(file)
    if url is not None:
        return [path, *about(url)]
    status = os.stat(file)
    found: list[str | int] = [os.path.realpath(path), status.st_mtime_ns, status.st_size]
    if stat.S_ISDIR(status.st_mode) and numbering(file) is None:
        with os.scandir(file) as entries:
            inner = sorted((entry.name, entry.stat().st_mtime_ns) for entry in entries if is_folder(entry))
        found += [part for pair in inner for part in pair]
    return found


def open_clip(path: str, *, timeout: float = 60.0, fps: float | None = None) -> Clip:
    """The clip at `path`, or a `ShardClip` or `Recording`, which are read like one; see `Clip` for the arguments."""
    if packed(path) is not None:
        return cast(Clip, ShardClip(path, timeout=timeout))
    if recorded(path) is not None:
        return cast(Clip, Recording(path))
    return Clip(path, timeout=timeout, fps=fps)

"""A folder of numbered pictures, one sub-folder per channel: a stream of grey pictures that was unpacked to files.

Shapes: C sub-folders, N pictures in each, T chosen ones, H height, W width.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import av
import numpy as np

from mbt_core.media.container import DECODER_OPTIONS
from mbt_core.media.errors import MediaError, reason

CODECS = {".jpg": "mjpeg", ".jpeg": "mjpeg", ".png": "png"}


class PictureFolder:
    """``FOLDER/CHANNEL/PICTURE``: channels in the order of their names, pictures in that of the numbers in theirs.

    Args:
        path: the folder.

    Raises:
        MediaError: if there are no sub-folders with pictures, or they differ in how many.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with os.scandir(path) as entries:
            folders = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        listed = {name: _pictures(path / name) for name in folders}
        self.channels = {name: pictures for name, pictures in listed.items() if pictures}
        counts = {name: len(pictures) for name, pictures in self.channels.items()}
        if not counts:
            raise MediaError(f"{path}: not a file, and no folder with sub-folders of pictures ({', '.join(CODECS)})")
        if len(set(counts.values())) > 1:
            shown = ", ".join(f"{count} in {name}" for name, count in counts.items())
            raise MediaError(f"{path}: its sub-folders differ in how many pictures they hold: {shown}")

    @cached_property
    def shape(self) -> tuple[int, int, int, int]:
        """(C, N, H, W), as the first picture says it."""
        first = next(iter(self.channels.values()))
        height, width = _decoded(first[0]).shape
        return len(self.channels), len(first), height, width

    def read(self, index: Sequence[int] | None = None) -> np.ndarray:
        """The grey levels of the pictures at `index`, or of all: float32 [C, T, H, W], 0 to 255.

        Raises:
            MediaError: if one cannot be decoded or has another size.
        """
        C, N, *size = self.shape
        index = range(N) if index is None else index
        levels = np.empty((C, len(index), *size), np.float32)
        for channel, paths in enumerate(self.channels.values()):
            for at, number in enumerate(index):
                picture = _decoded(paths[number])
                if list(picture.shape) != size:
                    raise MediaError(f"{paths[number]}: a picture of {list(picture.shape)} among some of {size}")
                levels[channel, at] = picture
        return levels


def _pictures(folder: Path) -> list[Path]:
    names = [name for name in os.listdir(folder) if os.path.splitext(name)[1].lower() in CODECS and name[0] != "."]
    # frame_10 after frame_9
    names.sort(key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])
    return [folder / name for name in names]


def _decoded(path: Path) -> np.ndarray:
    """uint8 [H, W]: the luma of a picture. Opening a container for each would take three times as long."""
    try:
        context = av.CodecContext.create(CODECS[path.suffix.lower()], "r")
        context.options = DECODER_OPTIONS
        context.thread_count = 1
        frames = [*context.decode(av.Packet(path.read_bytes())), *context.decode(None)]
        return frames[0].to_ndarray(format="gray")
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise MediaError(f"{path}: cannot decode the picture: {reason(error)}") from error

"""Folders of numbered pictures: a video that was unpacked to files, or a stream of grey pictures in several channels.

Shapes: C sub-folders, N pictures in each, T chosen ones, H height, W width.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from mbt_core.io.files import check_bytes, open_regular
from mbt_core.media.channels import LARGEST
from mbt_core.media.container import DECODER_OPTIONS
from mbt_core.media.deadline import Deadline
from mbt_core.media.errors import MediaError, reason
from mbt_core.media.pictures import LARGEST_PICTURE, Scaler, grey_bits
from mbt_core.media.pngs import plain_png

CODECS = {".jpg": "mjpeg", ".jpeg": "mjpeg", ".png": "png"}
NUMBERED = re.compile(r"(.*?)([0-9]+)(\.\w+)", re.DOTALL)


class PictureFolder:
    """``FOLDER/CHANNEL/PICTURE``: channels in the order of their names, pictures in that of the numbers in theirs.

    Args:
        path: the folder.

    Attributes:
        deadline: of the call that reads; None: it has all the time.

    Raises:
        MediaError: if there are no sub-folders with pictures, or they differ in how many.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.deadline: Deadline | None = None
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
    def _first(self) -> np.ndarray:
        return _decoded(next(iter(self.channels.values()))[0], self.deadline)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(C, N, H, W), as the first picture says it."""
        height, width = self._first.shape
        return len(self.channels), len(next(iter(self.channels.values()))), height, width

    @property
    def kind(self) -> np.dtype[Any]:
        """uint8, or uint16 of pictures with more than 8 bits, as the first picture says it."""
        return self._first.dtype

    def read(self, index: Sequence[int] | None = None) -> np.ndarray:
        """The grey levels of the pictures at `index`, or of all: float32 [C, T, H, W], to 255, or 65535 of 16 bits.

        Raises:
            MediaError: if one cannot be decoded or has another size or depth, or all do not fit into `LARGEST` bytes.
        """
        C, N, *size = self.shape
        index = range(N) if index is None else index
        try:
            check_bytes(4 * C * len(index) * size[0] * size[1], LARGEST)
        except OSError as error:
            shown = f"{C} x {len(index)} pictures of {size[1]} x {size[0]}"
            raise MediaError(f"{self.path}: {shown}: {error}; cut the clip into several") from None
        levels = np.empty((C, len(index), *size), np.float32)
        for channel, paths in enumerate(self.channels.values()):
            for at, number in enumerate(index):
                picture = _decoded(paths[number], self.deadline)
                if list(picture.shape) != size:
                    raise MediaError(f"{paths[number]}: a picture of {list(picture.shape)} among some of {size}")
                if picture.dtype != self.kind:
                    raise MediaError(f"{paths[number]}: a picture of {picture.dtype} among some of {self.kind}")
                levels[channel, at] = picture
        return levels


class Numbering(NamedTuple):
    """How the frames of a video are named: `prefix`, a number from `first` on of at least `digits` digits, `suffix`."""

    prefix: str
    digits: int
    suffix: str
    first: int
    frames: int

    def name(self, index: int) -> str:
        """The file of frame `index`, counted from 0."""
        return f"{self.prefix}{self.first + index:0{self.digits}d}{self.suffix}"


@lru_cache(maxsize=4096)
def numbering(folder: str) -> Numbering | None:
    """How the pictures right inside `folder` are numbered; None: there are none. Each folder is listed once.

    Raises:
        MediaError: if their names differ in more than the number, or the numbers are not unbroken from 0 or 1 on.
    """
    series: dict[tuple[str, str], set[str]] = {}
    for name in os.listdir(folder):
        parts = NUMBERED.fullmatch(name)
        if parts and name[0] != "." and parts[3].lower() in CODECS:
            series.setdefault((parts[1], parts[3]), set()).add(parts[2])
    if not series:
        return None
    if len(series) > 1:
        shown = " and ".join(sorted(prefix + min(numbers) + suffix for (prefix, suffix), numbers in series.items())[:2])
        raise MediaError(f"{folder}: expected frames whose names differ in the number alone, found {shown}")
    ((prefix, suffix), numbers) = series.popitem()
    first = min(map(int, numbers))
    found = Numbering(prefix, min(map(len, numbers)), suffix, first, len(numbers))
    if first > 1:
        raise MediaError(f"{folder}: expected frames numbered from 0 or 1 on, the first is {found.name(0)}")
    for index in range(found.frames):
        if f"{first + index:0{found.digits}d}" not in numbers:
            raise MediaError(
                f"{folder}: {found.name(index)} is missing among its {found.frames} frames; expected all numbers from "
                f"{first} on: unpack it again, or number the frames anew"
            )
    return found


class FrameFolder:
    """A video as a folder of numbered pictures, ``frame_0000000001.jpg`` and so on.

    Args:
        path: the folder.
        rate: frames a second.

    Attributes:
        deadline: of the call that reads; None: it has all the time.

    Raises:
        MediaError: without a rate, which the pictures do not tell.
    """

    def __init__(self, path: str, names: Numbering, rate: float | None) -> None:
        if not rate:
            raise MediaError(f"{path}: a folder of frames does not tell its frame rate; give it in the column fps")
        self.path, self.names, self.rate = path, names, rate
        self.deadline: Deadline | None = None

    @property
    def duration(self) -> float:
        """Seconds until the last frame ends."""
        return self.names.frames / self.rate

    def frames(self, times: Sequence[float], short_side: int | None, size: tuple[int, int] | None) -> np.ndarray:
        """[T, H, W, 3] uint8: see `Clip.frames`."""
        # a frame counts as shown up to a microsecond before its time, which was rounded
        wanted = np.floor((np.asarray(times) + 1e-6) * self.rate).clip(0, self.names.frames - 1).astype(int)
        return self._read(wanted, short_side, size)

    def frames_between(self, start: float, stop: float, short_side: int | None) -> tuple[np.ndarray, np.ndarray]:
        """[N] and [N, H, W, 3]: see `Clip.frames_between`."""
        ends = np.floor((np.array([start, stop]) + 1e-6) * self.rate).clip(0, self.names.frames - 1).astype(int)
        wanted = np.arange(ends[0], ends[1] + 1)
        return wanted / self.rate - 1e-6, self._read(wanted, short_side, None)

    def _read(self, wanted: np.ndarray, short_side: int | None, size: tuple[int, int] | None) -> np.ndarray:
        scaler = Scaler(self.path, short_side, size)
        pictures = {}
        for index in np.unique(wanted).tolist():
            pictures[index] = scaler(_frame(Path(self.path, self.names.name(index)), self.deadline))
        return np.stack([pictures[index] for index in wanted.tolist()])


def _pictures(folder: Path) -> list[Path]:
    names = [name for name in os.listdir(folder) if os.path.splitext(name)[1].lower() in CODECS and name[0] != "."]
    # frame_10 after frame_9
    names.sort(key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])
    return [folder / name for name in names]


def _decoded(path: Path, deadline: Deadline | None) -> np.ndarray:
    """[H, W] uint8, the luma of a picture; uint16 if it is grey with more than 8 bits."""
    frame = _frame(path, deadline)
    grey: np.ndarray = frame.to_ndarray(format="gray16le" if grey_bits(frame) > 8 else "gray")
    return grey


def _frame(path: Path, deadline: Deadline | None) -> Any:
    """The decoded picture. Opening a container for each would take three times as long."""
    if deadline is not None:
        deadline.check()
    try:
        with open_regular(path, LARGEST_PICTURE) as file:
            content = plain_png(file.read())
        context = av.CodecContext.create(CODECS[path.suffix.lower()], "r")
        context.options = DECODER_OPTIONS
        context.thread_count = 1
        frames = [*context.decode(av.Packet(content)), *context.decode(None)]
        return frames[0]
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise MediaError(f"{path}: cannot decode the picture: {reason(error)}") from error

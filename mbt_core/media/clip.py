"""`Clip`: what a modality reads from one media file."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from types import TracebackType
from typing import BinaryIO, Self

import av
import numpy as np

from mbt_core.media.arrays import LOADERS, load_array
from mbt_core.media.container import Container
from mbt_core.media.errors import MediaError, reason
from mbt_core.media.pictures import frames_at
from mbt_core.media.waveforms import waveform_in

TEXTS = (".txt",)
READS = ("frames", "waveform", "array", "text")
# What PyAV raises on damaged files.
FAILURES = (av.FFmpegError, OSError, ValueError, ArithmeticError, MemoryError, EOFError)


class Clip:
    """One media file, or its bytes: opened when first read, once for all who read it, and closed by `close`.

    Its suffix tells what it offers: .npy, .npz, .csv and .parquet an array, .txt a text, everything else is opened as
    video, sound or image. Times are seconds from the start of the clip; video and sound share that start.

    Args:
        source: path, bytes, or a seekable binary file (which stays open).
        name: shown in errors; for bytes and files it carries the suffix.
        timeout: seconds of wall time that one call may take.

    Every method raises `MediaError` when the file is missing, truncated, corrupt or too slow, or does not offer what is
    asked for.
    """

    def __init__(
        self, source: str | Path | bytes | BinaryIO, name: str | None = None, *, timeout: float = 60.0
    ) -> None:
        is_path = isinstance(source, str | Path)
        self.name = name or str(source if is_path else getattr(source, "name", "<bytes>"))
        self.timeout = timeout
        self._source = source
        self._suffix = PurePath(str(source) if is_path else self.name).suffix.lower()
        self._literal: str | None = None
        self._file: BinaryIO | None = None
        self._container: Container | None = None

    @classmethod
    def of_text(cls, text: str, name: str) -> Self:
        """A clip that is the literal `text`, as a manifest's cell holds it."""
        clip = cls(b"", name)
        clip._literal = text
        return clip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def close(self) -> None:
        """Close the file and free the decoders. Reading again opens it again."""
        if self._container is not None:
            self._container.close()
        if self._file is not None and self._file is not self._source:
            self._file.close()
        self._container = self._file = self._array = None

    def has(self, reads: str) -> bool:
        """Whether this file offers "frames", "waveform", "array" or "text"."""
        if reads not in READS:
            raise ValueError(f"reads must be one of {READS}, got {reads!r}")
        return reads in self._offers()

    def _offers(self) -> tuple[str, ...]:
        if self._is_text:
            self.text()
            return ("text",)
        if self._is_array:
            self.array()
            return ("array",)
        with self._reading("open it") as container:
            streams = {"frames": container.video, "waveform": container.audio}
        return tuple(reads for reads, stream in streams.items() if stream is not None)

    @property
    def duration(self) -> float | None:
        """Seconds until the last of video and sound ends; None for stills, text and arrays."""
        ends = [self.duration_of(reads) for reads in ("frames", "waveform")]
        return max((end for end in ends if end is not None), default=None)

    def duration_of(self, reads: str) -> float | None:
        """Seconds until what `reads` names ends; None if the file does not offer it, or it has no duration."""
        if not self.has(reads) or self._is_text or self._is_array:
            return None
        with self._reading("find its length") as container:
            if container.is_still:
                return None
            stream = container.video if reads == "frames" else container.audio
            end = container.end_of(stream)
            return container.last_time if end is None else end

    @property
    def frame_rate(self) -> float | None:
        """Mean frames a second; None without video and for stills."""
        if not self.has("frames"):
            return None
        with self._reading("find its frame rate") as container:
            rate = container.video.average_rate or container.video.guessed_rate
            return None if container.is_still or not rate else float(rate)

    @property
    def sample_rate(self) -> int | None:
        """Samples a second as stored; None without sound."""
        if not self.has("waveform"):
            return None
        with self._reading("find its sample rate") as container:
            return container.audio.sample_rate

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the first picture as displayed: rotation applied, pixels square. None without one."""
        if not self.has("frames"):
            return None
        height, width = self.frames([0.0]).shape[1:3]
        return height, width

    def frames(
        self, times: Sequence[float], short_side: int | None = None, size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """The frame shown at each of `times`: the last one not later, or else the first one.

        A still is shown at any time, the last frame also past the end. All that lies between the first and the last
        time is decoded, in one pass; only what is returned is converted and scaled.

        Args:
            times: T seconds, in any order.
            short_side: scale to this length of the shorter side, the aspect ratio kept.
            size: scale to exactly (height, width).

        Returns:
            [T, H, W, 3] uint8 RGB.
        """
        if not len(times) or not np.isfinite(times).all():
            raise ValueError(f"times must be finite numbers, at least one, got {times}")
        if (short_side is not None and size is not None) or min(short_side or 1, *(size or (1,))) < 1:
            raise ValueError(f"expected a short_side or a size above 0, got {short_side} and {size}")
        with self._reading("decode its video") as container:
            if container.video is None:
                raise MediaError(f"{self.name}: it has no video stream")
            return frames_at(container, [float(t) for t in times], short_side, size)

    def waveform(self, start: float, stop: float, rate: int) -> np.ndarray:
        """The sound from `start` to `stop` seconds: the mean of all channels, resampled, zero where there is none.

        The clip's sound at `rate` is one signal on the grid k / rate seconds; a window is its slice from
        round(start rate) on.

        Returns:
            [round((stop - start) rate)] float32 in [-1, 1].
        """
        if not (np.isfinite([start, stop]).all() and stop >= start and rate > 0):
            raise ValueError(f"expected start <= stop and a rate above 0, got {start}, {stop} and {rate}")
        with self._reading("decode its sound") as container:
            if container.audio is None:
                raise MediaError(f"{self.name}: it has no audio stream")
            return waveform_in(container, start, stop, rate)

    def array(self) -> np.ndarray:
        """The array of an .npy, .npz, .csv or .parquet file.

        .npy as stored ([channels, samples] by convention; a single dimension is one channel); .npz: its only array,
        or the one called "array"; .csv and .parquet: the columns that hold numbers are the channels, empty cells NaN.

        Returns:
            float32, [channels, samples] (or more dimensions, from .npy and .npz).
        """
        if not self._is_array:
            raise MediaError(f"{self.name}: it is no array; arrays are files ending in {', '.join(LOADERS)}")
        if self._array is None:
            with self._reading("open it", as_media=False):
                self._array = load_array(self._opened(), self._suffix, self.name)
        return self._array

    def text(self) -> str:
        """The text of a .txt file in UTF-8, or the literal text."""
        if not self._is_text:
            raise MediaError(f"{self.name}: it is no text; texts are files ending in {', '.join(TEXTS)}")
        if self._literal is None:
            ...
        return self._literal

"""`Clip`: what a modality reads from one media file."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Self

import av
import numpy as np

from mbt_core.io.files import check_bytes, open_regular
from mbt_core.media import subtitles
from mbt_core.media.arrays import LOADERS, load_array
from mbt_core.media.channels import LARGEST, Stored
from mbt_core.media.closing import Closing
from mbt_core.media.container import Container
from mbt_core.media.deadline import Deadline, read_all
from mbt_core.media.ends import believed_end
from mbt_core.media.errors import MediaError, reason
from mbt_core.media.folders import FrameFolder, PictureFolder, numbering
from mbt_core.media.pictures import LARGEST_PICTURE, frames_at, frames_between
from mbt_core.media.pngs import SIGNATURE, plain_png
from mbt_core.media.reads import Reads
from mbt_core.media.waveforms import all_channels, waveform_in

TEXTS = (".txt", *subtitles.SUFFIXES)
RECORDINGS = (".wav",)
LARGEST_TEXT = 1 << 26
"""Bytes of a file of text."""
LACKS = {Reads.FRAMES: "it has no video stream", Reads.WAVEFORM: "it has no audio stream"}
# What PyAV raises on damaged files.
FAILURES = (av.FFmpegError, OSError, ValueError, ArithmeticError, MemoryError, EOFError)


class Clip(Closing):
    """One media file, or its bytes: opened when first read, once for all who read it, and closed by `close`.

    Its suffix tells what it offers: .npy, .npz, .csv and .parquet an array, .txt, .srt and .vtt a text, everything else
    is opened as video, sound or image. A .wav offers an array besides. A folder of numbered pictures is a video without
    sound (`FrameFolder`), one of sub-folders with pictures an array (`PictureFolder`). Times are seconds from the start
    of the clip; video and sound share that start.

    Args:
        source: path, bytes, or a seekable binary file (which stays open).
        name: shown in errors; for bytes and files it carries the suffix.
        timeout: seconds of wall time that one call may take.
        fps: frames a second of a folder of pictures or an array, which do not tell it.

    Every method raises `MediaError` when the file is missing, truncated, corrupt or too slow, or does not offer what is
    asked for.
    """

    def __init__(
        self,
        source: str | Path | bytes | BinaryIO,
        name: str | None = None,
        *,
        timeout: float = 60.0,
        fps: float | None = None,
    ) -> None:
        is_path = isinstance(source, str | Path)
        self.name = name or str(source if is_path else getattr(source, "name", "<bytes>"))
        self.timeout = timeout
        self.fps = fps
        self._source = source
        self._suffix = PurePath(str(source) if is_path else self.name).suffix.lower()
        self._file: BinaryIO | None = None
        self._container: Container | None = None
        self._folder: PictureFolder | FrameFolder | None = None
        self._array: Stored | None = None
        self._text: str | None = None
        self._is_folder: bool | None = None
        self._offers: dict[str, bool] = {}
        self._ends: dict[str, float | None] = {}

    @classmethod
    def of_text(cls, text: str, name: str) -> Self:
        """A clip that is the literal `text`, as a manifest's cell holds it."""
        clip = cls(text.encode(), name)
        clip._suffix = TEXTS[0]
        return clip

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def close(self) -> None:
        """Close the file and free the decoders. Reading again opens it again."""
        if self._container is not None:
            self._container.close()
        if self._file is not None and self._file is not self._source:
            self._file.close()
        self._file = self._container = self._folder = self._array = self._text = self._is_folder = None
        self._offers, self._ends = {}, {}

    def has(self, reads: str) -> bool:
        """Whether this file offers "frames", "waveform", "array" or "text"."""
        if reads not in self._offers:
            self._offers[reads] = self._has(reads)
        return self._offers[reads]

    def _has(self, reads: str) -> bool:
        if reads not in tuple(Reads):
            raise ValueError(f"expected one of {[str(r) for r in Reads]}, got {reads!r}")
        folder = self._in_folder()
        if folder is not None:
            return reads == (Reads.ARRAY if isinstance(folder, PictureFolder) else Reads.FRAMES)
        if self._suffix in TEXTS:
            self.text()  # an error if it cannot be read
            return reads == Reads.TEXT
        if self._suffix in LOADERS:
            self._stored()
            return reads == Reads.ARRAY
        with self._reading("open it"):
            recorded = reads == Reads.ARRAY and self._suffix in RECORDINGS
            return self._stream_for(Reads.WAVEFORM if recorded else reads) is not None

    @property
    def duration(self) -> float | None:
        """Seconds until the last of video, sound and subtitles ends; None for stills, other text and arrays."""
        ends = [self.duration_of(reads) for reads in (Reads.FRAMES, Reads.WAVEFORM, Reads.TEXT)]
        return max((end for end in ends if end is not None), default=None)

    def duration_of(self, reads: str) -> float | None:
        """Seconds until what `reads` names ends; None if the file does not offer it, or it has no duration.

        Of arrays only a .wav says how long it is, and a .csv of an Empatica E4.
        """
        if reads not in self._ends:
            self._ends[reads] = self._end_of(reads)
        return self._ends[reads]

    def _end_of(self, reads: str) -> float | None:
        with self._reading("find its length"):
            if reads == Reads.TEXT and self._suffix in subtitles.SUFFIXES:
                return subtitles.end_of(self.source_text())
            if reads == Reads.ARRAY and self._suffix in (*RECORDINGS, *LOADERS):
                rate = self.sample_rate if self._suffix in RECORDINGS else self._stored().rate
                return self.shape[1] / rate if rate else None
            folder = self._in_folder()
            if isinstance(folder, FrameFolder) and reads == Reads.FRAMES:
                return folder.duration
            if not self._is_timed(reads):
                return None
            return believed_end(self._media(), self._stream_for(reads))

    @property
    def frame_rate(self) -> float | None:
        """Mean frames a second; None without video and for stills. Of arrays and folders of pictures as given."""
        with self._reading("find its frame rate"):
            folder = self._in_folder()
            if folder is not None or self._suffix in LOADERS:
                return self.fps
            rate = self._media().video.average_rate if self._is_timed(Reads.FRAMES) else None
            return float(rate) if rate else None

    @property
    def sample_rate(self) -> int | None:
        """Samples a second as stored; None without sound."""
        with self._reading("find its sample rate"):
            return self._media().audio.sample_rate if self._is_timed(Reads.WAVEFORM) else None

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the first picture as displayed: rotation applied, pixels square. None without one."""
        if not self.has(Reads.FRAMES):
            return None
        height, width = self.frames([0.0]).shape[1:3]
        return height, width

    def frames(
        self, times: Sequence[float], short_side: int | None = None, size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """The frame shown at each of `times`: the last one not later, or else the first one.

        A still is shown at any time, the last frame also past the end. What lies between the times is decoded in one
        pass (gaps of more than 20 s are skipped); only what is returned is converted and scaled.

        Args:
            times: T seconds, in any order.
            short_side: scale to this length of the shorter side, the aspect ratio kept.
            size: scale to exactly (height, width).

        Returns:
            [T, H, W, 3] uint8 RGB.
        """
        if not len(times) or not np.isfinite(times).all():
            raise ValueError(f"times must be finite numbers, at least one, got {times}")
        sides = [side for side in (short_side, *(size or ())) if side is not None]
        if (short_side and size) or min(sides, default=1) < 1:
            raise ValueError(f"expected a short_side or a size above 0, got {short_side} and {size}")
        folder = self._in_folder()
        if isinstance(folder, FrameFolder):
            return folder.frames(times, short_side, size)
        with self._reading("decode its frames"):
            return frames_at(self._media_with(Reads.FRAMES), [float(t) for t in times], short_side, size)

    def frames_between(self, start: float, stop: float, short_side: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """All frames that `frames` gives for times from `start` to `stop` seconds.

        Returns:
            [N] float64, the time from which each is shown (of the first it can be before `start`), and
            [N, H, W, 3] uint8 RGB.
        """
        folder = self._in_folder()
        if isinstance(folder, FrameFolder):
            return folder.frames_between(start, stop, short_side)
        with self._reading("decode its frames"):
            return frames_between(self._media_with(Reads.FRAMES), start, stop, short_side)

    def waveform(self, start: float, stop: float, rate: int) -> np.ndarray:
        """The sound from `start` to `stop` seconds: the mean of all channels, resampled, zero where there is none.

        The clip's sound at `rate` is one signal on the grid k / rate seconds; a window is its slice from
        round(start rate) on.

        Returns:
            [round((stop - start) rate)] float32 in [-1, 1].
        """
        if not (np.isfinite([start, stop]).all() and stop >= start and rate > 0):
            raise ValueError(f"expected start <= stop and a rate above 0, got {start}, {stop} and {rate}")
        with self._reading("decode its sound"):
            return waveform_in(self._media_with(Reads.WAVEFORM), start, stop, rate)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of `array`; of a folder it is known without decoding it all."""
        folder = self._in_folder()
        return folder.shape if isinstance(folder, PictureFolder) else self._stored().array.shape

    def array(self, index: Sequence[int] | None = None) -> np.ndarray:
        """The array of an .npy, .npz, .csv, .parquet or .wav file, or of a folder of pictures.

        .npy as stored ([channels, samples] by convention; a single dimension is one channel); .npz: its only array,
        or the one called "array"; .csv and .parquet: the columns that hold numbers are the channels (`columns`), but
        for times, counters and ids (`left_out`), empty cells NaN; .wav: the channels at their own rate, full scale
        being 1; a folder: grey levels [channels, pictures, height, width] as the pictures hold them, from 0 to 255 or,
        of 16 bits, to 65535, see `PictureFolder`.

        Args:
            index: take only these along the second axis; of a folder, only these are decoded.

        Returns:
            float32 [channels, samples], or of more dimensions if stored so. It is kept: do not change it.
        """
        folder = self._in_folder()
        if isinstance(folder, PictureFolder):
            return folder.read(index)
        stored = self._stored()
        if index is not None:
            return np.ascontiguousarray(stored.array[:, index], np.float32)
        with self._reading("read its array"):
            check_bytes(4 * stored.array.size, LARGEST)
            self._array = replace(stored, array=np.ascontiguousarray(stored.array, np.float32))
        return self._array.array

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the channels of a .csv or .parquet file, see `array`; empty of other arrays."""
        return () if self._in_folder() is not None else self._stored().columns

    @property
    def left_out(self) -> Mapping[str, str]:
        """What else a .csv or .parquet file has, columns and lines, and why it is no channel."""
        return {} if self._in_folder() is not None else self._stored().left_out

    def _stored(self) -> Stored:
        """What an array file holds, read once."""
        if self._in_folder() is not None or self._suffix not in (*LOADERS, *RECORDINGS):
            expected = ", ".join((*LOADERS, *RECORDINGS))
            raise MediaError(f"{self.name}: no array; expected a file ending in {expected}, or a folder of pictures")
        if self._array is None:
            with self._reading("read its array"):
                if self._suffix in RECORDINGS:
                    media = self._media_with(Reads.WAVEFORM)
                    samples = (media.end_of(media.audio) or 0.0) * media.audio.sample_rate
                    check_bytes(round(4 * samples) * media.audio.channels, LARGEST)
                    self._array = Stored(all_channels(media))
                else:
                    self._array = load_array(self._opened(), self._suffix, self._deadline())
        return self._array

    def text(self, start: float | None = None, stop: float | None = None) -> str:
        """The text of a .txt file in UTF-8, or the literal text; of subtitles what is shown from `start` to `stop`."""
        content = self.source_text()
        if self._suffix not in subtitles.SUFFIXES:
            return content
        with self._reading("read its subtitles"):
            return subtitles.shown(content, start, stop)

    def source_text(self) -> str:
        """The text as the file holds it, subtitles with their times."""
        if self._suffix not in TEXTS:
            raise MediaError(f"{self.name}: no text; expected a file ending in {', '.join(TEXTS)}")
        if self._text is None:
            with self._reading("read its text"):
                self._text = read_all(self._opened(), LARGEST_TEXT, self._deadline()).decode("utf-8-sig")
        return self._text

    def _in_folder(self) -> PictureFolder | FrameFolder | None:
        """The opened folder, if it is one."""
        if self._is_folder is None:
            self._is_folder = isinstance(self._source, str | Path) and os.path.isdir(self._source)
        if self._folder is None and self._is_folder:
            path = str(self._source)
            with self._reading("list it"):
                names = numbering(path)
                self._folder = PictureFolder(Path(path)) if names is None else FrameFolder(path, names, self.fps)
        if self._folder is not None:
            self._folder.deadline = self._deadline()
        return self._folder

    def _deadline(self) -> Deadline:
        """Of a call that begins now."""
        return Deadline(self.name, self.timeout)

    def _opened(self) -> BinaryIO:
        """The open file, at its start."""
        if self._file is None:
            if isinstance(self._source, bytes):
                self._file = io.BytesIO(self._source)
            elif isinstance(self._source, str | Path):
                self._file = open_regular(self._source)
            else:
                self._file = self._source
        self._file.seek(0)
        return self._file

    def _media(self) -> Container:
        """The opened container, with its clock started."""
        if self._container is None:
            if not self._opened().seek(0, 2):
                raise ValueError("the file is empty")
            file = self._opened()
            if self._opened().read(len(SIGNATURE)) == SIGNATURE:
                file = io.BytesIO(plain_png(read_all(file, LARGEST_PICTURE, self._deadline())))
            file.seek(0)
            self._container = Container(file, self.name, self._suffix, self.timeout)
        self._container.start_clock()
        return self._container

    def _is_timed(self, reads: str) -> bool:
        """Whether the file offers what `reads` names as a stream in time."""
        return reads in (Reads.FRAMES, Reads.WAVEFORM) and self.has(reads) and not self._media().is_still

    def _stream_for(self, reads: str) -> Any:
        """The PyAV stream of what `reads` names, or None."""
        media = self._media()
        stream = {Reads.FRAMES: media.video, Reads.WAVEFORM: media.audio}.get(Reads(reads))
        if stream is not None and stream.codec_context is None:
            raise MediaError(f"{self.name}: there is no decoder for its {stream.type} stream")
        return stream

    def _media_with(self, reads: str) -> Container:
        """The opened container, if it offers what `reads` names."""
        if not self.has(reads):
            raise MediaError(f"{self.name}: {LACKS[Reads(reads)]}")
        media = self._media()
        media.select(self._stream_for(reads))
        return media

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """Turn what goes wrong below into a `MediaError` that names the file."""
        try:
            yield
        except MediaError:
            raise
        except av.ExitError as error:
            raise MediaError(f"{self.name}: took longer than {self.timeout:g} s to read") from error
        except FAILURES as error:
            raise MediaError(f"{self.name}: cannot {what}: {reason(error)}") from error

"""`ShardClip`: a clip that was packed into a shard, of which only what is asked for is read.

Shapes: N frames, T times, H height, W width, S samples.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, BinaryIO, cast

import av
import numpy as np
from pydantic import TypeAdapter

from mbt_core.media.clip import Clip
from mbt_core.media.closing import Closing
from mbt_core.media.container import DECODER_OPTIONS
from mbt_core.media.errors import MediaError, reason
from mbt_core.media.jpegs import decode_jpeg
from mbt_core.media.pictures import Scaler
from mbt_core.media.reads import Reads
from mbt_core.media.shards import RATE, Facts, Shard, open_shard, packed

SEEK_FROM, SEEK_BACK = 30 * RATE, 2 * RATE
"""Samples: where sound begins later it is sought, and so much before."""
TINY = 1e-6  # seconds; less is rounding
FACTS = TypeAdapter(Facts)


class ShardClip(Closing):
    """One column of a packed clip, with the reading methods of `Clip`.

    Within the seconds that are held it gives what the clip gives, but for what JPEG changes and frames that ``--fps``
    left out; outside of them it raises `MediaError`. Times are seconds from the start of the clip that was packed.

    Args:
        path: ``NAME.tar/KEY/COLUMN``.
        timeout: as of `Clip`.
    """

    def __init__(self, path: str, *, timeout: float = 60.0) -> None:
        place = packed(path)
        if place is None:
            raise MediaError(f"{path}: there is no such shard")
        self.name, self.timeout = path, timeout
        self._tar, self._key, self._column = place
        self._inner: dict[str, Clip] = {}

    def close(self) -> None:
        """Frees the decoders; the shard stays open."""
        for clip in self._inner.values():
            clip.close()
        self._inner.clear()

    @cached_property
    def _shard(self) -> Shard:
        return open_shard(self._tar)

    @cached_property
    def _members(self) -> np.ndarray:
        """The records of the clip."""
        return self._shard.members(self._key)

    @cached_property
    def facts(self) -> Facts:
        """What the shard says of this clip. Raises `MediaError`."""
        content = self._shard.read([self._member("json")], self.timeout)[0]
        try:
            return FACTS.validate_python(json.loads(content)["sources"][self._column])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise MediaError(f"{self.name}: the shard does not describe it: {reason(error)}") from error

    def _member(self, name: str) -> Any:
        places = np.flatnonzero(self._members["member"] == f"{self._key}.{name}".encode())
        if not len(places):
            raise MediaError(f"{self.name}: the shard holds no {name} of it")
        return self._members[places[0]]

    @cached_property
    def _frames(self) -> tuple[np.ndarray, np.ndarray]:
        """Times [N] from which the frames are shown, and their records [N]."""
        names = self._members["member"]
        prefix = f"{self._key}.{self._column}.".encode()
        records = self._members[np.char.startswith(names, prefix) & np.char.endswith(names, b".jpg")]
        since = np.ascontiguousarray(records["time"])
        if not len(records) or not np.isfinite(since).all() or (np.diff(since) <= 0).any():
            raise MediaError(f"{self.name}: the index does not tell the times of its frames")
        return since, records

    def has(self, reads: str) -> bool:
        """See `Clip.has`."""
        return reads in self.facts.ends or reads in self.facts.errors

    @property
    def duration(self) -> float | None:
        """See `Clip.duration`."""
        return self.facts.duration

    def duration_of(self, reads: str) -> float | None:
        """See `Clip.duration_of`."""
        self._require(reads)
        return self.facts.ends.get(reads)

    @property
    def frame_rate(self) -> float | None:
        """That of the packed video."""
        return self.facts.frame_rate

    @property
    def sample_rate(self) -> int | None:
        """That of the packed sound as it was stored."""
        return self.facts.sample_rate

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the packed frames."""
        if not self.has(Reads.FRAMES):
            return None
        self._require(Reads.FRAMES)
        height, width = self._decoded(self._frames[1][:1])[0].shape[:2]
        return height, width

    def frames(
        self, times: Sequence[float], short_side: int | None = None, size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """[T, H, W, 3] uint8: see `Clip.frames`. Only these frames are read."""
        self._check_span(Reads.FRAMES, min(times), max(times))
        wanted = np.searchsorted(self._frames[0], times, side="right") - 1
        return self._pictures(np.maximum(wanted, 0), short_side, size)

    def frames_between(self, start: float, stop: float, short_side: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """[N] and [N, H, W, 3]: see `Clip.frames_between`."""
        self._check_span(Reads.FRAMES, start, stop)
        since = self._frames[0]
        low, high = np.maximum(np.searchsorted(since, [start, stop], side="right") - 1, 0)
        wanted = np.arange(low, high + 1)
        return since[wanted], self._pictures(wanted, short_side, None)

    def waveform(self, start: float, stop: float, rate: int) -> np.ndarray:
        """[round((stop - start) rate)] float32: see `Clip.waveform`. At 16 kHz it is the packed sound itself."""
        self._check_span(Reads.WAVEFORM, start, stop)
        first, count = round(start * rate), round((stop - start) * rate)
        begin = first - round(self.facts.origin * rate / RATE)
        if rate != RATE:
            return self._inside("flac").waveform(begin / rate, (begin + count) / rate, rate)
        sound = self._shard.open(self._member(f"{self._column}.flac"), self.timeout)
        try:
            return read_flac(sound, begin, count)
        except (av.FFmpegError, ValueError, OverflowError, MemoryError) as error:
            raise MediaError(f"{self.name}: cannot decode its sound: {reason(error)}") from error

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Clip.shape`."""
        self._require(Reads.ARRAY)
        return self._inside(self.facts.payload).shape

    def array(self, index: Sequence[int] | None = None) -> np.ndarray:
        """See `Clip.array`."""
        self._require(Reads.ARRAY)
        return self._inside(self.facts.payload).array(index)

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Clip.columns`."""
        self._require(Reads.ARRAY)
        return self._inside(self.facts.payload).columns

    @property
    def left_out(self) -> Mapping[str, str]:
        """See `Clip.left_out`."""
        self._require(Reads.ARRAY)
        return self._inside(self.facts.payload).left_out

    def text(self, start: float | None = None, stop: float | None = None) -> str:
        """See `Clip.text`."""
        self._require(Reads.TEXT)
        return self._inside(self.facts.payload).text(start, stop)

    def source_text(self) -> str:
        """See `Clip.source_text`."""
        self._require(Reads.TEXT)
        return self._inside(self.facts.payload).source_text()

    def _inside(self, suffix: str) -> Clip:
        """The member with this suffix as a clip."""
        if suffix not in self._inner:
            part = self._shard.open(self._member(f"{self._column}.{suffix}"), self.timeout)
            self._inner[suffix] = Clip(part, f"{self.name}.{suffix}", timeout=self.timeout)
        return self._inner[suffix]

    def _pictures(self, wanted: np.ndarray, short_side: int | None, size: tuple[int, int] | None) -> np.ndarray:
        scaler = Scaler(self.name, short_side, size)
        distinct, place = np.unique(wanted, return_inverse=True)
        pictures = [_scaled(picture, scaler) for picture in self._decoded(self._frames[1][distinct])]
        return np.stack([pictures[i] for i in place.tolist()])

    def _decoded(self, records: np.ndarray) -> list[np.ndarray]:
        """[H, W, 3] uint8 of each record."""
        contents = self._shard.read(list(records), self.timeout)
        names = [f"{self.name}: {bytes(member).decode()}" for member in records["member"]]
        return [decode_jpeg(content, name) for content, name in zip(contents, names, strict=True)]

    def _require(self, reads: str) -> None:
        if reads in self.facts.errors:
            raise MediaError(self.facts.errors[reads])

    def _check_span(self, reads: str, start: float, stop: float) -> None:
        """Times inside the clip must be inside what is held."""
        self._require(reads)
        facts = self.facts
        if reads not in facts.ends:
            raise MediaError(f"{self.name}: it has no {reads}, only {', '.join(facts.ends)}")
        end = facts.ends[reads]
        before = start < facts.start - TINY and facts.start > 0
        behind = stop > facts.stop + TINY and end is not None and end > facts.stop + TINY
        if before or behind:
            raise MediaError(
                f"{self.name}: {facts.start:g} to {facts.stop:g} s were packed, asked for {start:g} to {stop:g} s; "
                "pack again with a longer --window"
            )


def _scaled(picture: np.ndarray, scaler: Scaler) -> np.ndarray:
    """The picture in the size that the scaler is for."""
    height, width = picture.shape[:2]
    if scaler.size in (None, (height, width)) and scaler.short_side in (None, min(height, width)):
        return picture
    return scaler(av.VideoFrame.from_ndarray(picture, format="rgb24"))


def read_flac(file: BinaryIO, first: int, count: int) -> np.ndarray:
    """[count] float32 of a mono FLAC file from sample `first` on; zeros before its start and past its end.

    Raises:
        ValueError: if it is no mono sound of 16 bits at 16 kHz, or damaged.
    """
    sound = np.zeros(count, np.float32)
    missing = 0
    with av.open(cast(Any, file), format="flac") as container:
        stream = container.streams.audio[0]
        if (stream.rate, stream.channels, stream.format.name) != (RATE, 1, "s16"):
            raise ValueError(f"expected one channel of 16 bits at {RATE} Hz")
        stream.codec_context.thread_count = 1
        stream.codec_context.options = DECODER_OPTIONS
        if stream.duration is not None:
            missing = max(0, min(first + count, stream.duration) - max(first, 0))
        if first > SEEK_FROM:
            container.seek(first - SEEK_BACK, stream=stream)
        for frame in container.decode(stream):
            if frame.pts is None:
                raise ValueError("damaged: a part of it does not say where it belongs")
            at = frame.pts - first
            if at >= count:
                break
            low, high = max(at, 0), min(at + frame.samples, count)
            if low < high:
                sound[low:high] = np.frombuffer(frame.planes[0], np.int16)[low - at : high - at]
                missing -= high - low
    if missing > 0:
        raise ValueError("damaged: some of it is missing")
    sound /= 32768
    return sound

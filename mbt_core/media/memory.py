"""`MemoryClip`: what was decoded of a clip, kept in memory or in a file, and read like the clip itself.

Shapes: N frames, H height, W width, T times, S samples.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from mbt_core.media import subtitles
from mbt_core.media.clip import Clip
from mbt_core.media.errors import MediaError, reason
from mbt_core.media.reads import Reads

TINY = 1e-6  # seconds; less is rounding
EDGE = 1024  # samples of sound held on both sides, for what resampling smears and rounding adds


@dataclass
class MemoryClip:
    """The decoded content of a `Clip` between `start` and `stop` seconds, with the clip's reading methods.

    For times, a short side and a rate that it holds it gives what the clip gives; for others it raises `MediaError`.
    Past the ends of the clip it behaves like the clip. Times are seconds from the clip's start. See `decode_all`.

    Attributes:
        name: the clip's name.
        start, stop: the seconds of the clip that are held.
        short_side: of the frames; None: their own.
        rate: of the waveform.
        duration: the clip's.
        ends: what `duration_of` gives.
        frame_rate, sample_rate, columns: the clip's.
        parts: those that are there of "frames" [N, H, W, 3] uint8 and "since" [N], the times from which they are shown;
            "waveform" [S] from sample round(start rate) - EDGE on, without the zeros at its end; "array"; and "text" in
            UTF-8.
    """

    name: str
    start: float
    stop: float
    short_side: int | None = None
    rate: int = 0
    duration: float | None = None
    frame_rate: float | None = None
    sample_rate: int | None = None
    ends: dict[str, float | None] = field(default_factory=dict)
    parts: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    columns: Sequence[str] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing: there is no file."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the content takes."""
        return sum(part.nbytes for part in self.parts.values())

    def copy(self) -> Self:
        """The same with content of its own."""
        return replace(self, parts={name: part.copy() for name, part in self.parts.items()})

    def has(self, reads: str) -> bool:
        """Whether "frames", "waveform", "array" or "text" is held."""
        return reads in self.ends

    def duration_of(self, reads: str) -> float | None:
        """Seconds until what `reads` names ends in the clip; None if it has no duration or is not held."""
        return self.ends.get(reads)

    def frames(
        self, times: Sequence[float], short_side: int | None = None, size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """[T, H, W, 3] uint8: see `Clip.frames`."""
        frames_NHWC = self._part(Reads.FRAMES)
        if size != frames_NHWC.shape[1:3] and (size is not None or short_side != self.short_side):
            held = f"frames of {frames_NHWC.shape[1:3]} (short side {self.short_side})"
            raise MediaError(f"{self.name}: {held} are held, asked for short side {short_side}, size {size}")
        self._check_span(Reads.FRAMES, min(times), max(times))
        index_T = np.searchsorted(self._part("since"), times, side="right") - 1
        return frames_NHWC[np.maximum(index_T, 0)]

    def waveform(self, start: float, stop: float, rate: int) -> np.ndarray:
        """[round((stop - start) rate)] float32: see `Clip.waveform`."""
        held_S = self._part(Reads.WAVEFORM)
        if rate != self.rate:
            raise MediaError(f"{self.name}: the waveform is held at {self.rate} Hz, asked for {rate} Hz")
        self._check_span(Reads.WAVEFORM, start, stop)
        first = round(start * rate) - round(self.start * rate) + EDGE
        window = np.zeros(round((stop - start) * rate), np.float32)
        low, high = max(first, 0), min(first + len(window), len(held_S))
        if low < high:
            window[low - first : high - first] = held_S[low:high]
        return window

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Clip.shape`."""
        return self._part(Reads.ARRAY).shape

    def array(self, index: Sequence[int] | None = None) -> np.ndarray:
        """See `Clip.array`."""
        array = self._part(Reads.ARRAY)
        return array if index is None else array[:, index]

    def text(self, start: float | None = None, stop: float | None = None) -> str:
        """See `Clip.text`."""
        content = self.source_text()
        return content if self.ends[Reads.TEXT] is None else subtitles.shown(content, start, stop)

    def source_text(self) -> str:
        """See `Clip.source_text`."""
        return self._part(Reads.TEXT).tobytes().decode()

    def save(self, path: Path) -> None:
        """Write everything to an uncompressed .npz; a reader sees all of it or nothing."""
        facts = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "parts"}
        arrays: dict[str, Any] = {"facts": np.array(json.dumps(facts)), **self.parts}
        part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
        try:
            with part.open("wb") as file:
                np.savez(file, **arrays)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            MediaError: the file is missing or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                parts = dict(arrays)
            return cls(**json.loads(str(parts.pop("facts"))), parts=parts)
        except Exception as error:  # numpy, zipfile and json each have their own
            raise MediaError(f"{path}: cannot read the decoded clip: {reason(error)}") from error

    def _part(self, name: str) -> np.ndarray:
        if name not in self.parts:
            raise MediaError(f"{self.name}: {name} is not held, only {sorted(self.parts)}")
        return self.parts[name]

    def _check_span(self, reads: str, start: float, stop: float) -> None:
        """Times inside the clip must be inside what is held."""
        end = self.ends[reads]
        before = start < self.start - TINY and self.start > 0
        behind = stop > self.stop + TINY and end is not None and end > self.stop
        if before or behind:
            held = f"{self.start:g} to {self.stop:g} s are held"
            raise MediaError(f"{self.name}: {held}, asked for {start:g} to {stop:g} s")


def decode_all(
    clip: Clip, reads: Collection[str], start: float, stop: float, short_side: int | None, rate: int
) -> MemoryClip:
    """Decode what `clip` offers of `reads`, between `start` and `stop` seconds, once and for all."""
    held = MemoryClip(clip.name, start, stop, short_side, rate, clip.duration, clip.frame_rate, clip.sample_rate)
    held.ends = {name: clip.duration_of(name) for name in sorted(reads) if clip.has(name)}
    if Reads.FRAMES in held.ends:
        held.parts["since"], held.parts[Reads.FRAMES] = clip.frames_between(start, stop, short_side)
    if Reads.WAVEFORM in held.ends:
        begin = round(start * rate) - EDGE
        waveform_S = clip.waveform(begin / rate, stop + EDGE / rate, rate)
        held.parts[Reads.WAVEFORM] = np.trim_zeros(waveform_S, "b").copy()
    if Reads.ARRAY in held.ends:
        held.parts[Reads.ARRAY], held.columns = clip.array(), clip.columns
    if Reads.TEXT in held.ends:
        held.parts[Reads.TEXT] = np.frombuffer(clip.source_text().encode(), np.uint8)
    return held

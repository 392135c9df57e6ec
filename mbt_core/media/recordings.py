"""`Recording`: the sound of one of many recordings in an HDF5 file, as ``EPIC_audio.hdf5`` of Epic-Kitchens-100.

Each recording is a data set of its own: the samples of one channel, [S]. Their rate is the attribute ``sample_rate`` of
the data set or of the file, else 24 kHz. A recording's path is ``NAME.hdf5/KEY``.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np

from mbt_core.errors import ConfigError
from mbt_core.io.files import check_bytes
from mbt_core.media.closing import Closing
from mbt_core.media.errors import MediaError, reason
from mbt_core.media.reads import Reads
from mbt_core.media.waveforms import FILTER_MARGIN, MAX_RATE, window_of

LARGEST_CHUNK = 1 << 28
"""Bytes of a compressed piece of a data set, all of which is unpacked for any sample in it."""
RATE = 24_000
"""Samples a second where the file does not say it."""
SUFFIXES = (".hdf5", ".h5")
MARK = re.compile(r"(.+\.(?:hdf5|h5))/([^/]+)", re.DOTALL)


def recorded(path: str) -> tuple[str, str] | None:
    """(file, key) if `path` names a recording in a file that is there."""
    found = MARK.fullmatch(path)
    return (found[1], found[2]) if found and os.path.isfile(found[1]) else None


def recordings(path: str) -> set[str]:
    """The keys of an HDF5 file. Raises `MediaError` if it is none."""
    with _open(path) as file, _reading(path, "read it"):
        return set(file)


@contextmanager
def _reading(name: str, what: str) -> Iterator[None]:
    """Turns what h5py says of a damaged file, in many ways, into a `MediaError`."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise MediaError(f"{name}: cannot {what}: {reason(error)}") from None


def _open(path: str) -> Any:
    """The opened file. Raises `MediaError`, and `ConfigError` naming what to install."""
    try:
        import h5py
    except ImportError:
        raise ConfigError(f"{path}: HDF5 files need h5py: pip install 'mbt-fusion[hdf5]'") from None
    with _reading(path, "open it"):
        return h5py.File(path, "r", locking=False)


class Recording(Closing):
    """One recording, with the reading methods of `Clip` for sound.

    The file is open while the clip is: a process that is forked must not share it.

    Args:
        path: ``NAME.hdf5/KEY``.
    """

    def __init__(self, path: str) -> None:
        place = recorded(path)
        if place is None:
            raise MediaError(f"{path}: there is no such file")
        self.name = path
        self._path, self._key = place

    def close(self) -> None:
        """Closes the file. Reading again opens it again."""
        if "_file" in self.__dict__:
            self._file.close()
        for name in ("_file", "_samples"):
            self.__dict__.pop(name, None)

    @cached_property
    def _file(self) -> Any:
        return _open(self._path)

    @cached_property
    def _samples(self) -> Any:
        """The data set [S]. Links out of the file are not followed."""
        import h5py

        with _reading(self.name, "open it"):
            if not isinstance(self._file.get(self._key, getlink=True), h5py.HardLink):
                raise MediaError(f"{self._path}: holds no recording {self._key!r}")
            found = self._file[self._key]
            if not isinstance(found, h5py.Dataset) or found.ndim != 1 or found.dtype.kind not in "fi":
                raise MediaError(f"{self.name}: no recording; expected a data set of the samples of one channel")
            if found.external or found.is_virtual:
                raise MediaError(f"{self.name}: its samples are in another file, which is not read")
            if found.size and not found.id.get_storage_size():
                raise MediaError(f"{self.name}: says that it has {found.size:,} samples, and holds none")
            check_bytes(math.prod(found.chunks or (0,)) * found.dtype.itemsize, LARGEST_CHUNK)
            return found

    def has(self, reads: str) -> bool:
        """See `Clip.has`."""
        return reads == Reads.WAVEFORM and self._samples is not None

    @property
    def duration(self) -> float:
        """See `Clip.duration`."""
        return len(self._samples) / self.sample_rate

    def duration_of(self, reads: str) -> float | None:
        """See `Clip.duration_of`."""
        return self.duration if reads == Reads.WAVEFORM else None

    @property
    def frame_rate(self) -> None:
        """None: it has no pictures."""

    @property
    def sample_rate(self) -> int:
        """Samples a second."""
        with _reading(self.name, "find its sample rate"):
            told = np.asarray(self._samples.attrs.get("sample_rate", self._file.attrs.get("sample_rate", RATE)))
        if told.size != 1 or told.dtype.kind not in "iuf" or not 0 < told.item() <= MAX_RATE:
            raise MediaError(f"{self.name}: unusable sample rate {told}")
        return round(told.item())

    def waveform(self, start: float, stop: float, rate: int) -> np.ndarray:
        """[round((stop - start) rate)] float32: see `Clip.waveform`."""
        if not (np.isfinite([start, stop]).all() and stop >= start and rate > 0):
            raise ValueError(f"expected start <= stop and a rate above 0, got {start}, {stop} and {rate}")
        samples, own_rate = self._samples, self.sample_rate
        margin = 3 * FILTER_MARGIN / min(rate, own_rate)
        low, high = (round((at + side) * own_rate) for at, side in ((start, -margin), (stop, margin)))
        low, high = max(0, low), max(0, min(high, len(samples)))
        with _reading(self.name, "read its sound"):
            found = samples[low:high]
        scale = 1.0 if found.dtype.kind == "f" else 2.0 ** (8 * found.dtype.itemsize - 1)
        sound = found.astype(np.float32) / np.float32(scale)
        return window_of([(low, sound)], own_rate, start, stop, rate, self.name)

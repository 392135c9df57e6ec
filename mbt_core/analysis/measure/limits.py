"""What limits training: reading the clips, or the step."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from mbt_core.data.dataset import ClipDataset, Draw
from mbt_core.errors import DataError
from mbt_core.io.remote import url_of
from mbt_core.media.shards import packed

BALANCED = 1.1
"""Up to this ratio neither side waits long enough to name it."""


@dataclass(frozen=True)
class Reading:
    """Of one process on one core.

    Args:
        clips_per_second: windows read, decoded and augmented a second.
        bytes_per_clip: read from the files for one of them; None: not known on this system, or they are elsewhere.
        clips: how many were read.
        failed: how many of them could not be used.
        packed: whether they come out of shards.
    """

    clips_per_second: float
    bytes_per_clip: float | None
    clips: int
    failed: int
    packed: bool


def reading(dataset: ClipDataset, rows: Iterable[int], seconds: float) -> Reading:
    """Reads rows in their order, one after the other on one core, until `seconds` have passed.

    Args:
        dataset: without a cache.
        rows: of the manifest, in the order of training.
        seconds: how long; at least one row is read after a first one that does not count.

    Raises:
        DataError: if there are fewer than two rows, or none of those read can be used.
    """
    draws = (Draw(0, int(row)) for row in rows)
    if (first := next(draws, None)) is None:
        raise DataError("there is no row to read")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        dataset[first]
        before, start = _bytes_read(), time.perf_counter()
        clips = failed = 0
        for draw in draws:
            failed += sum(example.error is not None for example in dataset[draw])
            clips += 1
            if time.perf_counter() - start >= seconds:
                break
        passed, after = max(time.perf_counter() - start, 1e-9), _bytes_read()
    finally:
        torch.set_num_threads(threads)
    if not clips:
        raise DataError("there is one row only: nothing is left to time after a first one that does not count")
    if failed == clips:
        raise DataError(f"none of {clips} rows could be read; mbt data check says why")
    places = [packed(path) for path in dataset.manifest.row(first.index).files()]
    far = any(place is not None and url_of(place[0]) is not None for place in places)
    size = None if far or before is None or after is None else (after - before) / clips
    return Reading(clips / passed, size, clips, failed, all(places))


def _bytes_read() -> int | None:
    """Bytes this process has read of files so far, in memory or not, as Linux tells them; not those of connections."""
    with suppress(OSError):
        found = re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text(encoding="ascii"))
        return int(found[1]) if found else None
    return None


@dataclass(frozen=True)
class Limit:
    """Reading beside the step.

    Args:
        reading: on one core.
        step: training clips a second of the device, with batches that are there already.
        cores: for reading, of those of the machine.
        shared: whether the step runs on the same cores.
    """

    reading: Reading
    step: float
    cores: int
    shared: bool

    @property
    def input(self) -> float:
        """Clips a second that all cores read."""
        return self.reading.clips_per_second * self.cores

    @property
    def together(self) -> float:
        """Clips a second of training, reading included."""
        if self.shared:  # a core either reads or computes
            return 1 / (1 / self.input + 1 / self.step)
        return min(self.input, self.step)

    @property
    def cores_needed(self) -> int:
        """Reading cores that keep the device busy."""
        return math.ceil(self.step / self.reading.clips_per_second)

    @property
    def limiting(self) -> str:
        """``input``, ``step`` or ``both``."""
        if self.input * BALANCED < self.step:
            return "input"
        return "step" if self.step * BALANCED < self.input else "both"

    def advice(self) -> str:
        """One line: what limits, and what to change."""
        share = 1 - self.together / self.step
        pack = "" if self.reading.packed else "pack the clips (mbt data pack), "
        if self.shared:
            line = f"reading takes {share:.0%} of the time of the {self.cores} cores"
            if share < 0.1:
                return f"the step limits training: {line}"
            return f"{line}: {pack}keep them decoded (data.cache=memory or disk), or train on a GPU"
        if self.limiting == "step":
            return f"the step limits training: {self.cores_needed} of {self.cores} cores would read fast enough"
        line = "reading limits training" if self.limiting == "input" else "reading and the step are as fast"
        return (
            f"{line}: the device waits {share:.0%} of the time; {pack}keep them decoded (data.cache=memory or disk), "
            f"or give it {self.cores_needed} cores"
        )

"""Keeps decoded clips, in memory or on disk, so that a file is decoded once and not in every epoch.

What is kept is read exactly as the file would be: training with and without a cache sees the same samples.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from mbt_core.config import DataConfig
from mbt_core.data.machine import cores, free_memory, processes_here
from mbt_core.data.manifest import Manifest
from mbt_core.data.processes import MEMORY
from mbt_core.data.readers import Each, Pool, patience_for
from mbt_core.errors import ConfigError, DataError, MBTError, MBTWarning
from mbt_core.io.files import write_atomically
from mbt_core.io.remote import cache_folder
from mbt_core.media import Clip, exists, identity, open_clip
from mbt_core.media.memory import MemoryClip, decode_all
from mbt_core.modality import Modality

VERSION = 2
"""Of what lies on disk; files of another version are not used."""
AUTO_BYTES = 1_500_000_000
AUTO_SHARE = 0.25
DECODER = 512 << 20
"""Bytes that decoding may take besides what comes of it."""
LARGEST = 512 << 20
"""Bytes of a clip that is kept on disk: a process decodes it as a whole."""
CHUNK = 8
"""Headers, or small clips, that a process reads at a time."""
SMALL = 8 << 20
"""Bytes of a clip that is decoded as soon as its size is known, while it looks as if there were room for all."""
SAMPLE = 64
"""Sizes that tell what to expect of the others."""
SLACK = 0.5
"""Seconds kept past the last window of a span: a modality may round its window up."""

Readable = Clip | MemoryClip
Message = Callable[[str], None]


@dataclass(frozen=True)
class Entry:
    """One thing to keep: a file's span, decoded for modalities that agree on how.

    Args:
        path: the file.
        names: the modalities.
        start, end: the row's span in seconds.
        fps: frames a second of a folder of frames.
    """

    path: str
    names: tuple[str, ...]
    start: float | None
    end: float | None
    fps: float | None = None


class Measured(NamedTuple):
    """What was found out of an entry.

    Args:
        entry: it.
        size: bytes that it takes; 0 if it cannot be read.
        clip: its content; None: it was not asked for, or cannot be decoded.
        tried: whether there is nothing more to try.
    """

    entry: Entry
    size: int
    clip: MemoryClip | None = None
    tried: bool = False


@dataclass(frozen=True)
class Room:
    """Bytes that decoded clips may take.

    Args:
        total: all together.
        largest: those that take more may be left out, and count as that.
    """

    total: int
    largest: int = sys.maxsize

    def choose(self, sizes: Mapping[Entry, int]) -> Mapping[Entry, int]:
        """All that are given, or those that are left when large ones are left out; none if these are most."""
        if sum(sizes.values()) <= self.total:
            return sizes
        small = {entry: size for entry, size in sizes.items() if size <= self.largest}
        return small if 2 * len(small) >= len(sizes) and sum(small.values()) <= self.total else {}


def auto_room() -> Room:
    """Where nobody asked for it."""
    total = min(AUTO_BYTES // processes_here(), int(AUTO_SHARE * free_memory()))
    return Room(total, total // 8)


class Cache:
    """Decoded clips of the modalities that say how theirs may be kept (`Modality.decode_settings`).

    What cannot be decoded as a whole (in time, in memory, or because a part of it is damaged) is not kept: then its
    windows are read from the file.

    Args:
        modalities: name -> instance.
        timeout: seconds that decoding one clip may take.
        folder: where the clips are kept; None: in the memory of this process.
        workers: processes that decode what `fill` keeps; 0: none but this one.

    Attributes:
        complete: whether it is in memory and holds all that is read of the splits that it was filled for.
    """

    complete = False

    def __init__(
        self, modalities: Mapping[str, Modality], timeout: float, folder: Path | None = None, workers: int = 0
    ) -> None:
        self.reads = {name: m.reads for name, m in modalities.items()}
        self.settings: dict[str, dict[str, Any]] = {name: m.decode_settings() for name, m in modalities.items()}
        self.seconds = {name: m.seconds or 0.0 for name, m in modalities.items()}
        self.timeout, self.folder, self.workers = timeout, folder, workers
        self._kept: dict[Entry, MemoryClip] = {}
        self._plain: set[Entry] = set()

    @classmethod
    def choose(
        cls,
        config: DataConfig,
        manifest: Manifest,
        modalities: Mapping[str, Modality],
        splits: Sequence[str],
        message: Message | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Self | None:
        """The cache that ``data.cache`` asks for, filled if it is in memory.

        ``auto`` is memory if the decoded clips of the splits take less than 1.5 GB and a quarter of what is free, else
        none; of clips that take more than an eighth of that some may be left out, so that the others fit.

        Args:
            config, manifest, modalities: of the run.
            splits: whose clips will be read more than once.
            message: told what was decided.
            progress: called with (clips decoded, clips in all).

        Raises:
            ConfigError: for ``memory`` where the clips do not fit.
        """
        if config.cache == "none":
            return None
        say = message or (lambda text: None)
        if config.cache == "disk":
            cache = cls(modalities, config.timeout, disk_folder())
            say(f"decoded clips are kept in {cache.folder}")
            return cache
        cache = cls.in_memory_of(config, modalities)
        rows = np.concatenate([np.zeros(0, np.int64), *(manifest.splits[s] for s in splits if s in manifest.splits)])
        auto = config.cache == "auto"
        room = auto_room() if auto else Room(free_memory())
        sizes, expected = cache.estimate(manifest, rows, room, decode=True, progress=progress)
        chosen = room.choose(sizes)
        if (chosen or expected <= room.total) and (cache.fill(chosen, room, progress) or auto):
            left_out = len(sizes) - len(cache._kept)
            cache.complete = not left_out and all(map(cache.serves, modalities))
            rest = f"; {left_out} of {len(sizes)} are too long for that, or damaged, and read anew" if left_out else ""
            say(f"the decoded clips of {len(rows)} rows are kept in memory: {cache.nbytes / 1e6:.0f} MB{rest}")
            return cache
        if auto:
            say(f"clips are decoded anew in every epoch: kept in memory they would take {expected / 1e9:.1f} GB")
            return None
        raise ConfigError(
            f"data.cache: memory: the decoded clips take about {expected / 1e9:.1f} GB, {room.total / 1e9:.1f} GB are "
            "free; set data.cache=disk or none"
        )

    @classmethod
    def in_memory_of(cls, config: DataConfig, modalities: Mapping[str, Modality]) -> Self:
        """An empty one in memory, filled by as many processes as there are cores unless ``data.workers`` is given."""
        return cls(modalities, config.timeout, workers=cores() if config.workers == "auto" else config.workers)

    @property
    def in_memory(self) -> bool:
        return self.folder is None

    @property
    def nbytes(self) -> int:
        """Bytes kept in memory."""
        return sum(clip.nbytes for clip in self._kept.values())

    def serves(self, name: str) -> bool:
        """Whether clips of this modality can be kept: frames and sound only if it says in which size and rate."""
        needed = {"frames": "short_side", "waveform": "rate"}.get(self.reads[name])
        return needed is None or needed in self.settings[name]

    def open(
        self, path: str, names: Iterable[str], start: float | None, end: float | None, fps: float | None = None
    ) -> dict[str, MemoryClip]:
        """Modality -> the decoded clip, whether or not it offers what that reads. The file must exist.

        Those of `names` that it lacks are to be read from the file.
        """
        clips: dict[str, MemoryClip] = {}
        for entry in self._entries(path, filter(self.serves, names), start, end, fps):
            clip = self._kept.get(entry) if self.folder is None else self._load(entry)
            if clip is not None:
                clips |= dict.fromkeys(entry.names, clip)
        return clips

    def estimate(
        self,
        manifest: Manifest,
        rows: np.ndarray,
        room: Room,
        decode: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[dict[Entry, int], float]:
        """The bytes that rows' decoded clips will take, from their headers, until it is more than there is room for.

        Args:
            manifest, rows: what will be read.
            room: for all.
            decode: keep small clips at once, while it looks as if there were room for all: `fill` decodes the others.
            progress: called with (clips decoded, clips to decode, as far as it is known).

        Returns:
            What can be kept -> its size, empty if it is more; and the size of all together.
        """
        sizes: dict[Entry, int] = {}
        seen: set[Entry] = set()
        shuffled, looked_at, counted, total, kept = np.random.default_rng(0).permutation(rows), 0, 0, 0, 0

        def expected(so_far: int) -> float:
            return so_far * max(1.0, len(rows) / max(1, looked_at))

        def items() -> Iterator[tuple[Entry, bool]]:
            nonlocal looked_at
            for row in shuffled:
                looked_at += 1
                for entry in self._needed(manifest, row):
                    if entry not in seen:
                        seen.add(entry)
                        yield entry, decode and len(sizes) >= SAMPLE and expected(total) <= room.total

        most = 3 * SMALL + DECODER if decode else MEMORY
        pool = Pool(_each(self._measured), self.workers, patience_for(self.timeout), tries=1, memory=most)
        for entry, size, clip, tried in pool.map(items(), CHUNK):
            sizes[entry] = size
            total, counted = total + size, counted + min(size, room.largest)
            if counted > room.total:
                self._kept.clear()
                if progress and kept:
                    progress(len(sizes), len(sizes))
                return {}, expected(total)
            if clip is not None and kept + clip.nbytes <= room.total:
                self._keep(entry, clip)
                kept += clip.nbytes
            elif tried:
                self._plain.add(entry)
            if progress and kept:
                progress(len(self._kept), max(len(sizes) + 1, round(expected(len(seen)))))
        return sizes, total

    def fill(self, sizes: Mapping[Entry, int], room: Room, progress: Callable[[int, int], None] | None = None) -> bool:
        """Decodes into memory what there is room for and is not there yet, what is being decoded included.

        Args:
            sizes: of `estimate`; what else is kept is dropped.
            room: for all, and for one.
            progress: called with (clips decoded, clips to decode).

        Returns:
            Whether there was room for all.
        """
        self._kept = {entry: clip for entry, clip in self._kept.items() if entry in sizes}
        todo = {entry: size for entry, size in sizes.items() if entry not in self._kept and entry not in self._plain}
        kept, ahead, enough = self.nbytes, 0, True

        def admitted() -> Iterator[tuple[Entry, bool]]:
            nonlocal ahead, enough
            for entry, size in todo.items():
                if kept + ahead + size > room.total:
                    enough = False
                    return
                ahead += size
                yield entry, True

        # frames one by one, as an array, and on their way here
        most = min(MEMORY, 3 * max(todo.values(), default=0) + DECODER)
        pool = Pool(_each(self._decoded), self.workers, patience_for(self.timeout), tries=1, memory=most)
        for done, (entry, _, clip, _) in enumerate(pool.map(admitted()), start=1 + len(sizes) - len(todo)):
            ahead -= todo[entry]
            if clip is not None and kept + clip.nbytes <= room.total:
                self._keep(entry, clip)
                kept += clip.nbytes
            elif clip is not None:
                enough = False
            if progress:
                progress(done, len(sizes))
        if progress and not todo:
            progress(len(sizes), len(sizes))
        return enough

    def _keep(self, entry: Entry, clip: MemoryClip) -> None:
        self._kept[entry] = clip.copy()  # out of the memory of the process that decoded it

    def _needed(self, manifest: Manifest, index: int) -> list[Entry]:
        """What a row needs; what is not on disk is left out."""
        if index in manifest.fatal:
            return []
        try:
            row = manifest.row(index)
        except DataError:
            return []  # said where the row is read
        return [
            entry
            for path, names in row.files().items()
            if exists(path)
            for entry in self._entries(path, filter(self.serves, names), row.start, row.end, row.rate(names))
        ]

    def _entries(
        self, path: str, names: Iterable[str], start: float | None, end: float | None, fps: float | None
    ) -> list[Entry]:
        """One entry for all modalities, but that those that read the same in different ways have one each."""
        groups: list[tuple[list[str], dict[str, dict[str, Any]]]] = []
        for name in names:
            reads, settings = self.reads[name], self.settings[name]
            for members, settings_of in groups:
                if settings_of.setdefault(reads, settings) == settings:
                    members.append(name)
                    break
            else:
                groups.append(([name], {reads: settings}))
        return [Entry(path, tuple(members), start, end, fps) for members, _ in groups]

    def _measured(self, item: tuple[Entry, bool]) -> Measured:
        """An entry's size from the file's header, and if it is asked for and small, its content."""
        entry, decode = item
        try:
            with open_clip(entry.path, timeout=self.timeout, fps=entry.fps) as clip:
                size = self._size(entry, clip)
                if not decode or size > SMALL:
                    return Measured(entry, size)
                try:
                    return Measured(entry, size, self._decode(entry, clip), True)
                except (DataError, OSError, MemoryError):
                    return Measured(entry, size, tried=True)
        except (DataError, OSError, MemoryError):
            return Measured(entry, 0, tried=decode)

    def _decoded(self, item: tuple[Entry, bool]) -> Measured:
        entry, _ = item
        try:
            with open_clip(entry.path, timeout=self.timeout, fps=entry.fps) as clip:
                return Measured(entry, 0, self._decode(entry, clip), True)
        except (DataError, OSError, MemoryError):
            return Measured(entry, 0, tried=True)

    def _options(self, entry: Entry) -> dict[str, Any]:
        """The entry's settings, all together."""
        return {key: value for name in entry.names for key, value in self.settings[name].items()}

    def _span(self, entry: Entry, clip: Clip) -> tuple[float, float]:
        """The seconds to keep: the row's span, and what windows longer than it take of the clip after it."""
        start = entry.start or 0.0
        if entry.end is None:
            return start, max(start, clip.duration or 0.0)
        return start, max(entry.end, start + max(self.seconds[name] for name in entry.names)) + SLACK

    def _decode(self, entry: Entry, clip: Clip) -> MemoryClip:
        options, reads = self._options(entry), {self.reads[name] for name in entry.names}
        start, stop = self._span(entry, clip)
        return decode_all(clip, reads, start, stop, options.get("short_side"), options.get("rate", 0))

    def _load(self, entry: Entry) -> MemoryClip | None:
        """The entry from its file, which is made if it is not there or damaged; None: it cannot be kept."""
        if entry in self._plain:
            return None
        try:
            return self._loaded(entry)
        except (DataError, OSError, MemoryError):
            self._plain.add(entry)
            return None

    def _loaded(self, entry: Entry) -> MemoryClip:
        assert self.folder is not None
        key = {
            "version": VERSION,
            "file": identity(entry.path),
            "span": [entry.start, entry.end, entry.fps, max(self.seconds[name] for name in entry.names)],
            "reads": sorted({self.reads[name] for name in entry.names}),
            "settings": self._options(entry),
        }
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        file = self.folder / digest[:2] / f"{digest[2:]}.clip"
        if file.exists():
            try:
                return MemoryClip.load(file)
            except (DataError, OSError):
                pass  # damaged: made anew below
        with open_clip(entry.path, timeout=self.timeout, fps=entry.fps) as opened:
            if self._size(entry, opened) > LARGEST:
                raise DataError(f"{entry.path}: too large to be kept as a whole")
            clip = self._decode(entry, opened)
        try:
            write_atomically(file, clip.save)
        except MBTError as error:
            warnings.warn(f"{error}. Clips are decoded anew each time", MBTWarning, stacklevel=1)
        return clip

    def _size(self, entry: Entry, clip: Clip) -> int:
        """Bytes an entry will take, from the header of its file. Raises `DataError` if it cannot be read."""
        reads = {self.reads[name] for name in entry.names}
        options = self._options(entry)
        size = 0.0
        start, stop = self._span(entry, clip)
        if "frames" in reads and (sides := clip.size) is not None:  # it decodes a picture
            height, width = sides
            scale = options["short_side"] / min(height, width) if options.get("short_side") else 1.0
            seconds = min(stop, clip.duration_of("frames") or 0.0) - start
            frames = max(1.0, seconds * (clip.frame_rate or 0.0))
            size += frames * height * width * 3 * scale**2
        if "waveform" in reads and clip.has("waveform"):
            size += max(0.0, min(stop, clip.duration_of("waveform") or 0.0) - start) * options["rate"] * 4
        if "array" in reads and clip.has("array"):
            size += 4 * math.prod(clip.shape)
        return round(size)


def _each(read: Callable[[tuple[Entry, bool]], Measured]) -> Each[tuple[Entry, bool], Measured, Any]:
    """Work that reads entries; of one that a process dies of there is nothing, as it need not be kept."""
    return Each(read, lambda item, why: Measured(item[0], 0, tried=True))


def disk_folder(name: str = "decoded") -> Path:
    """``$MBT_CACHE/NAME``, by default ``~/.cache/mbt/NAME``."""
    return cache_folder() / name

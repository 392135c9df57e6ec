"""Keeps decoded clips, in memory or on disk, so that a file is decoded once and not in every epoch.

What is kept is read exactly as the file would be: training with and without a cache sees the same samples.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from mbt_core.config import DataConfig
from mbt_core.data.machine import cores, free_memory, processes_here
from mbt_core.data.manifest import Manifest
from mbt_core.errors import ConfigError, DataError, MBTError, MBTWarning
from mbt_core.files import write_atomically
from mbt_core.media import Clip, MediaError, exists, identity, open_clip
from mbt_core.media.memory import MemoryClip, decode_all
from mbt_core.modality import Modality
from mbt_core.remote import cache_folder

VERSION = 2
"""Of what lies on disk; files of another version are not used."""
AUTO_BYTES = 1_500_000_000
AUTO_SHARE = 0.25
ESTIMATE_ROWS = 16
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


def auto_limit() -> int:
    """Bytes that decoded clips may take in memory where nobody asked for it."""
    return min(AUTO_BYTES // processes_here(), int(AUTO_SHARE * free_memory()))


class Cache:
    """Decoded clips of the modalities that say how theirs may be kept (`Modality.decode_settings`).

    Args:
        modalities: name -> instance.
        timeout: seconds that decoding one clip may take.
        folder: where the clips are kept; None: in the memory of this process.
    """

    def __init__(self, modalities: Mapping[str, Modality], timeout: float, folder: Path | None = None) -> None:
        self.reads = {name: m.reads for name, m in modalities.items()}
        self.settings: dict[str, dict[str, Any]] = {name: m.decode_settings() for name, m in modalities.items()}
        self.seconds = {name: m.seconds or 0.0 for name, m in modalities.items()}
        self.timeout, self.folder = timeout, folder
        self._kept: dict[Entry, MemoryClip | str] = {}

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
        none.

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
        cache = cls(modalities, config.timeout)
        rows = np.concatenate([np.zeros(0, np.int64), *(manifest.splits[s] for s in splits if s in manifest.splits)])
        auto = config.cache == "auto"
        limit = auto_limit() if auto else free_memory()
        expected = cache.estimate(manifest, rows)
        if expected <= limit and cache.fill(manifest, rows, limit, progress):
            say(f"the decoded clips of {len(rows)} rows are kept in memory: {cache.nbytes / 1e6:.0f} MB")
            return cache
        if auto:
            say(f"clips are decoded anew in every epoch: kept in memory they would take {expected / 1e9:.1f} GB")
            return None
        raise ConfigError(
            f"data.cache: memory: the decoded clips take about {expected / 1e9:.1f} GB, {limit / 1e9:.1f} GB are free; "
            "set data.cache=disk or none"
        )

    @property
    def in_memory(self) -> bool:
        return self.folder is None

    @property
    def nbytes(self) -> int:
        """Bytes kept in memory."""
        return sum(clip.nbytes for clip in self._kept.values() if isinstance(clip, MemoryClip))

    def serves(self, name: str) -> bool:
        """Whether clips of this modality can be kept: frames and sound only if it says in which size and rate."""
        needed = {"frames": "short_side", "waveform": "rate"}.get(self.reads[name])
        return needed is None or needed in self.settings[name]

    def open(
        self, path: str, names: Iterable[str], start: float | None, end: float | None, fps: float | None = None
    ) -> dict[str, MemoryClip]:
        """Modality -> the decoded clip, for those of `names` that the file offers. The file must exist.

        Raises:
            MediaError: as decoding raises it, each time again.
        """
        found: dict[str, MemoryClip] = {}
        for entry in self._entries(path, names, start, end, fps):
            clip = self._get(entry)
            found |= {name: clip for name in entry.names if clip.has(self.reads[name])}
        return found

    def estimate(self, manifest: Manifest, rows: np.ndarray) -> int:
        """Bytes that the rows' decoded clips will take, from the headers of some of them."""
        some = rows[np.linspace(0, len(rows) - 1, min(ESTIMATE_ROWS, len(rows))).astype(int)]
        sizes = [sum(map(self._size, self._needed(manifest, [row]))) for row in some]
        return round(np.mean(sizes) * len(rows)) if sizes else 0

    def fill(
        self,
        manifest: Manifest,
        rows: np.ndarray,
        limit: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> bool:
        """Decodes what the rows need into memory, in threads (FFmpeg works outside the interpreter's lock).

        Returns:
            Whether it took no more than `limit` bytes; if not, nothing is kept.
        """
        total, entries = 0, self._needed(manifest, rows)
        with ThreadPoolExecutor(cores()) as pool:
            for done, (entry, clip) in enumerate(zip(entries, pool.map(self._try, entries), strict=True), start=1):
                self._kept[entry] = clip
                total += clip.nbytes if isinstance(clip, MemoryClip) else 0
                if total > limit:
                    pool.shutdown(cancel_futures=True)
                    self._kept.clear()
                    return False
                if progress:
                    progress(done, len(entries))
        return True

    def _needed(self, manifest: Manifest, rows: Iterable[int]) -> list[Entry]:
        """What the rows need; what several rows share is there once, what is not on disk is left out."""
        entries: dict[Entry, None] = {}
        for index in rows:
            try:
                row = manifest.row(index)
            except DataError:
                continue  # said where the row is read
            for path, names in row.files().items():
                if exists(path):
                    entries |= dict.fromkeys(
                        self._entries(path, filter(self.serves, names), row.start, row.end, row.rate(names))
                    )
        return list(entries)

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

    def _get(self, entry: Entry) -> MemoryClip:
        if self.folder is not None:
            return self._load(entry)
        kept = self._kept.get(entry)
        if kept is None:
            kept = self._kept[entry] = self._try(entry)
        if isinstance(kept, str):
            raise MediaError(kept)
        return kept

    def _try(self, entry: Entry) -> MemoryClip | str:
        try:
            return self._decode(entry)
        except (DataError, OSError) as error:
            return str(error)

    def _options(self, entry: Entry) -> dict[str, Any]:
        """The entry's settings, all together."""
        return {key: value for name in entry.names for key, value in self.settings[name].items()}

    def _span(self, entry: Entry, clip: Clip) -> tuple[float, float]:
        """The seconds to keep: the row's span, and what windows longer than it take of the clip after it."""
        start = entry.start or 0.0
        if entry.end is None:
            return start, max(start, clip.duration or 0.0)
        return start, max(entry.end, start + max(self.seconds[name] for name in entry.names)) + SLACK

    def _decode(self, entry: Entry) -> MemoryClip:
        options = self._options(entry)
        with open_clip(entry.path, timeout=self.timeout, fps=entry.fps) as clip:
            reads = {self.reads[name] for name in entry.names}
            start, stop = self._span(entry, clip)
            return decode_all(clip, reads, start, stop, options.get("short_side"), options.get("rate", 0))

    def _load(self, entry: Entry) -> MemoryClip:
        """The entry from its file, which is made if it is not there or damaged."""
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
        clip = self._decode(entry)
        try:
            write_atomically(file, clip.save)
        except MBTError as error:
            warnings.warn(f"{error}. Clips are decoded anew each time", MBTWarning, stacklevel=1)
        return clip

    def _size(self, entry: Entry) -> int:
        """Bytes an entry will take, from the file's header; 0 if it cannot be read."""
        reads = {self.reads[name] for name in entry.names}
        options = self._options(entry)
        size = 0.0
        try:
            with open_clip(entry.path, timeout=self.timeout, fps=entry.fps) as clip:
                start, stop = self._span(entry, clip)
                if "frames" in reads and clip.size is not None:
                    height, width = clip.size
                    scale = options["short_side"] / min(height, width) if options.get("short_side") else 1.0
                    seconds = min(stop, clip.duration_of("frames") or 0.0) - start
                    frames = max(1.0, seconds * (clip.frame_rate or 0.0))
                    size += frames * height * width * 3 * scale**2
                if "waveform" in reads and clip.has("waveform"):
                    size += max(0.0, min(stop, clip.duration_of("waveform") or 0.0) - start) * options["rate"] * 4
                if "array" in reads and clip.has("array"):
                    size += 4 * math.prod(clip.shape)
        except (DataError, OSError):
            return 0
        return round(size)


def disk_folder(name: str = "decoded") -> Path:
    """``$MBT_CACHE/NAME``, by default ``~/.cache/mbt/NAME``."""
    return cache_folder() / name

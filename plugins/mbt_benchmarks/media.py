"""Finds media files by the names people give them: one listing of each folder, no look for each guess."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mbt_core import Clip
from mbt_core.errors import ConfigError
from mbt_core.media import MediaError

VIDEOS = {".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".flv", ".mpg", ".mpeg", ".ts"}
SOUNDS = {".wav", ".flac", ".m4a", ".mp3", ".ogg", ".opus", ".aac"}
ARCHIVES = {".hdf5", ".h5"}
ID_LENGTH = 11
"""Characters of a YouTube id."""
SAMPLE = 32
"""Files whose length is looked at to see what plain names stand for."""
SLACK = 1.5
"""Seconds by which a cut-out clip may be longer than its segment."""
_TIMES = re.compile(r"[_-](\d+(?:\.\d+)?)(?:[_-]\d+(?:\.\d+)?)?")


class Segment(NamedTuple):
    """A part of a YouTube video, in seconds."""

    video: str
    start: float
    end: float


class Found(NamedTuple):
    """A file of a segment; `plain`: named after the video alone."""

    path: str
    plain: bool


@dataclass
class MediaFolder:
    """The media files below a folder, by name without suffix; paths are relative to it.

    Args:
        root: the folder.
        videos, sounds: name -> paths.
        folders: folders whose name was asked for -> their paths; what is in them is not listed.
        archives: HDF5 files.
    """

    root: Path
    videos: dict[str, list[str]] = field(default_factory=dict)
    sounds: dict[str, list[str]] = field(default_factory=dict)
    folders: dict[str, list[str]] = field(default_factory=dict)
    archives: list[str] = field(default_factory=list)

    @classmethod
    def listed(cls, root: Path, folders: Collection[str] = ()) -> MediaFolder:
        """Lists each folder once, links followed, hidden ones left out. Raises `ConfigError` if there is none."""
        if not root.is_dir():
            raise ConfigError(f"--media {root}: there is no such folder")
        found, seen = cls(root), set()
        for folder, inner, names in os.walk(root, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:  # a link that leads back
                inner.clear()
                continue
            seen.add(real)
            for name in sorted(set(inner) & set(folders)):
                found.folders.setdefault(name, []).append(os.path.relpath(os.path.join(folder, name), root))
            inner[:] = sorted(name for name in inner if name not in folders and not name.startswith("."))
            below = "" if folder == str(root) else os.path.relpath(folder, root) + os.sep
            for name in sorted(names):
                stem, suffix = os.path.splitext(name)
                kinds = {**dict.fromkeys(VIDEOS, found.videos), **dict.fromkeys(SOUNDS, found.sounds)}
                if suffix.lower() in kinds and not name.startswith("."):
                    kinds[suffix.lower()].setdefault(stem, []).append(below + name)
                if suffix.lower() in ARCHIVES and not name.startswith("."):
                    found.archives.append(below + name)
        return found


class YouTubeFiles:
    """Files named ``ID``, ``ID_START`` or ``ID_START_END``, with or without a ``Y`` before it.

    START is in seconds (``30``, ``000030``, ``30.000``) or milliseconds (``30000``).
    """

    def __init__(self, files: dict[str, list[str]]) -> None:
        self.by_id: dict[str, list[tuple[str, str]]] = {}
        for stem, paths in files.items():
            for first in (0, 1) if stem.startswith("Y") else (0,):
                video, rest = stem[first : first + ID_LENGTH], stem[first + ID_LENGTH :]
                if len(video) == ID_LENGTH and (not rest or _TIMES.fullmatch(rest)):
                    self.by_id.setdefault(video, []).append((rest, paths[0]))

    def find(self, segment: Segment) -> Found | None:
        """The file of the segment, else that named after the video alone."""
        plain = None
        for rest, path in self.by_id.get(segment.video, ()):
            times = _TIMES.fullmatch(rest)
            if times is None:
                plain = Found(path, plain=True)
            elif float(times[1]) in (segment.start, 1000 * segment.start):
                return Found(path, plain=False)
        return plain


def youtube_columns(segments: Sequence[Segment], root: Path) -> tuple[dict[str, list[Any]], list[str]]:
    """The columns ``path``, ``start``, ``end`` and, if there are sound files beside the videos, ``audio``.

    Files named after the video alone may be the whole video, or the segment cut out of it; their length tells. Only for
    whole videos start and end are given.

    Returns:
        The columns, and notes for the user.
    """
    folder = MediaFolder.listed(root)
    videos, sounds = YouTubeFiles(folder.videos), YouTubeFiles(folder.sounds)
    pictures = [videos.find(segment) for segment in segments]
    sound = [sounds.find(segment) for segment in segments]
    # start and end are those of all the row's files: only files of the same form belong together
    sound = [s if s is None or p is None or p.plain == s.plain else None for p, s in zip(pictures, sound, strict=True)]
    main = [p or s for p, s in zip(pictures, sound, strict=True)]
    plain = [i for i, found in enumerate(main) if found is not None and found.plain]
    whole, note = _whole([(os.path.join(root, main[i].path), segments[i]) for i in plain])  # type: ignore[union-attr]
    spans: list[Segment | None] = [None] * len(segments)
    for i in (i for i, is_whole in zip(plain, whole, strict=True) if is_whole):
        spans[i] = segments[i]
    columns: dict[str, list[Any]] = {"path": [found.path if found else "" for found in main]}
    if any(p and s for p, s in zip(pictures, sound, strict=True)):
        columns["audio"] = [found.path if found else "" for found in map(_either, sound, pictures)]
    if any(spans):
        columns["start"] = [span.start if span else None for span in spans]
        columns["end"] = [span.end if span else None for span in spans]
    return columns, [note] if note else []


def _either(first: Found | None, second: Found | None) -> Found | None:
    return first or second


def _whole(files: Sequence[tuple[str, Segment]]) -> tuple[list[bool], str]:
    """Which of the files are whole videos and not their segment alone, and a note. If a sample agrees, so do all."""
    if not files:
        return [], ""
    step = max(1, len(files) // SAMPLE)
    found = {is_longer for is_longer in _are_longer(files[::step]) if is_longer is not None}
    told = f"{len(files)} files are named after the video alone"
    if len(found) < 2:
        is_whole = True in found
        what = "whole videos: start and end are given" if is_whole else "cut to their segment: no start and end"
        return [is_whole] * len(files), f"{told}; by the lengths of some they are {what}"
    each = [bool(is_longer) for is_longer in _are_longer(files)]
    return each, f"{told}; by their lengths {sum(each)} are whole videos, for which start and end are given"


def _are_longer(files: Sequence[tuple[str, Segment]]) -> list[bool | None]:
    """Whether each file is longer than its segment; None: it cannot be read."""

    def is_longer(item: tuple[str, Segment]) -> bool | None:
        path, segment = item
        try:
            with Clip(path) as clip:
                return (clip.duration or 0.0) > segment.end - segment.start + SLACK
        except MediaError:
            return None

    with ThreadPoolExecutor() as pool:
        return list(pool.map(is_longer, files))

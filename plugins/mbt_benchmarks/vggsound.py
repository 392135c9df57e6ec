"""VGGSound (Chen et al., ICASSP 2020): 10 s of YouTube videos, one of 309 classes each.

Annotation files: ``vggsound.csv`` (``YouTube ID, start seconds, label, split``), or the older ``train.csv`` and
``test.csv`` (``ID_START.mp4, label``), which are read only without it; ``stat.csv`` lists the classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mbt_benchmarks.annotations import find_file, need_file, read_lines, seconds
from mbt_benchmarks.media import ID_LENGTH, Segment, youtube_columns
from mbt_core.errors import ConfigError, DataError
from mbt_core.plugins.hookspecs import BuiltData

LENGTH = 10.0
"""Seconds of a clip."""


class Clip(NamedTuple):
    """A row of the annotation files."""

    segment: Segment
    label: str
    split: str


def build(annotations: Path, media: Path, subset: str | None, seed: int) -> BuiltData:
    """All rows; classes are in the order of their names, as the authors' own code numbers them."""
    if subset is not None:
        raise ConfigError(f"--subset {subset}: VGGSound has no parts")
    clips = read_clips(annotations)
    segments = [clip.segment for clip in clips]
    columns, notes = youtube_columns(segments, media)
    absent = {"train", "test"} - {clip.split for clip in clips}
    notes += [f"the annotation files have no row of the {split} split" for split in sorted(absent)]
    return BuiltData(
        {
            "id": [name_of(segment) for segment in segments],
            **columns,
            "label": [clip.label for clip in clips],
            "split": [clip.split for clip in clips],
        },
        tuple(name for name in ("path", "audio") if name in columns),
        [f"{name_of(segment)}.mp4" for segment in segments],
        {"label": class_names(annotations, clips)},
        notes,
    )


def name_of(segment: Segment) -> str:
    """``ID_START``, six digits."""
    return f"{segment.video}_{int(segment.start):06d}"


def segment_of(name: str, where: str) -> Segment:
    """``ID_START`` -> the segment. Raises `DataError`."""
    video, start = name[:ID_LENGTH], name[ID_LENGTH + 1 :]
    if len(video) < ID_LENGTH or not start.isdigit() or name[ID_LENGTH] != "_":
        raise DataError(f"{where}: expected ID_START, a YouTube id and six digits, got {name!r}")
    return Segment(video, float(start), float(start) + LENGTH)


def read_clips(annotations: Path) -> list[Clip]:
    """The rows of ``vggsound.csv``, or else of ``train.csv`` and ``test.csv``."""
    path = find_file(annotations, ("vggsound.csv",))
    if path is not None:
        rows = ((*cells[:3], cells[3].strip()) for cells in read_lines(path, 4))
        return [Clip(_at(video, seconds(start, str(path))), label, split) for video, start, label, split in rows]
    files = {split: find_file(annotations, (f"{split}.csv",)) for split in ("train", "test")}
    if not any(files.values()):
        need_file(annotations, "vggsound.csv", "train.csv", "test.csv")
    return [
        Clip(segment_of(cells[0].removesuffix(".mp4"), str(file)), cells[1], split)
        for split, file in files.items()
        if file is not None
        for cells in read_lines(file, 2)
    ]


def _at(video: str, start: float) -> Segment:
    return Segment(video, start, start + LENGTH)


def class_names(annotations: Path, clips: Sequence[Clip]) -> list[str]:
    """The sorted classes of ``stat.csv``, or else those of all rows."""
    path = find_file(annotations, ("stat.csv",))
    return sorted({cells[0] for cells in read_lines(path, 1)} if path else {clip.label for clip in clips})

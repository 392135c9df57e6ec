"""Kinetics-400 (Kay et al., arXiv 1705.06950): 10 s of YouTube videos, one of 400 classes each.

Annotation files: ``train.csv``, ``val.csv`` (or ``validate.csv``) and ``test.csv``, plain or with ``kinetics400_`` or
``kinetics_`` before the name, with the columns ``label, youtube_id, time_start, time_end``.
"""

from __future__ import annotations

from pathlib import Path

from mbt_benchmarks.annotations import find_file, need_file, read_records, seconds
from mbt_benchmarks.media import Segment, youtube_columns
from mbt_core.errors import ConfigError
from mbt_core.plugins.hookspecs import BuiltData

FILES = {"train": ("train",), "val": ("val", "validate"), "test": ("test",)}
PREFIXES = ("", "kinetics400_", "kinetics_400_", "kinetics_", "k400_")


def build(annotations: Path, media: Path, subset: str | None, seed: int) -> BuiltData:
    """All rows with a label; classes are in the order of their names."""
    if subset is not None:
        raise ConfigError(f"--subset {subset}: Kinetics-400 has no parts")
    rows: list[tuple[Segment, str, str]] = []
    for split, names in FILES.items():
        path = find_file(annotations, tuple(f"{prefix}{name}.csv" for name in names for prefix in PREFIXES))
        for record in read_records(path, "label", "youtube_id", "time_start", "time_end") if path else ():
            start, end = (seconds(record[name], str(path)) for name in ("time_start", "time_end"))
            if record["label"]:
                rows.append((Segment(record["youtube_id"], start, end), record["label"], split))
    if not rows:
        need_file(annotations, *(f"{name}.csv" for names in FILES.values() for name in names))
    segments = [segment for segment, _, _ in rows]
    columns, notes = youtube_columns(segments, media)
    ids = [f"{segment.video}_{int(segment.start):06d}_{int(segment.end):06d}" for segment in segments]
    return BuiltData(
        {
            "id": ids,
            **columns,
            "label": [label for _, label, _ in rows],
            "split": [split for _, _, split in rows],
        },
        tuple(name for name in ("path", "audio") if name in columns),
        [f"{name}.mp4" for name in ids],
        {"label": sorted({label for _, label, _ in rows})},
        notes,
    )

"""Epic-Kitchens-100 (Damen et al., IJCV 2022): actions in videos of kitchens, a verb of 97 and a noun of 300 each.

Annotation files: ``EPIC_100_train.csv``, ``EPIC_100_validation.csv``, ``EPIC_100_verb_classes.csv``,
``EPIC_100_noun_classes.csv``, and ``EPIC_100_video_info.csv`` for folders of frames. Media, anywhere below the folder:

- ``VIDEO.mp4``, untrimmed: start and end cut each action out of it;
- ``.../rgb_frames/VIDEO/frame_0000000001.jpg`` and, for the sound, ``VIDEO.wav`` or ``VIDEO.mp4``;
- ``NARRATION_ID.mp4``, already cut.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mbt_benchmarks.annotations import find_file, need_file, read_records, seconds, whole_number
from mbt_benchmarks.media import MediaFolder
from mbt_core.errors import ConfigError, DataError
from mbt_core.hookspecs import BuiltData

FILES = {"train": "EPIC_100_train.csv", "val": "EPIC_100_validation.csv"}
TASKS = ("verb", "noun")
PICTURES = (".jpg", ".jpeg", ".png")


def build(annotations: Path, media: Path, subset: str | None, seed: int) -> BuiltData:
    """All rows; the validation file is the split ``val``."""
    if subset is not None:
        raise ConfigError(f"--subset {subset}: Epic-Kitchens-100 has no parts")
    classes = {task: _class_names(need_file(annotations, f"EPIC_100_{task}_classes.csv")) for task in TASKS}
    rows = [
        {**record, "split": split}
        for split, name in FILES.items()
        if (path := find_file(annotations, (name,))) is not None
        for record in read_records(path, "narration_id", "video_id", "start_timestamp", "stop_timestamp", "verb_class")
    ]
    if not rows:
        need_file(annotations, *FILES.values())
    columns, files, notes = _media(rows, media, annotations)
    absent = FILES.keys() - {row["split"] for row in rows}
    notes += [f"{annotations} has no {FILES[split]}: there is no {split} split" for split in sorted(absent)]
    labels = {f"label.{task}": [_name_of(row, task, names) for row in rows] for task, names in classes.items()}
    return BuiltData(
        {
            "id": [row["narration_id"] for row in rows],
            **columns,
            **labels,
            "split": [row["split"] for row in rows],
            "participant": [row.get("participant_id") or row["video_id"].partition("_")[0] for row in rows],
        },
        files,
        [f"{row['video_id']}.MP4" for row in rows],
        classes,
        notes,
    )


def _media(
    rows: list[dict[str, str]], root: Path, annotations: Path
) -> tuple[dict[str, list[Any]], tuple[str, ...], list[str]]:
    """Columns of files and spans, the names of those of files, and notes."""
    videos = dict.fromkeys(row["video_id"] for row in rows)
    folder = MediaFolder.listed(root, set(videos))
    frames = {video: path for video in videos if (path := _frame_folder(folder, video))}
    columns: dict[str, list[Any]] = {name: [] for name in ("path", "start", "end", "rgb", "audio", "fps")}
    rates = _frame_rates(annotations, frames)
    for row in rows:
        video, where = row["video_id"], row["narration_id"]
        cut = folder.videos.get(where, [""])[0]
        movie, sound = (found.get(video, [""])[0] for found in (folder.videos, folder.sounds))
        columns["path"].append(cut or movie)
        columns["start"].append(None if cut else seconds(row["start_timestamp"], where))
        columns["end"].append(None if cut else seconds(row["stop_timestamp"], where))
        columns["rgb"].append(cut or frames.get(video) or movie)
        columns["audio"].append(cut or sound or movie)
        columns["fps"].append(None if cut or video not in frames else rates[video])
    apart = bool(frames) or any(folder.sounds.get(video) for video in videos)
    unused = ("path",) if apart else ("rgb", "audio", "fps")
    kept = {name: cells for name, cells in columns.items() if name not in unused}
    notes = [f"{len(frames)} of {len(videos)} videos are folders of frames"] if frames else []
    return kept, ("rgb", "audio") if apart else ("path",), notes


def _frame_folder(folder: MediaFolder, video: str) -> str:
    """The folder of the video's RGB frames, one that holds pictures itself; ``""`` if there is none."""
    for path in folder.folders.get(video, ()):
        with os.scandir(folder.root / path) as entries:
            if any(entry.name.lower().endswith(PICTURES) for entry in entries):
                return path
    return ""


def _frame_rates(annotations: Path, videos: dict[str, str]) -> dict[str, float]:
    """Video -> frames a second. Raises `DataError` for a video without."""
    if not videos:
        return {}
    path = need_file(annotations, "EPIC_100_video_info.csv")
    rates = {record["video_id"]: float(record["fps"]) for record in read_records(path, "video_id", "fps")}
    unknown = [video for video in videos if video not in rates]
    if unknown:
        raise DataError(f"{path} has no frame rate of {len(unknown)} videos with frames, e.g. {unknown[0]}")
    return rates


def _class_names(path: Path) -> list[str]:
    """Names by the number of their class. Raises `DataError` if numbers are left out."""
    names = {whole_number(record["id"], str(path)): record["key"] for record in read_records(path, "id", "key")}
    if sorted(names) != list(range(len(names))):
        raise DataError(f"{path}: expected the ids 0 to {len(names) - 1}")
    return [names[number] for number in range(len(names))]


def _name_of(row: dict[str, str], task: str, names: list[str]) -> str:
    number = whole_number(row[f"{task}_class"], row["narration_id"])
    if not 0 <= number < len(names):
        raise DataError(f"{row['narration_id']}: {task}_class {number}, but there are {len(names)} classes")
    return names[number]

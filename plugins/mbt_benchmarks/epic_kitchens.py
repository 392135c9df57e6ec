"""Epic-Kitchens-100 (Damen et al., IJCV 2022): actions in videos of kitchens, a verb of 97 and a noun of 300 each.

Annotation files: ``EPIC_100_train.csv``, ``EPIC_100_validation.csv``, ``EPIC_100_verb_classes.csv``,
``EPIC_100_noun_classes.csv``, and ``EPIC_100_video_info.csv`` for folders of frames. Media, anywhere below the folder:

- ``VIDEO.mp4``, untrimmed: start and end cut each action out of it;
- ``.../rgb_frames/VIDEO/frame_0000000001.jpg`` and, for the sound, ``VIDEO.wav``, ``EPIC_audio.hdf5`` with a data set
  for each video, or ``VIDEO.mp4``;
- ``.../flow_frames/VIDEO/u/frame_0000000001.jpg`` and ``v``;
- ``NARRATION_ID.mp4``, already cut.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mbt_benchmarks.annotations import find_file, need_file, number_above_0, read_records, seconds, whole_number
from mbt_benchmarks.media import MediaFolder
from mbt_core.errors import ConfigError, DataError
from mbt_core.media import recordings
from mbt_core.media.folders import numbering
from mbt_core.plugins.hookspecs import BuiltData

FILES = {"train": "EPIC_100_train.csv", "val": "EPIC_100_validation.csv"}
TASKS = ("verb", "noun")
COLUMNS = ("narration_id", "video_id", "start_timestamp", "stop_timestamp", *(f"{task}_class" for task in TASKS))
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
        for record in read_records(path, *COLUMNS)
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
    flows = {video: path for video in videos if (path := _flow_folder(folder, video))}
    recorded = {key: f"{path}/{key}" for path in folder.archives for key in recordings(str(root / path))}
    info = _video_info(annotations, [*frames, *flows])
    flow_rates = {video: _flow_rate(root / path, info[video]) for video, path in flows.items()}
    names = ("path", "start", "end", "rgb", "audio", "fps", "flow", "flow.fps")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for row in rows:
        video, where = row["video_id"], row["narration_id"]
        cut = folder.videos.get(where, [""])[0]
        movie, sound = (found.get(video, [""])[0] for found in (folder.videos, folder.sounds))
        columns["path"].append(cut or movie)
        columns["start"].append(None if cut else seconds(row["start_timestamp"], where))
        columns["end"].append(None if cut else seconds(row["stop_timestamp"], where))
        columns["rgb"].append(cut or frames.get(video) or movie)
        columns["audio"].append(cut or sound or recorded.get(video) or movie)
        columns["fps"].append(None if cut or video not in frames else info[video].fps)
        columns["flow"].append("" if cut else flows.get(video, ""))  # start and end are those of all the row's files
        columns["flow.fps"].append(None if cut else flow_rates.get(video))
    apart = bool(frames) or any(folder.sounds.get(video) or video in recorded for video in videos)
    unused = {"path"} if apart else {"rgb", "audio"}
    unused |= (set() if frames else {"fps"}) | (set() if flows else {"flow", "flow.fps"})
    kept = {name: cells for name, cells in columns.items() if name not in unused}
    found = {"folders of frames": frames, "folders of flow": flows, "recordings in HDF5": recorded.keys() & videos}
    notes = [f"{len(some)} of {len(videos)} videos are {what}" for what, some in found.items() if some]
    return kept, tuple(name for name in ("path", "rgb", "audio", "flow") if name in kept), notes


def _frame_folder(folder: MediaFolder, video: str) -> str:
    """The folder of the video's RGB frames, one that holds pictures itself; ``""`` if there is none."""
    for path in folder.folders.get(video, ()):
        with suppress(OSError), os.scandir(folder.root / path) as entries:  # one that cannot be listed holds none
            if any(entry.name.lower().endswith(PICTURES) for entry in entries):
                return path
    return ""


def _flow_folder(folder: MediaFolder, video: str) -> str:
    """The folder of the video's flow, with the sub-folders ``u`` and ``v``; ``""`` if there is none."""
    for path in folder.folders.get(video, ()):
        if all((folder.root / path / axis).is_dir() for axis in "uv"):
            return path
    return ""


class _Info(NamedTuple):
    """A line of ``EPIC_100_video_info.csv``: seconds, and frames a second."""

    duration: float
    fps: float


def _video_info(annotations: Path, videos: list[str]) -> dict[str, _Info]:
    """Video -> what is known of it. Raises `DataError` for a video without."""
    if not videos:
        return {}
    path = need_file(annotations, "EPIC_100_video_info.csv")
    records = read_records(path, "video_id", "duration", "fps")
    found = {
        record["video_id"]: _Info(*(number_above_0(record[name], f"{path}: {name}") for name in ("duration", "fps")))
        for record in records
    }
    unknown = [video for video in videos if video not in found]
    if unknown:
        raise DataError(f"{path} has no frame rate of {len(unknown)} videos with frames, e.g. {unknown[0]}")
    return found


def _flow_rate(folder: Path, info: _Info) -> float:
    """Fields a second: flow was computed for every frame, or for every second or third one, as their number tells."""
    names = numbering(str(folder / "u"))
    fields = 0 if names is None else names.frames
    step = min((1, 2, 3), key=lambda step: abs(fields * step / info.fps - info.duration))
    return info.fps / step


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

"""VGGSounder (Zverev et al., ICCV 2025): VGGSound's test clips with all their classes, and which modality shows each.

Annotation file: ``vggsounder.csv`` with a line for each label of a clip, ``video_id, label, modality`` (``A``, ``V`` or
``AV``) and flags of the clip, ``background_music, static_image, voice_over``. The classes are those of VGGSound, from
its ``stat.csv``.
"""

from __future__ import annotations

from pathlib import Path

from mbt_benchmarks.annotations import find_file, need_file, read_lines, read_records
from mbt_benchmarks.media import youtube_columns
from mbt_benchmarks.vggsound import name_of, segment_of
from mbt_core.errors import ConfigError, DataError
from mbt_core.plugins.hookspecs import BuiltData

SHOWN_BY = {"audible": ("A", "AV"), "visible": ("V", "AV")}
"""Column -> modalities of the labels in it."""
FLAGS = ("background_music", "static_image", "voice_over")


def build(annotations: Path, media: Path, subset: str | None, seed: int) -> BuiltData:
    """One row a clip, split ``test``; ``audible`` and ``visible`` are the labels that sound and picture show.

    Args:
        annotations: folder of ``vggsounder.csv`` and VGGSound's ``stat.csv``.
        media: folder of VGGSound's clips.
        subset: ``audible`` or ``visible``: only these labels, and only clips that have any; by default all.
        seed: not used.
    """
    if subset not in (None, *SHOWN_BY):
        raise ConfigError(f"--subset {subset}: expected {' or '.join(SHOWN_BY)}, or nothing for all labels")
    path = need_file(annotations, "vggsounder.csv", "vggsounder+background-music.csv")
    labels: dict[str, dict[str, str]] = {}
    flags: dict[str, dict[str, str]] = {}
    for record in read_records(path, "video_id", "label", "modality"):
        modality = record["modality"].strip().upper()
        if modality not in ("A", "V", "AV"):
            raise DataError(f"{path}: {record['video_id']}: expected the modality A, V or AV, got {modality!r}")
        labels.setdefault(record["video_id"], {})[record["label"]] = modality
        flags[record["video_id"]] = {name: record.get(name, "") or "" for name in FLAGS}
    if subset is not None:
        labels = {clip: found for clip, found in labels.items() if set(found.values()) & set(SHOWN_BY[subset])}
    segments = [segment_of(clip, str(path)) for clip in labels]
    columns, notes = youtube_columns(segments, media)
    shown = {
        column: [_joined(found, modalities) for found in labels.values()] for column, modalities in SHOWN_BY.items()
    }
    return BuiltData(
        {
            "id": [name_of(segment) for segment in segments],
            **columns,
            "label": shown[subset] if subset else [_joined(found, ("A", "V", "AV")) for found in labels.values()],
            "split": ["test"] * len(labels),
            **shown,
            **{name: [flags[clip][name] for clip in labels] for name in FLAGS},
        },
        tuple(name for name in ("path", "audio") if name in columns),
        [f"{name_of(segment)}.mp4" for segment in segments],
        {"label": _class_names(annotations, {name for found in labels.values() for name in found})},
        notes,
    )


def _joined(labels: dict[str, str], modalities: tuple[str, ...]) -> str:
    """The labels shown by one of `modalities`; ``;`` for none of the classes."""
    return ";".join(name for name, modality in labels.items() if modality in modalities) or ";"


def _class_names(annotations: Path, used: set[str]) -> list[str]:
    """VGGSound's classes in its order, and after them those that it does not have."""
    path = find_file(annotations, ("stat.csv",))
    known = sorted({cells[0] for cells in read_lines(path, 1)}) if path else []
    return known + sorted(used - set(known))

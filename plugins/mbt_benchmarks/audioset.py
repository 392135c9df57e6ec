"""AudioSet (Gemmeke et al., ICASSP 2017): 10 s of YouTube videos, several of 527 classes each.

Annotation files: ``class_labels_indices.csv``, ``eval_segments.csv``, ``balanced_train_segments.csv`` and, for the
larger training sets, ``unbalanced_train_segments.csv``.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np

from mbt_benchmarks.annotations import find_file, need_file, read_lines, read_records, seconds, whole_number
from mbt_benchmarks.media import Segment, youtube_columns
from mbt_core.errors import ConfigError, DataError, nearest, unknown
from mbt_core.plugins.hookspecs import BuiltData

SUBSETS = ("mini", "500k", "full")
HALF_MILLION = 500_000


def build(annotations: Path, media: Path, subset: str | None, seed: int) -> BuiltData:
    """Training set and eval segments (split ``test``).

    Args:
        annotations: folder of the annotation files.
        media: folder of clips or whole videos.
        subset: ``mini`` (the default): the 20k balanced segments; ``500k``: 500,000 of the unbalanced ones, see
            `balanced_subset`; ``full``: all 2 million.
        seed: of ``500k``.
    """
    subset = subset or "mini"
    if subset not in SUBSETS:
        raise ConfigError(f"--subset: {unknown('part of AudioSet', subset, SUBSETS)}")
    names = _class_names(need_file(annotations, "class_labels_indices.csv"))
    parts = [("train", segments) for segments in _training(annotations, subset, seed)]
    evaluation = find_file(annotations, ("eval_segments.csv",))
    if evaluation is not None:
        parts.append(("test", list(_read(evaluation))))
    segments = [segment for _, found in parts for segment, _ in found]
    columns, notes = youtube_columns(segments, media)
    if evaluation is None:
        notes.append(f"{annotations} has no eval_segments.csv: there is no test split")
    return BuiltData(
        {
            "id": [f"{segment.video}_{segment.start:g}" for segment in segments],
            **columns,
            "label": [_label(mids, names) for _, found in parts for _, mids in found],
            "split": [split for split, found in parts for _ in found],
        },
        tuple(name for name in ("path", "audio") if name in columns),
        [f"{segment.video}_{segment.start:g}.mp4" for segment in segments],
        {"label": list(names.values())},
        notes,
    )


def balanced_subset(labels: Sequence[Sequence[str]], ids: Sequence[str], size: int, seed: int) -> np.ndarray:
    """Rows of a more balanced subset of `size` rows, in ascending order.

    Each class has its rows in an order of its own at random: by a hash of (seed, id). A row's rank is the best place
    that it has among the rows of any of its classes; the `size` rows of the best ranks are taken (at the same rank by
    the hash). So for some number c the subset is the first c rows of every class: classes with at most c rows keep all
    of them. It depends on nothing but the rows and the seed, and a smaller subset is part of a larger one.
    """
    salt = str(seed).encode()[:16]
    digests = b"".join(blake2b(name.encode(), digest_size=8, salt=salt).digest() for name in ids)
    keys = np.frombuffer(digests, "<u8")
    owner = np.repeat(np.arange(len(labels)), [len(classes) for classes in labels])
    member = np.unique([name for classes in labels for name in classes], return_inverse=True)[1]
    order = np.lexsort((keys[owner], member))
    starts = np.searchsorted(member[order], member[order])  # where each one's class begins
    best = np.full(len(labels), len(owner))
    np.minimum.at(best, owner[order], np.arange(len(order)) - starts)
    return np.sort(np.lexsort((keys, best))[:size])


Annotated = tuple[Segment, list[str]]
"""A segment and the ids of its classes."""


def _training(annotations: Path, subset: str, seed: int) -> list[list[Annotated]]:
    if subset == "mini":
        return [list(_read(need_file(annotations, "balanced_train_segments.csv")))]
    unbalanced = list(_read(need_file(annotations, "unbalanced_train_segments.csv")))
    if subset == "full":
        return [unbalanced, list(_read(need_file(annotations, "balanced_train_segments.csv")))]
    ids = [segment.video for segment, _ in unbalanced]
    chosen = balanced_subset([mids for _, mids in unbalanced], ids, HALF_MILLION, seed)
    return [[unbalanced[i] for i in chosen]]


def _read(path: Path) -> list[Annotated]:
    return [
        (Segment(cells[0], seconds(cells[1], str(path)), seconds(cells[2], str(path))), cells[3].split(","))
        for cells in read_lines(path, 4)
    ]


def _class_names(path: Path) -> dict[str, str]:
    """Id of a class -> its name, in the official order."""
    records = list(read_records(path, "index", "mid", "display_name"))
    records.sort(key=lambda record: whole_number(record["index"], f"{path}: index"))
    return {record["mid"]: record["display_name"] for record in records}


def _label(mids: Sequence[str], names: dict[str, str]) -> str:
    try:
        return ";".join(names[mid] for mid in mids)
    except KeyError as error:
        mid = str(error.args[0])
        raise DataError(f"the class {mid!r} is not in class_labels_indices.csv.{nearest(mid, names)}") from None

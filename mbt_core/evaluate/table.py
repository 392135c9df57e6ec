"""``predictions.parquet``: what a model says of every example it was evaluated on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
import torch
from torch import Tensor

from mbt_core.config import HeadConfig
from mbt_core.data.manifest import Manifest
from mbt_core.data.splits import TEST, VAL
from mbt_core.errors import DataError
from mbt_core.evaluate.evaluator import FUSED, Evaluation, Subset
from mbt_core.evaluate.missing_modalities import missing_curves
from mbt_core.evaluate.subsets import Rows, by_name, confusion, on_rows
from mbt_core.io.files import read_parquet, write_atomically
from mbt_core.io.remote import address

FILE = "predictions.parquet"
PREFIX = "eval-"
NOTES = ("classes", "majority", "about")
"""What the metadata of the file hold, each as JSON."""


@dataclass(frozen=True)
class About:
    """How an evaluation came to be, kept in the metadata of its file.

    Args:
        data: the other manifest that was evaluated, or its URL; None: the run's own.
        views: windows per clip.
        subsets: modalities joined by ``+`` -> ``examples`` and metrics, where subsets were evaluated.
        confusion: of modalities; see `mbt_core.evaluate.subsets.confusion`.
        missing: points as of `mbt_core.evaluate.missing_modalities.missing_curves`, where all but one was evaluated.
        rows: which rows those of `subsets` and `confusion` are; see `mbt_core.evaluate.subsets.on_rows`.
    """

    data: str | None = None
    views: int | None = None
    subsets: dict[str, dict[str, float]] = field(default_factory=dict)
    confusion: list[dict[str, Any]] = field(default_factory=list)
    missing: list[dict[str, Any]] = field(default_factory=list)
    rows: Rows = "own"

    @classmethod
    def of(cls, data: Path | None, views: int, found: Mapping[Subset, Evaluation], rows: Rows = "common") -> About:
        """Of what `mbt_core.evaluate.evaluator.evaluate` found."""
        source = None if data is None else address(data)
        if len(found) == 1:
            return cls(source, views)
        chosen, curves = on_rows(found, rows), [asdict(point) for point in missing_curves(found)]
        return cls(source, views, by_name(chosen), confusion(chosen), curves, rows)


def evaluation_folder(run: Path, manifest: Manifest, split: str, data: Path | None = None) -> Path:
    """Where the evaluation of a run goes: the run's folder for its own test split (val, where there is none).

    Anything else has a folder of its own in it: ``eval-SPLIT``, or ``eval-DATA-SPLIT`` for another manifest
    (``eval-DATA-SPLIT-2`` ... for others of that name).

    Args:
        run: its folder.
        manifest: that is evaluated.
        split: that is evaluated.
        data: file or folder of the manifest, if it is not the run's own.
    """
    if data is None:
        own = TEST if TEST in manifest.splits else VAL
        return run if split == own else run / f"{PREFIX}{_name(split)}"
    stem = f"{PREFIX}{_name(data.resolve().stem)}-{_name(split)}"
    number = 1
    while True:
        folder = run / (stem if number == 1 else f"{stem}-{number}")
        if not (folder / FILE).exists() or read_about(folder).data == address(data):
            return folder
        number += 1


def _name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.") or "data"


def write_predictions(
    folder: Path, found: Evaluation, manifest: Manifest, split: str, about: About | None = None
) -> None:
    """Writes ``predictions.parquet``, one row an example; those that could not be read come last.

    Columns: ``id``, ``split``, ``group`` (as of ``data.group``; null, where none is named), ``error`` (null, or why it
    could not be read); ``target``, a class index, or a list with one number a class; ``logits``, averaged over views
    and fused, and ``logits[NAME]`` of each modality (null where it is absent). With several tasks they are called
    ``TASK/target``, ``TASK/logits`` and so on. The file's metadata ``classes`` holds the names of the classes as JSON,
    task -> names; ``majority`` the largest classes of the train split, where known; ``about`` what `About` says.

    Args:
        folder: where it goes; made if it is not there.
        found: the evaluation.
        manifest: its rows.
        split: that was evaluated.
        about: how it came to be.
    """
    failed = sorted(found.failed)
    rows = [*found.index.tolist(), *failed]
    groups = manifest.groups
    columns = {
        "id": pa.array([manifest.row(row).id for row in rows], pa.string()),
        "split": pa.array([split] * len(rows), pa.string()),
        "group": pa.array([None if groups is None else groups.names[groups.codes[row]] for row in rows], pa.string()),
        "error": pa.array([found.failed.get(row) for row in rows], pa.string()),
    }
    single = found.head.tasks is None
    for task, target in found.targets.items():
        columns["target" if single else f"{task}/target"] = _column(target, None, len(failed))
    for source, logits in found.logits.items():
        for task, values in logits.items():
            name = "logits" if single else f"{task}/logits"
            columns[f"{name}[{source}]" if source else name] = _column(values, found.present.get(source), len(failed))
    notes = {"classes": manifest.classes, "majority": found.majority, "about": asdict(about or About())}
    table = pa.table(columns).replace_schema_metadata({k: json.dumps(v, ensure_ascii=False) for k, v in notes.items()})
    write_atomically(folder / FILE, lambda part: pa.parquet.write_table(table, part))


def _column(values: Tensor, present: Tensor | None, failed: int) -> pa.Array:
    """[N] or [N, C] as N numbers or lists, and `failed` nulls after them; null where not `present`."""
    here = np.ones(len(values), bool) if present is None else present.numpy()
    if values.dim() == 1:
        numbers = pa.array(values.numpy(), mask=~here)
        return pa.concat_arrays([numbers, pa.nulls(failed, numbers.type)])
    lengths = np.concatenate([here * values.shape[1], np.zeros(failed, np.int64)])
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
    missing = pa.array(np.concatenate([~here, np.ones(failed, bool)]))
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.float().numpy()[here].ravel()), mask=missing)


@dataclass(frozen=True)
class Predictions:
    """What ``predictions.parquet`` holds.

    Args:
        ids: of the examples, in the order of `found.index`, then of those that could not be read.
        groups: of the same examples; an example that has none is one of its own, called by its id.
        split: that was evaluated.
        classes: task -> names; empty for regression.
        about: how it came to be.
        found: the evaluation; its index and the keys of `failed` are places in `ids`.
    """

    ids: list[str]
    groups: list[str]
    split: str
    classes: dict[str, list[str]]
    about: About
    found: Evaluation


def counted(folder: Path) -> tuple[str, int]:
    """The split that was evaluated, and how many of its rows could be read. Raises `DataError` if it cannot be told."""
    path = folder / FILE
    try:
        table = read_parquet(path, ["split", "error"])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read: {' '.join(str(error).split())[:300]}") from None
    return (table["split"][0].as_py() if len(table) else ""), table["error"].null_count


def evaluated(run: Path, split: str) -> Path | None:
    """The folder that has a run's own evaluation of one of its splits; None: there is none."""
    for folder in (run / f"{PREFIX}{_name(split)}", run):
        with suppress(DataError):
            if counted(folder)[0] == split:
                return folder
    return None


def read_about(folder: Path) -> About:
    """How the evaluation in a folder came to be. Raises `DataError` if it cannot be read."""
    return About(**_notes(folder / FILE).get("about", {}))


def read_predictions(folder: Path, head: HeadConfig) -> Predictions:
    """Reads what `write_predictions` wrote.

    Args:
        folder: of the file.
        head: of the run: tasks and their kinds.

    Raises:
        DataError: if it cannot be read, or is of other tasks.
    """
    path = folder / FILE
    notes = _notes(path)
    try:
        table = read_parquet(path).combine_chunks()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read: {' '.join(str(error).split())[:300]}") from None
    errors = table["error"].to_pylist()
    ids, split = table["id"].to_pylist(), table["split"][0].as_py() if errors else ""
    named = table["group"].to_pylist() if "group" in table.column_names else [None] * len(ids)  # older files have none
    groups = [name or own for name, own in zip(named, ids, strict=True)]
    count = sum(error is None for error in errors)
    table = table.slice(0, count)
    single = head.tasks is None
    logits: dict[str, dict[str, Tensor]] = {}
    present: dict[str, Tensor] = {}
    try:
        targets = {task: _target(table["target" if single else f"{task}/target"]) for task in head.outputs if count}
        for source in _sources(table.column_names):
            for task, outputs in head.outputs.items():
                name = "logits" if single else f"{task}/logits"
                column = table[f"{name}[{source}]" if source else name]
                logits.setdefault(source, {})[task], here = _rows(column, outputs)
                if source != FUSED:
                    present[source] = here
    except (KeyError, ValueError) as error:
        raise DataError(f"{path}: not of the tasks of this run: {error}") from None
    failed = {place: error for place, error in enumerate(errors) if error is not None}
    majority = notes.get("majority", {})
    found = Evaluation(torch.arange(count), logits, targets, present, head, failed, majority)
    return Predictions(ids, groups, split, notes.get("classes", {}), About(**notes.get("about", {})), found)


def _notes(path: Path) -> dict[str, Any]:
    try:
        metadata = pa.parquet.read_schema(path).metadata or {}
        return {key: json.loads(metadata[key.encode()]) for key in NOTES if key.encode() in metadata}
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def _sources(columns: Sequence[str]) -> list[str]:
    """`FUSED` and the modalities whose logits are there, in order."""
    found = [re.fullmatch(r"(?:[^/]*/)?logits(?:\[(.*)\])?", name) for name in columns]
    return list(dict.fromkeys(match[1] or FUSED for match in found if match))


def _target(column: pa.ChunkedArray) -> Tensor:
    """[N] class indices, or [N, C]."""
    if not pa.types.is_list(column.type):
        return torch.from_numpy(column.to_numpy().copy())
    flat = pc.list_flatten(column).to_numpy()
    return torch.from_numpy(flat.reshape(len(column), -1).copy())


def _rows(column: pa.ChunkedArray, outputs: int) -> tuple[Tensor, Tensor]:
    """A column of lists with nulls as float32 [N, C], 0 where null, and bool [N] where it is not."""
    here = column.is_valid().to_numpy()
    values = np.zeros((len(column), outputs), np.float32)
    values[here] = pc.list_flatten(column).to_numpy().reshape(-1, outputs)
    return torch.from_numpy(values), torch.from_numpy(here)

"""The manifest: one row an example, with its files, window, labels and split."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mbt_core.config import DataConfig, TaskKind
from mbt_core.data.columns import (
    COLUMNS,
    RATE,
    TASK_PREFIX,
    Columns,
    SourceColumns,
    as_text,
    check_ids,
    encode,
    find_sources,
    is_number,
    read_rates,
    read_spans,
    refuse_file_names,
)
from mbt_core.data.holdout import TaskClasses, hold_out
from mbt_core.data.labels import Classes, Kinds, Labels, find_tasks, listed_classes, read_labels, task_classes
from mbt_core.data.shards import is_packed, located
from mbt_core.data.splits import TEST, TRAIN, VAL, Groups, Splits, check_groups, make_splits, pool, split_name
from mbt_core.data.tables import read_table
from mbt_core.errors import ConfigError, DataError, unknown
from mbt_core.io.files import is_folder


@dataclass(frozen=True, slots=True)
class Source:
    """Where one modality of one row is: a file, or a text."""

    path: str | None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One example of a manifest.

    Args:
        index: position in the manifest.
        id: its unique name.
        sources: modality -> where it is; None: absent (an empty cell).
        start, end: the span of the files that it is about, in seconds; None: not given.
        labels: task -> text of the cell, ``""`` if empty.
        fps: modality -> frames a second of its folder of pictures, where given.
    """

    index: int
    id: str
    sources: dict[str, Source | None]
    start: float | None
    end: float | None
    labels: dict[str, str]
    fps: dict[str, float] = field(default_factory=dict)

    def rate(self, names: Iterable[str]) -> float | None:
        """Frames a second of a folder of pictures that serves these modalities; None: not given."""
        return next((self.fps[name] for name in names if name in self.fps), None)

    def files(self) -> dict[str, list[str]]:
        """File -> the modalities it serves."""
        files: dict[str, list[str]] = {}
        for name, source in self.sources.items():
            if source is not None and source.path is not None:
                files.setdefault(source.path, []).append(name)
        return files


@dataclass
class Manifest:
    """The rows of a data set. Build it by `read`, or by `from_table` from columns in memory.

    Attributes:
        path: the manifest's file or folder.
        root: what its paths are relative to.
        reads: modality -> what it reads.
        labels: task -> its labels; ``label`` for the plain column, TASK for ``label.TASK``.
        splits: split -> rows in ascending order, after the split rules.
        confine: whether a file outside `root` is refused.
        ids: of the rows; unique.
        groups: the rows that belong together (``data.group``); None: no column is named.
        unsplit: rows have labels, and none says of which split it is: val and test, if there are any, were held out.
        fatal: row -> why it is not read any more: what reading processes have died of since the manifest was read.
    """

    path: Path
    root: Path
    reads: dict[str, str]
    labels: dict[str, Labels]
    splits: Splits
    confine: bool
    ids: pa.LargeStringArray = field(repr=False)
    _sources: dict[str, SourceColumns] = field(repr=False)
    _start: np.ndarray = field(repr=False)
    _end: np.ndarray = field(repr=False)
    _fps: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    groups: Groups | None = field(default=None, repr=False)
    unsplit: bool = False
    fatal: dict[int, str] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def read(
        cls,
        path: str | Path,
        reads: Mapping[str, str],
        config: DataConfig,
        classes: Classes | None = None,
        kinds: Kinds = None,
        labelled: bool = True,
    ) -> Self:
        """Reads a CSV, TSV, Parquet or JSONL file, a folder ``DIR/[split/]CLASS/file``, or a folder of shards.

        Args:
            path: the file or folder; of shards also their URL.
            reads: modality -> what it reads ("frames", "waveform", "array" or "text").
            config: root, confine, group, and the split rules.
            classes: task -> names in order (of a trained model); else those of ``MANIFEST.classes.json`` beside the
                manifest (``DIR/classes.json``), else the sorted names of the train split.
            kinds: kind of the tasks, of all or of each; None: ``multilabel`` where a cell holds ``;``, else ``single``.
            labelled: False: labels are left out (files to predict).

        Raises:
            DataError: if anything in it is not as expected; the message names the row.
        """
        path = located(path)
        if is_packed(path):  # made of what others packed: nothing outside of it is to be read
            config = config.model_copy(update={"root": None, "confine": True})
        fixed = {*COLUMNS, config.group, *reads, *(f"{name}.{more}" for name in reads for more in ("path", RATE))}
        table, found = read_table(path, lambda name: name in fixed or name.startswith(TASK_PREFIX))
        return cls.from_table(table, path, reads, config, classes, kinds, labelled, found=found)

    @classmethod
    def from_table(
        cls,
        table: pa.Table,
        path: Path,
        reads: Mapping[str, str],
        config: DataConfig,
        classes: Classes | None = None,
        kinds: Kinds = None,
        labelled: bool = True,
        found: Sequence[str] = (),
    ) -> Self:
        """`read` for columns in memory. `path` names them and gives the root; `found`: all columns there were."""
        columns = {name: as_text(table[name], f"{path}: column {name!r}") for name in table.column_names
                   if not is_number(name)}  # fmt: skip
        found = found or table.column_names
        start, end = read_spans(table, path)
        sources = {name: find_sources(name, kind, columns, path, found) for name, kind in reads.items()}
        ids = check_ids(columns, start, path, found)
        root = _root(path, config)
        for name, source in sources.items():
            if source.texts is not None:
                refuse_file_names(name, source.texts, root, path)
        if config.confine:
            _confine(sources, root, path)
        given = _given_splits(columns.get("split"), len(ids))
        if config.folds is not None:
            given = pool(given)
        encoded = {task: encode(columns[name]) for task, name in find_tasks(columns, path).items()} if labelled else {}
        labels = read_labels(encoded, given, classes, kinds, path)
        groups = _groups(ids, columns, config, path, found)
        unsplit = bool(encoded) and _is_unsplit(columns.get("split"))
        if unsplit and config.folds is None and config.test_fraction:
            given = _held_out(task_classes(encoded, kinds), groups, sources, ids, config)
            config = config.model_copy(update={"val_fraction": 0.0})
        splits = _splits(given, ids, encoded, groups, sources, config)
        manifest = cls(path, root, dict(reads), labels, splits, config.confine, ids, sources, start, end)
        manifest._fps, manifest.groups, manifest.unsplit = read_rates(table, reads, path), groups, unsplit
        for split in (TRAIN, VAL):
            if split in splits:
                manifest.require_labels(split)
        return manifest

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tasks(self) -> list[str]:
        return list(self.labels)

    @property
    def kinds(self) -> dict[str, TaskKind]:
        """Task -> its kind."""
        return {task: labels.kind for task, labels in self.labels.items()}

    @property
    def classes(self) -> dict[str, list[str]]:
        """Task -> names of its classes in order; empty for regression."""
        return {task: labels.names for task, labels in self.labels.items()}

    @property
    def outputs(self) -> dict[str, int]:
        """Task -> number of its classes, or of its numbers for regression."""
        return {task: labels.outputs for task, labels in self.labels.items()}

    def row(self, index: int) -> Row:
        """The row at `index`.

        Raises:
            DataError: if the root confines and a file is outside it (symbolic links are followed, also those in
                folders of pictures).
        """
        index = int(index)
        start, end = self._start[index], self._end[index]
        return Row(
            index,
            self.ids[index].as_py(),
            {name: self._source(columns, index) for name, columns in self._sources.items()},
            None if np.isnan(start) else float(start),
            None if np.isnan(end) else float(end),
            {task: labels.cell(index) for task, labels in self.labels.items()},
            {name: float(rates[index]) for name, rates in self._fps.items() if not np.isnan(rates[index])},
        )

    def spans(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Start and end of rows in seconds, float64 [len(rows)] each; NaN where not given."""
        return self._start[rows], self._end[rows]

    def find(self, ids: Sequence[str]) -> list[int | None]:
        """The rows of these names; None: there is none."""
        places = pc.index_in(pa.array(ids, self.ids.type), value_set=self.ids)
        found: list[int | None] = places.to_pylist()
        return found

    def _source(self, columns: SourceColumns, index: int) -> Source | None:
        text = columns.texts[index].as_py() if columns.texts is not None else ""
        if text:
            return Source(None, text)
        cell = columns.files[index].as_py() if columns.files is not None else ""
        if not cell:
            return None
        path = self.resolve(cell)
        if self.confine and os.path.isdir(path):
            _confine_folder(path, self.root)
        return Source(path)

    def resolve(self, cell: str) -> str:
        """The file that a cell names. Raises `DataError` if the root confines and it is outside."""
        path = os.path.join(self.root, cell)
        return _inside(path, self.root) if self.confine else path

    def rows(self, split: str) -> np.ndarray:
        """The rows of a split, ascending. Raises `DataError` that lists the splits there are."""
        name = split_name(split)
        if name not in self.splits:
            raise DataError(f"{self.path}: {unknown('split', split, self.splits)}")
        return self.splits[name]

    def usable(self, split: str) -> np.ndarray:
        """The rows of a split that name anything at all: what training draws from."""
        rows = self.rows(split)
        cells = [c for columns in self._sources.values() for c in (columns.files, columns.texts) if c is not None]
        if not cells:
            return rows
        filled = np.any([pc.not_equal(c, "").to_numpy(zero_copy_only=False) for c in cells], axis=0)
        return rows[filled[rows]]

    def class_counts(self, task: str, split: str) -> np.ndarray:
        """int64 [classes]: rows of the split with each class."""
        return self.labels[task].counts(self.rows(split))

    def require_labels(self, split: str) -> None:
        """Raises `DataError` unless every row of the split has a label of every task."""
        rows = self.rows(split)
        for task, labels in self.labels.items():
            empty = rows[labels.codes[rows] < 0]
            if len(empty):
                shown = ", ".join(repr(self.ids[i].as_py()) for i in empty[:3].tolist())
                raise DataError(
                    f"{self.path}: {len(empty)} of {len(rows)} rows of the {split} split have no label of task "
                    f"{task!r}, e.g. {shown}; fill them in, or give these rows another split"
                )

    def digest(self) -> str:
        """Of the ids, labels and splits of the rows that are in a split, whatever their order (16 hex digits)."""
        found = hashlib.sha256()
        for split in sorted(self.splits):
            rows = self.splits[split]
            ids = self.ids.take(pa.array(rows))
            order = pc.sort_indices(ids).to_numpy()
            found.update(f"{split} {len(rows)}".encode())
            found.update("\0".join(ids.take(pa.array(order)).to_pylist()).encode())
            for task in sorted(self.labels):
                cells = pa.array([*self.labels[task].cells, ""], pa.large_string())
                codes = self.labels[task].codes[rows[order]]  # -1, empty: the last one
                texts = cells.take(pa.array(codes % len(cells)))
                found.update(f"{task}\0".encode() + "\0".join(texts.to_pylist()).encode())
        return found.hexdigest()[:16]

    def fingerprint(self) -> dict[str, str]:
        """What decides a training, part by part, so that one can tell what has changed: part -> how many, and a digest.

        The parts are ``rows`` (their ids), ``order`` (of all rows), ``split NAME``, ``labels of TASK``, ``files of
        MODALITY`` (paths or texts as the cells have them), ``spans``, ``rates`` and ``classes`` (of the file beside the
        manifest). A change of one changes no other: but for ``order``, all are of the rows in the order of their ids.
        What is in the files, and where the root is, does not count.
        """
        order = pc.sort_indices(self.ids).to_numpy()
        count = len(self)
        parts = {"rows": _print(count, self.ids.take(pa.array(order))), "order": _print(count, self.ids)}
        for split, rows in self.splits.items():
            ids = self.ids.take(pa.array(rows))
            parts[f"split {split}"] = _print(len(rows), ids.take(pc.sort_indices(ids)))
        for task, labels in self.labels.items():
            cells = pa.array([*labels.cells, ""], pa.large_string())
            parts[f"labels of {task}"] = _print(count, cells.take(pa.array(labels.codes[order] % len(cells))))
        for name, columns in self._sources.items():
            cells = [c.take(pa.array(order)) for c in (columns.files, columns.texts) if c is not None]
            parts[f"files of {name}"] = _print(count, *cells)
        parts["spans"] = _print(count, self._start[order], self._end[order])
        parts["rates"] = _print(count, *(rates[order] for _, rates in sorted(self._fps.items())))
        classes = listed_classes(self.path)
        parts["classes"] = _print(len(classes), *(pa.array([task, *classes[task]]) for task in sorted(classes)))
        return parts

    def balanced_weights(self, split: str) -> np.ndarray:
        """float64 [usable rows of the split], mean 1: inverse frequency of a row's classes, mean over tasks."""
        rows = self.usable(split)
        weights = [labels.inverse_frequency(rows) for labels in self.labels.values()]
        return np.mean(weights, axis=0) if weights else np.ones(len(rows))

    def file_columns(self) -> list[pa.LargeStringArray]:
        """The distinct columns that name files."""
        return list({id(c.files): c.files for c in self._sources.values() if c.files is not None}.values())

    def served(self) -> dict[str, list[str]]:
        """Column that names files -> the modalities that it serves."""
        found: dict[str, list[str]] = {}
        for modality, columns in self._sources.items():
            if columns.files is not None:
                found.setdefault(columns.name, []).append(modality)
        return found

    def alike(self, rows: np.ndarray) -> list[np.ndarray]:
        """`rows` that name the same files and rates, together."""
        keys = [encode(column, keep_empty=True)[0][rows] for column in self.file_columns()]
        keys += [np.unique(rates[rows], return_inverse=True)[1] for rates in self._fps.values()]
        _, group = np.unique(np.stack([*keys, np.zeros(len(rows), int)], 1), axis=0, return_inverse=True)
        order = np.argsort(group, kind="stable")
        return np.split(rows[order], np.flatnonzero(np.diff(group[order])) + 1)


def _print(count: int, *columns: pa.Array | np.ndarray) -> str:
    """``COUNT DIGEST`` of columns of texts or numbers."""
    found = hashlib.sha256()
    for column in columns:
        if isinstance(column, np.ndarray):
            found.update(np.ascontiguousarray(column).tobytes())
        else:
            found.update("\0".join(column.to_pylist()).encode() + b"\0\0")
    return f"{count} {found.hexdigest()[:16]}"


def _root(path: Path, config: DataConfig) -> Path:
    root = Path(config.root).expanduser() if config.root is not None else path if path.is_dir() else path.parent
    if not root.is_dir():
        raise ConfigError(f"data.root: {root} is no folder")
    return root.resolve() if config.confine else Path(os.path.abspath(root))


def _inside(path: str, root: Path) -> str:
    real = os.path.realpath(path)
    if os.path.commonpath([real, root]) != str(root):
        raise DataError(f"{path} leaves the root {root}, which data.confine forbids")
    return real


@lru_cache(maxsize=4096)
def _confine_folder(folder: str, root: Path) -> None:
    """Refuses links out of the root in a folder of pictures and its sub-folders. Each folder is listed once."""
    try:
        with os.scandir(folder) as entries:
            inner = [entry for entry in entries if entry.name[0] != "." and (entry.is_symlink() or is_folder(entry))]
        for entry in inner:
            if entry.is_symlink():
                _inside(entry.path, root)
            if is_folder(entry):
                with os.scandir(entry.path) as pictures:
                    for picture in pictures:
                        if picture.is_symlink():
                            _inside(picture.path, root)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror or error}") from None


def _confine(sources: Mapping[str, SourceColumns], root: Path, path: Path) -> None:
    """Refuses absolute paths and ``..`` that leave the root; symbolic links are followed when a row is used."""
    for columns in sources.values():
        if columns.files is not None:
            suspicious = pc.match_substring_regex(columns.files, r"^([/\\]|[A-Za-z]:)|(^|[/\\])\.\.([/\\]|$)")
            for index in pc.indices_nonzero(suspicious).to_pylist():
                try:
                    _inside(os.path.join(root, columns.files[index].as_py()), root)
                except DataError as error:
                    raise DataError(f"{path}: row {index + 1}: {error}") from None


def _given_splits(column: pa.LargeStringArray | None, count: int) -> Splits:
    if column is None:
        return {TRAIN: np.arange(count)}
    codes, cells = encode(column, keep_empty=True)
    names = np.array([split_name(cell) for cell in cells], dtype=object)
    return {name: np.flatnonzero(np.isin(codes, np.flatnonzero(names == name))) for name in dict.fromkeys(names)}


def _is_unsplit(column: pa.LargeStringArray | None) -> bool:
    return column is None or not pc.any(pc.not_equal(pc.utf8_trim_whitespace(column), "")).as_py()


def _groups(
    ids: pa.LargeStringArray, columns: Columns, config: DataConfig, path: Path, found: Sequence[str]
) -> Groups | None:
    if config.group is None:
        return None
    if config.group not in columns:
        raise ConfigError(f"{path}: data.group: {unknown('column', config.group, found)}")
    # a row without a group is one of its own
    cells = pc.utf8_trim_whitespace(columns[config.group])
    return Groups(*encode(pc.if_else(pc.equal(cells, ""), ids, cells)))


def _held_out(
    tasks: Sequence[TaskClasses],
    groups: Groups | None,
    sources: Mapping[str, SourceColumns],
    ids: pa.LargeStringArray,
    config: DataConfig,
) -> Splits:
    """See `hold_out`. Spans of one file stay together, unless nothing could then be held out."""
    if groups is not None:
        return hold_out(tasks, groups, config)
    splits = hold_out(tasks, _of_the_same_files(sources, ids), config)
    return splits if TEST in splits else hold_out(tasks, Groups(*encode(ids, keep_empty=True)), config)


def _of_the_same_files(sources: Mapping[str, SourceColumns], ids: pa.LargeStringArray) -> Groups:
    """Rows that are spans of the same files, together; others by themselves.

    A group is named by the first of its ids in alphabetical order: a file's path would deal the rows of a folder anew
    wherever the folder is moved.
    """
    columns = {source.name: source.files for source in sources.values() if source.files is not None}
    if not columns:
        return Groups(*encode(ids, keep_empty=True))
    files = pc.binary_join_element_wise(*columns.values(), pa.scalar("\0", pa.large_string()))
    named = pc.match_substring_regex(files, "[^\\x00]")
    codes, _ = encode(pc.if_else(named, files, ids), keep_empty=True)
    by_id = pc.sort_indices(ids).to_numpy()
    _, first = np.unique(codes[by_id], return_index=True)
    return Groups(codes, ids.take(pa.array(by_id[first])).to_pylist())


def _in_folds(
    given: Splits, sources: Mapping[str, SourceColumns], ids: pa.LargeStringArray, folds: int
) -> Groups | None:
    """Spans of one file stay together in folds; None: each row is of a file of its own."""
    rows = given.get(TRAIN, np.zeros(0, np.int64))
    groups = _of_the_same_files(sources, ids)
    files = len(np.unique(groups.codes[rows]))
    if files == len(rows):
        return None
    if files < folds:
        raise DataError(
            f"data.folds: {folds} folds of {files} files, whose spans stay together; expected at most {files}, or as "
            "data.group a column that differs from row to row, which parts the spans of a file all the same"
        )
    return groups


def _splits(
    given: Splits,
    ids: pa.LargeStringArray,
    encoded: Mapping[str, tuple[np.ndarray, list[str]]],
    groups: Groups | None,
    sources: Mapping[str, SourceColumns],
    config: DataConfig,
) -> Splits:
    if groups is not None and config.group is not None:
        check_groups(given, groups, config.group)
    if groups is None and config.folds is not None:
        groups = _in_folds(given, sources, ids, config.folds)
    strata = next((codes for codes, _ in encoded.values()), np.zeros(len(ids), np.int32))
    needs_ids = config.folds is not None or config.fraction < 1 or (VAL not in given and groups is None)
    return make_splits(given, ids.to_pylist() if needs_ids else (), strata, groups, config)

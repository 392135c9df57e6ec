"""A task's labels: from the cells of a column to targets, column by column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mbt_core.config import DEFAULT_TASK, TaskKind, check_name
from mbt_core.config.schema import Scale
from mbt_core.data.columns import TASK_PREFIX, Columns
from mbt_core.data.holdout import TaskClasses
from mbt_core.data.splits import TRAIN, Splits
from mbt_core.errors import ConfigError, DataError, nearest, unknown
from mbt_core.io.files import read_json

SEPARATOR = ";"
BINS = 5
"""Of the numbers of a regression, where rows are held out."""

Kinds = TaskKind | Mapping[str, TaskKind] | None
Classes = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Labels:
    """The labels of one task.

    Legend: N rows, U distinct cells, M class mentions in them, C outputs.

    Args:
        task: its name.
        kind: what the cells mean.
        names: the classes in order; empty for regression.
        codes: int32 [N], the distinct cell of each row; -1: empty.
        cells: the U distinct cells.
        owner: int64 [M], which distinct cell a mention is in.
        member: int64 [M], the class that is mentioned.
        values: float32 [U, C] numbers for regression, else None.
    """

    task: str
    kind: TaskKind
    names: list[str]
    codes: np.ndarray
    cells: list[str]
    owner: np.ndarray
    member: np.ndarray
    values: np.ndarray | None = None

    @property
    def outputs(self) -> int:
        """C: number of classes, or of numbers for regression."""
        return len(self.names) if self.values is None else self.values.shape[1]

    def cell(self, row: int) -> str:
        """The row's cell, ``""`` if empty."""
        code = self.codes[row]
        return self.cells[code] if code >= 0 else ""

    def target(self, row: int) -> np.ndarray:
        """int64 [] the class (single), float32 [C] multi-hot (multilabel) or numbers (regression).

        Raises:
            DataError: for a row without label.
        """
        code = self.codes[row]
        if code < 0:
            raise DataError(f"row {row + 1} has no label of task {self.task!r}")
        if self.values is not None:
            return self.values[code]
        low, high = np.searchsorted(self.owner, [code, code + 1])
        if self.kind == "single":
            return self.member[low]
        target = np.zeros(len(self.names), np.float32)
        target[self.member[low:high]] = 1
        return target

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """int64 [C]: how many of `rows` have each class."""
        codes = self.codes[rows]
        of_cell = np.bincount(codes[codes >= 0], minlength=len(self.cells))
        return np.bincount(self.member, weights=of_cell[self.owner], minlength=len(self.names)).astype(np.int64)

    def _values(self, rows: np.ndarray) -> np.ndarray:
        assert self.values is not None
        codes = self.codes[rows]
        return self.values[codes[codes >= 0]].astype(np.float64)

    def constant(self, rows: np.ndarray) -> bool:
        """Whether no number of a regression varies over `rows`."""
        return not np.ptp(self._values(rows), 0).any()

    def scale(self, rows: np.ndarray) -> Scale:
        """Mean and standard deviation of a regression's numbers over those of `rows` that have a label."""
        values = self._values(rows)
        # the mean of equal numbers is a rounding error off them, and so is their deviation off 0
        varies = (np.ptp(values, 0) > 0) & (values.std(0) >= np.finfo(np.float32).tiny)
        return Scale(mean=values.mean(0).tolist(), std=np.where(varies, values.std(0), 1.0).tolist())

    def inverse_frequency(self, rows: np.ndarray) -> np.ndarray:
        """float64 [len(rows)], mean 1: the sum over a row's classes of 1 / rows of that class.

        As in AST (arXiv 2104.01778). Rows without any class count as a class of their own; regression: all 1.
        """
        if self.values is not None:
            return np.ones(len(rows))
        inverse = 1 / np.maximum(self.counts(rows), 1)
        of_cell = np.bincount(self.owner, weights=inverse[self.member], minlength=len(self.cells))
        weights = of_cell[self.codes[rows]]
        weights[weights == 0] = 1 / max((weights == 0).sum(), 1)
        return weights / weights.mean()

    def class_weights(self, rows: np.ndarray) -> np.ndarray:
        """float64 [C], by which the loss weighs classes so that those of few `rows` count as much as the others.

        ``single``: rows / (classes x rows of the class), over the classes that have rows; 1 on average over `rows`.
        ``multilabel``: for the positives, rows without the class / rows with it. 1 for a class that no row has, or all.
        """
        counts, total = self.counts(rows), int((self.codes[rows] >= 0).sum())
        if self.kind == "single":
            return np.where(counts > 0, total / (np.count_nonzero(counts) * np.maximum(counts, 1)), 1.0)
        return np.where((counts > 0) & (counts < total), (total - counts) / np.maximum(counts, 1), 1.0)


def guess_kind(cells: Sequence[str]) -> TaskKind:
    """``multilabel`` if any cell holds several labels, else ``single``."""
    return "multilabel" if any(SEPARATOR in cell for cell in cells) else "single"


def kind_of(task: str, kinds: Kinds, cells: Sequence[str]) -> TaskKind:
    """The kind of a task: as `kinds` says, else what its distinct cells look like."""
    return kinds if isinstance(kinds, str) else (kinds or {}).get(task) or guess_kind(cells)


def task_classes(encoded: Mapping[str, tuple[np.ndarray, list[str]]], kinds: Kinds) -> list[TaskClasses]:
    """The classes of every task, to hold out rows by; of a regression, which of `BINS` equally full bins a row is in.

    Args:
        encoded: see `read_labels`.
        kinds: see `Manifest.read`.
    """
    found = []
    for task, (codes, cells) in encoded.items():
        kind = kind_of(task, kinds, cells)
        if kind == "regression":
            first = np.array([(_numbers(cell) or [0.0])[0] for cell in cells])
            rows = first[codes[codes >= 0]]
            edges = np.quantile(rows, np.linspace(0, 1, BINS + 1)[1:-1]) if len(rows) else []
            members = [[number] for number in np.searchsorted(edges, first).tolist()]
        else:
            number_of = {name: number for number, name in enumerate(class_names(cells, kind))}
            members = [[number_of[name] for name in split_cell(cell, kind)] for cell in cells]
        found.append(TaskClasses(codes, members))
    return found


def are_measures(names: Sequence[str]) -> bool:
    """Whether all names of classes are numbers and some have a fraction: rather a quantity than classes."""
    numbers = [_numbers(name) for name in names]
    return all(numbers) and any(number and not number[0].is_integer() for number in numbers)


def as_regression(task: str) -> str:
    """The setting that makes a task a regression."""
    return "model.head.task=regression" if task == DEFAULT_TASK else f"'model.head.task={{{task}: regression}}'"


def split_cell(cell: str, kind: TaskKind) -> list[str]:
    """The labels of a cell; ``;`` alone is none of the classes."""
    if kind == "single":
        return [cell.strip()]
    return list(dict.fromkeys(part.strip() for part in cell.split(SEPARATOR) if part.strip()))


def class_names(cells: Sequence[str], kind: TaskKind) -> list[str]:
    """The sorted names of all classes in `cells`."""
    return sorted({name for cell in cells for name in split_cell(cell, kind)})


def parse_labels(
    task: str, kind: TaskKind, codes: np.ndarray, cells: list[str], names: list[str], origin: str, where: str
) -> Labels:
    """Builds `Labels` and checks every cell.

    Args:
        codes, cells: see `Labels`.
        names: the classes.
        origin: where `names` come from, for messages.
        where: the manifest, for messages.

    Raises:
        DataError: naming row and value, for what is no class (with the nearest one), no number, or several labels
            where one is expected.
    """

    def fail(cell: int, problem: str) -> DataError:
        return DataError(f"{where}: row {int((codes == cell).argmax()) + 1}: {problem}")

    if kind == "regression":
        values = [_numbers(cell) for cell in cells]
        width = len(values[0] or []) if values else 1
        for index, found in enumerate(values):
            if not found or len(found) != width:
                what = f"{width} finite number{'s' * (width > 1)}" if width else "a finite number"
                raise fail(index, f"expected {what} as the {task!r} label, got {cells[index]!r}")
        none = np.zeros(0, np.int64)
        table = np.array(values, np.float32).reshape(len(cells), width)
        return Labels(task, kind, [], codes, cells, none, none, table)
    index_of = {name: index for index, name in enumerate(names)}
    owner: list[int] = []
    member: list[int] = []
    for index, cell in enumerate(cells):
        if kind == "single" and SEPARATOR in cell:
            raise fail(
                index,
                f"several labels {cell!r}, but task {task!r} is of kind 'single'; set model.head.task=multilabel",
            )
        for name in split_cell(cell, kind):
            if name not in index_of:
                hint = nearest(name, names)
                if kind == "single" and are_measures([name, *names]):
                    hint = f" For numbers to predict, not names of classes, set {as_regression(task)}."
                raise fail(index, f"{name!r} is no class of task {task!r}.{hint} Its {len(names)} classes are {origin}")
            owner.append(index)
            member.append(index_of[name])
    return Labels(task, kind, names, codes, cells, np.array(owner, np.int64), np.array(member, np.int64))


def _numbers(cell: str) -> list[float] | None:
    try:
        numbers = [float(part) for part in cell.split(SEPARATOR)]
    except ValueError:
        return None
    largest = float(np.finfo(np.float32).max)
    return numbers if all(abs(number) <= largest for number in numbers) else None


def find_tasks(columns: Columns, path: Path) -> dict[str, str]:
    """Task -> its column."""
    tasks = {DEFAULT_TASK: DEFAULT_TASK} if DEFAULT_TASK in columns else {}
    for name in columns:
        if name.startswith(TASK_PREFIX):
            try:
                task = check_name(name.removeprefix(TASK_PREFIX), f"{path}: column {name!r}")
            except ConfigError as error:
                raise DataError(str(error)) from None
            if task in tasks:
                raise DataError(f"{path}: columns {tasks[task]!r} and {name!r} are the same task")
            tasks[task] = name
    return tasks


def read_labels(
    encoded: Mapping[str, tuple[np.ndarray, list[str]]],
    given: Splits,
    classes: Classes | None,
    kinds: Kinds,
    path: Path,
) -> dict[str, Labels]:
    """Task -> its labels.

    Args:
        encoded: task -> distinct cell of each row, and the distinct cells.
        given: the splits as the manifest has them.
        classes: task -> names; None: those of the file beside the manifest, else the train split's.
        kinds: see `Manifest.read`.
        path: the manifest.
    """
    names_of, origin = _read_classes(path) if classes is None else (classes, "those of the model")
    labels = {}
    for task, (codes, cells) in encoded.items():
        kind = kind_of(task, kinds, cells)
        names = list(names_of.get(task, ()))
        if not names and kind != "regression":
            if names_of:
                raise DataError(f"{path}: the classes are {origin}: {unknown('task', task, names_of)}")
            train = codes[given[TRAIN]] if TRAIN in given else codes
            names = class_names([cells[code] for code in np.unique(train[train >= 0])], kind)
        labels[task] = parse_labels(task, kind, codes, cells, names, origin, str(path))
    return labels


def classes_path(path: Path) -> Path:
    """Where the classes of a manifest are: ``manifest.classes.json`` beside ``manifest.csv``, ``DIR/classes.json``."""
    return path / "classes.json" if path.is_dir() else path.with_suffix(".classes.json")


def listed_classes(path: Path) -> Classes:
    """Task -> names, as the file of classes beside a manifest lists them; empty without one. Raises `DataError`."""
    return _read_classes(path)[0]


def _read_classes(path: Path) -> tuple[Classes, str]:
    """Task -> names, and where they are from, for messages; empty without a file."""
    file = classes_path(path)
    if not file.exists():
        return {}, f"those of the train split; {file} could list others"
    classes = read_json(file)
    expected = 'expected {"TASK": ["first class", "second class", ...]}'
    if not isinstance(classes, dict) or not classes:
        raise DataError(f"{file}: {expected}, got {type(classes).__name__}")
    for task, names in classes.items():
        if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
            raise DataError(f"{file}: task {task!r}: {expected}")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{file}: task {task!r}: the class {twice!r} is there twice")
    return classes, f"those of {file}"

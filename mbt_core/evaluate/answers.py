"""Predictions in a file, a line each, written as they come: what an interrupted `mbt predict` goes on with."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from mbt_core.config import DEFAULT_TASK, HeadConfig
from mbt_core.errors import ConfigError, DataError, MBTError
from mbt_core.evaluate.predict import FilePrediction
from mbt_core.io.files import finite, only_writer, write_atomically

SUFFIXES = (".jsonl", ".csv")
PLACE = ["file", "start", "end", "modalities", "error"]
"""Columns of a .csv file before those of the labels."""


class Answers:
    """``OUT.jsonl`` or ``OUT.csv``, a line for each file, or for each window of one; use it as a context.

    .jsonl: the object of `FilePrediction.as_json`. .csv: ``file, start, end, modalities, error`` and then for each rank
    ``label_1, score_1, label_2, ...`` (``TASK/label_1`` where there are several tasks).

    While the context lasts no other process may enter one of the same file.

    To resume drops a last line that was cut off, and the files that could not be classified: they are tried again.

    Args:
        path: the file.
        head: the model's, with its tasks and numbers of classes.
        top: how many labels.
        resume: go on with the file, if it is there.

    Raises:
        ConfigError: for another suffix, a file that is there and is not to be resumed, or one of other tasks or
            numbers of labels.
        InUseError: on entering the context, if another process is writing to the file.
        DataError: on entering the context, if a line of the file is no prediction.
    """

    def __init__(self, path: Path, head: HeadConfig, top: int, resume: bool) -> None:
        if path.suffix.lower() not in SUFFIXES:
            raise ConfigError(f"--out {path}: expected a file that ends in {' or '.join(SUFFIXES)}")
        self.path, self.head, self.top, self.resume = path, head, top, resume
        self._check_new()
        self.is_csv = path.suffix.lower() == ".csv"
        self.sizes = {
            task: classes if head.kind_of(task) == "regression" else min(top, classes)
            for task, classes in head.outputs.items()
        }
        self.columns = [*PLACE, *self._label_columns()]
        self.kept = 0
        self._answered: set[tuple[str, float | None]] = set()
        self._file: TextIO | None = None
        self._closing = ExitStack()

    def _check_new(self) -> None:
        if self.path.exists() and not self.resume:
            raise ConfigError(f"--out {self.path} is there already; go on with it by --resume, or choose another")

    def _label_columns(self) -> list[str]:
        names = []
        for task, count in self.sizes.items():
            prefix = "" if self.head.tasks is None else f"{task}/"
            names += [f"{prefix}{what}_{rank}" for rank in range(1, count + 1) for what in ("label", "score")]
        return names

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(only_writer(self.path))
            self._check_new()  # another process may have made it in between
            write_atomically(self.path, self._start)
            self._file = self.path.open("a", encoding="utf-8", newline="", buffering=1)  # a line at a time
            self._closing = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        try:
            self._file.close()
        except OSError as full:
            if error is None:
                raise self._cannot(full) from full
        finally:
            self._closing.close()

    def __contains__(self, segment: object) -> bool:
        """Whether (file, start of the window or None) is answered; this file itself is no question."""
        return segment in self._answered or (
            isinstance(segment, tuple) and os.path.abspath(segment[0]) == os.path.abspath(self.path)
        )

    def add(self, prediction: FilePrediction) -> None:
        """Writes a line, at once. Raises `MBTError` if it cannot be written; what was written before stays."""
        assert self._file is not None
        try:
            self._file.write(self._csv(prediction) if self.is_csv else self._json(prediction))
        except OSError as error:
            raise self._cannot(error) from error

    def _cannot(self, error: OSError) -> MBTError:
        return MBTError(
            f"{self.path}: cannot be written: {error.strerror}. What is in it stays: when that is mended, go on with "
            "--resume"
        )

    def _json(self, prediction: FilePrediction) -> str:
        return json.dumps(finite(prediction.as_json()), ensure_ascii=False, allow_nan=False) + "\n"

    def _csv(self, prediction: FilePrediction) -> str:
        best = [value for labels in prediction.top.values() for pair in labels for value in pair]
        place = [prediction.file, prediction.start, prediction.end, "+".join(prediction.modalities), prediction.error]
        cells = [*place, *(best or [""] * (len(self.columns) - len(PLACE)))]
        return _line(["" if cell is None else cell for cell in cells])

    def _start(self, path: Path) -> None:
        """Writes what stays of the file as it is, and takes note of it."""
        with path.open("w", encoding="utf-8", newline="") as out:
            out.write(_line(self.columns) if self.is_csv else "")
            if self.path.exists():
                for key, line in self._csv_lines() if self.is_csv else self._json_lines():
                    self._answered.add(key)
                    out.write(line)
        self.kept = len(self._answered)

    def _json_lines(self) -> Iterator[tuple[tuple[str, float | None], str]]:
        """(file, start) and text of the lines that hold an answer."""
        with self.path.open(encoding="utf-8") as file:
            for number, line in enumerate(_whole_lines(file), start=1):
                try:
                    found = json.loads(line)
                    key, failed = (found["file"], found.get("start")), "error" in found
                    top = found.get("top", {})
                    by_task = top if isinstance(top, dict) else {DEFAULT_TASK: top}
                    sizes = {task: len(labels) for task, labels in by_task.items()}
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    raise self._no_answer(number) from None
                if failed:
                    continue
                if sizes != self.sizes:
                    raise ConfigError(
                        f"--out {self.path}: its answers are not those of this run and --top; line {number} has "
                        f"labels of {_listed(sizes)}, expected {_listed(self.sizes)}; choose another --out"
                    )
                yield key, line

    def _csv_lines(self) -> Iterator[tuple[tuple[str, float | None], str]]:
        with self.path.open(encoding="utf-8", newline="\n") as file:
            rows = csv.reader(_whole_lines(file), strict=True)
            try:
                if next(rows, self.columns) != self.columns:
                    raise ConfigError(
                        f"--out {self.path}: its columns are not those of this run and --top; expected "
                        f"{', '.join(self.columns[:7])}, ..."
                    )
                for number, row in enumerate(rows, start=1):
                    if len(row) != len(self.columns):
                        raise self._no_answer(number)
                    if not row[4]:
                        yield (row[0], float(row[1]) if row[1] else None), _line(row)
            except (ValueError, csv.Error) as error:
                if isinstance(error, MBTError):
                    raise
                if str(error) == "unexpected end of data":  # the last line was cut off within quotes, after a newline
                    return
                raise DataError(f"{self.path}: no predictions: {error}; choose another --out") from None

    def _no_answer(self, number: int) -> DataError:
        return DataError(f"{self.path}: line {number} is no prediction; choose another --out")


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{task} ({count})" for task, count in sizes.items()) or "nothing"


def _whole_lines(file: TextIO) -> Iterator[str]:
    """All lines but a last one without its end."""
    try:
        yield from (line for line in file if line.endswith("\n"))
    except UnicodeDecodeError:
        raise DataError(f"{file.name}: not UTF-8 text; choose another --out") from None


def _line(cells: Sequence[Any]) -> str:
    """A line of a .csv file."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\r\n").writerow(cells)  # which quotes a carriage return, too
    return buffer.getvalue().removesuffix("\r\n") + "\n"

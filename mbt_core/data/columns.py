"""Checks and normalises a manifest's columns: text, seconds, ids, and where each modality is."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mbt_core.errors import ConfigError, DataError, nearest
from mbt_core.media import exists
from mbt_core.media.clip import TEXTS

IN_FILES = ("frames", "waveform", "array")
"""What files hold that several modalities may share; anything else (texts) a cell may hold itself."""
TASK_PREFIX = "label."
COLUMNS = ("id", "path", "start", "end", "fps", "label", "split")
FEW = 5
"""Cells of a column of texts that are looked for as files."""
RATE = "fps"
"""Column of frame rates; that of one modality is called ``NAME.fps``."""

Columns = Mapping[str, pa.LargeStringArray]


@dataclass(frozen=True)
class SourceColumns:
    """Where a modality's sources are: a column of files, a column of texts, or both (a text wins).

    Args:
        files, texts: the columns.
        name: of the column of files.
    """

    files: pa.LargeStringArray | None
    texts: pa.LargeStringArray | None = None
    name: str = ""


def as_text(column: pa.ChunkedArray, where: str) -> pa.LargeStringArray:
    """A column as text, null as ``""``; lists of text are joined by ``;``.

    Raises:
        DataError: for a type that has no text (structures), for what is not UTF-8, and for a NUL byte.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    try:
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            column = pc.binary_join(column.cast(pa.list_(pa.string())), ";")
        elif pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), None, column)
        text = pc.fill_null(column.cast(pa.large_string()), "").combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise DataError(f"{where}: expected text, got {column.type}") from None
    try:
        text.validate(full=True)
    except pa.ArrowInvalid:
        raise DataError(f"{where}: not UTF-8 text; save it as UTF-8") from None
    has_nul = pc.match_substring(text, "\0")
    if pc.any(has_nul).as_py():
        raise DataError(f"{where}: row {first(has_nul) + 1} contains a NUL byte")
    return text


def as_numbers(column: pa.ChunkedArray, where: str, what: str = "seconds") -> np.ndarray:
    """A column of non-negative numbers of `what` -> float64 [N], NaN where empty. Raises `DataError`."""
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        numbers = column.cast(pa.float64())
    else:
        text = pc.utf8_trim_whitespace(as_text(column, where))
        try:
            numbers = pc.if_else(pc.equal(text, ""), None, text).cast(pa.float64())
        except pa.ArrowInvalid:
            index, value = next((i, v) for i, v in enumerate(text.to_pylist()) if v and not _is_number(v))
            raise DataError(f"{where}: row {index + 1}: expected {what}, got {value!r}") from None
    values = pc.fill_null(numbers, np.nan).to_numpy()
    wrong = (values < 0) | np.isinf(values)
    if wrong.any():
        index = int(wrong.argmax())
        raise DataError(f"{where}: row {index + 1}: expected {what} >= 0, got {values[index]:g}")
    return values


def _is_number(text: str) -> bool:
    try:
        pa.scalar(text).cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def first(mask: pa.BooleanArray) -> int:
    """Index of the first true value."""
    return int(pc.index(mask, True).as_py())


def encode(column: pa.LargeStringArray, keep_empty: bool = False) -> tuple[np.ndarray, list[str]]:
    """Distinct cell of each row, int32 [N], and the distinct cells in order of appearance; an empty cell is -1."""
    if not keep_empty:
        column = pc.utf8_trim_whitespace(column)
        column = pc.if_else(pc.equal(column, ""), None, column)
    encoded = column.dictionary_encode()
    return pc.fill_null(encoded.indices, -1).to_numpy(), encoded.dictionary.to_pylist()


def check_ids(columns: Columns, start: np.ndarray, path: Path, found: Sequence[str]) -> pa.LargeStringArray:
    """The rows' names. Without a column for them: their path, and where their span begins (``videos/a.mp4@12.5``)."""
    ids = columns.get("id")
    alike = [name for name in found if name.lower().startswith("id")]  # not any short name: 'side', 'grid'
    hint = next((f" Did you mean {name!r}?" for name in alike if name.lower() == "id"), nearest("id", alike))
    if ids is None and "path" in columns and not hint:
        begins = pa.array(start, mask=np.isnan(start)).cast(pa.large_string())
        at = pa.scalar("@", pa.large_string())
        ids = pc.coalesce(pc.binary_join_element_wise(columns["path"], begins, at), columns["path"])
        ids = pc.if_else(pc.equal(columns["path"], ""), "", ids)
    if ids is None:
        raise DataError(
            f"{path}: no column 'id', a name of its own for each row.{hint} Columns found: {_listed(found)}"
        )
    empty = pc.equal(ids, "")
    if pc.any(empty).as_py():
        raise DataError(
            f"{path}: row {first(empty) + 1} has no id"
            + ("" if "id" in columns else " and no path that would name it; give a column 'id', or leave out such rows")
        )
    if pc.count_distinct(ids).as_py() < len(ids):
        counts = pc.value_counts(ids)
        repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
        name = repeated[0].as_py()
        numbers = pc.indices_nonzero(pc.equal(ids, name)).to_pylist()
        raise DataError(
            f"{path}: the id {name!r} is in rows {numbers[0] + 1} and {numbers[1] + 1}; "
            f"ids must be unique ({len(repeated)} are not)"
            + ("" if "id" in columns else "; give a column 'id', as paths do not tell rows apart")
        )
    return ids


def find_sources(name: str, reads: str, columns: Columns, path: Path, found: Sequence[str]) -> SourceColumns:
    if name in COLUMNS:
        raise ConfigError(f"modalities: {name!r} is a column of every manifest; choose another name, e.g. my_{name}")
    own, own_path = columns.get(name), columns.get(f"{name}.path")
    if reads not in IN_FILES:
        if own is None and own_path is None:
            raise DataError(
                f"{path}: nothing for modality {name!r}: expected a column {name!r} (texts) or '{name}.path' (files)."
                f"{nearest(name, found)} Columns found: {_listed(found)}"
            )
        return SourceColumns(own_path, own, f"{name}.path")
    column = next((c for c in (name, f"{name}.path", "path") if c in columns), None)
    if column is None:
        hint = nearest(name, found) or nearest("path", found)
        raise DataError(
            f"{path}: nothing for modality {name!r}: expected a column {name!r} (its own files) or 'path' (files that "
            f"modalities share).{hint} Columns found: {_listed(found)}"
        )
    return SourceColumns(columns[column], None, column)


def refuse_file_names(name: str, texts: pa.LargeStringArray, root: Path, path: Path) -> None:
    """Raises `DataError` for a column of texts whose cells all end like files of texts, one of the first being one."""
    ends = rf"(?i)({'|'.join(map(re.escape, TEXTS))})$"
    filled = texts.filter(pc.not_equal(texts, ""))
    few = filled[:FEW]
    if not pc.all(pc.match_substring_regex(few, ends)).as_py():
        return  # without looking through all
    named = next((cell for cell in few.to_pylist() if exists(os.path.join(root, cell))), None)
    if named is not None and pc.all(pc.match_substring_regex(filled, ends)).as_py():
        raise DataError(
            f"{path}: column {name!r}: expected texts, but it names files, e.g. {named!r}; "
            f"call the column '{name}.path'"
        )


def _listed(found: Sequence[str]) -> str:
    more = f", ... ({len(found)} in all)" if len(found) > 30 else ""
    more += "; columns are parted by commas" if len(found) == 1 and ";" in found[0] else ""
    return ", ".join(map(repr, found[:30])) + more


def read_spans(table: pa.Table, path: Path) -> tuple[np.ndarray, np.ndarray]:
    start, end = (
        as_numbers(table[name], f"{path}: column {name!r}")
        if name in table.column_names
        else np.full(table.num_rows, np.nan)
        for name in ("start", "end")
    )
    inverted = end <= np.nan_to_num(start)
    if inverted.any():
        index = int(inverted.argmax())
        raise DataError(
            f"{path}: row {index + 1} ends at {end[index]:g} s, but starts at {np.nan_to_num(start)[index]:g} s"
        )
    return start, end


def is_number(column: str) -> bool:
    """Whether a column of this name holds numbers."""
    rate = column.endswith(f".{RATE}") and not column.startswith(TASK_PREFIX)
    return column in ("start", "end", RATE) or rate


def read_rates(table: pa.Table, names: Iterable[str], path: Path) -> dict[str, np.ndarray]:
    """Modality -> frames a second of what has pictures but no times, float64 [N], NaN where empty."""
    columns = {name: next((c for c in (f"{name}.{RATE}", RATE) if c in table.column_names), None) for name in names}
    rates = {
        column: as_numbers(table[column], f"{path}: column {column!r}", "frames a second")
        for column in dict.fromkeys(columns.values())
        if column is not None
    }
    return {name: rates[column] for name, column in columns.items() if column is not None}

"""Which columns of a table are the channels of a signal: those that hold numbers, but no clock, counter or name.

Whatever a device writes beside its samples (when, which one, of whom) would be taken for a signal, and as it is
another one in every recording, a model learns it by heart.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from mbt_core.io.files import check_bytes

LARGEST = 1 << 31
"""Bytes of an array, as it is stored and as float32."""
CLOCK = 1e9
"""Numbers from here on that never fall are a clock: seconds since 1970 (or its fractions), nanoseconds of uptime."""
FALLS, RISES = 0.1, 0.9
"""Shares of the steps of a column: a clock may be set back, and a counter begin anew, so often; a counter goes up at
least so often, and what a sensor measures does not."""
TIMES = frozenset(
    ("time", "timestamp", "timestamps", "datetime", "date", "epoch", "elapsed", "uptime", "unixtime", "utc")
)
"""First or last words of names of times."""
PARTS_OF_TIME = frozenset(("year", "month", "day", "hour", "minute", "second"))
"""Names of parts of a time."""
COUNTERS = frozenset(
    (
        "sample",
        "samples",
        "logging",
        "frame",
        "packet",
        "package",
        "row",
        "line",
        "record",
        "index",
        "idx",
        "number",
        "num",
        "no",
        "nr",
        "n",
        "#",
        "counter",
        "count",
        "seq",
        "sequence",
        "t",
        "ts",
        "s",
        "sec",
        "secs",
        "seconds",
        "ms",
        "msec",
        "millis",
        "micros",
        "us",
        "ns",
        "unnamed",
        "0",
        "time",
        "fine",  # SampleTimeFine, as Xsens writes it
        "zeit",
        "temps",
        "tiempo",
        "tempo",
    )
)
"""A column is an index or a time if it rises all the time and its name has no words but these, or there is none."""
IDS = frozenset(("id", "ids", "uuid", "guid", "subject", "participant", "patient", "user"))
"""Last words of the names of columns that tell who or which it is."""


@dataclass(frozen=True)
class Stored:
    """What an array file holds.

    Args:
        array: numbers of the type they are stored in, of at least two dimensions: [channels, samples] by convention.
        columns: names of the channels, of a table; those without are called by their number, from 0.
        left_out: what else the table has, and why it is no channel.
        rate: samples a second, if the file says it.
    """

    array: np.ndarray
    columns: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    rate: float | None = None


def channels_of(table: Any, named: bool) -> Stored:
    """The channels of a pyarrow table; empty cells are NaN, and columns with nothing in them are channels.

    Raises:
        ValueError: if no column holds numbers, or all that do are times, counters and names.
    """
    names = _unique(table.column_names)
    why = [
        not_numbers(column.type) or _no_signal(name if named else None, column)
        for name, column in zip(names, table.columns, strict=True)
    ]
    if not named:
        for number in _ids(table, [number for number, reason in enumerate(why) if not reason]):
            why[number] = "whole numbers before a column of text"
    chosen = [number for number, reason in enumerate(why) if not reason]
    left_out = {name: reason for name, reason in zip(names, why, strict=True) if reason}
    if not any(holds_numbers(table.column(number).type) for number in chosen):
        if any(holds_numbers(column.type) for column in table.columns):
            raise ValueError(f"no column is a signal: {described(left_out)}")
        raise ValueError(f"no column holds numbers; columns: {names}")
    check_bytes(4 * table.num_rows * len(chosen), LARGEST)
    array = np.stack([_floats(table.column(number)) for number in chosen])
    return Stored(array, tuple(names[number] for number in chosen), left_out)


def _unique(names: Sequence[str]) -> list[str]:
    """Other, Other -> Other, Other (2)"""
    counts: Counter[str] = Counter()
    unique = []
    for name in names:
        counts[name] += 1
        unique.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return unique


def described(left_out: Mapping[str, str]) -> str:
    """``'timestamp' (a time or an index), 'who' (words)``"""
    return ", ".join(f"{name!r} ({why})" for name, why in left_out.items())


def holds_numbers(kind: Any) -> bool:
    """Whether a pyarrow type is one of numbers."""
    from pyarrow import types

    return any(test(kind) for test in (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal))


def rising(values: np.ndarray) -> tuple[float, float]:
    """Shares of the steps between the values that rise, and that fall. Missing values do not count."""
    steps = np.diff(values[np.isfinite(values)])
    return (float((steps > 0).mean()), float((steps < 0).mean())) if len(steps) else (0.0, 1.0)


def not_numbers(kind: Any) -> str:
    """What a column of this type holds in place of numbers; empty: it holds numbers, or nothing at all."""
    from pyarrow import types

    if holds_numbers(kind) or types.is_null(kind):
        return ""
    return "times" if types.is_temporal(kind) else "words"


def _no_signal(name: str | None, column: Any) -> str:
    """Why a column of numbers is no channel; empty: it is one."""
    words = words_in(name) if name is not None else ()
    may_be_id = bool(IDS.intersection(words[-1:]))
    is_time = bool(TIMES & {*words[:1], *words[-1:]}) or "timestamp" in words or " ".join(words) in PARTS_OF_TIME
    may_count = name is not None and COUNTERS.issuperset(words)
    first = next((cell.as_py() for cell in column if cell.is_valid), 0)
    if not (may_be_id or is_time or may_count or first >= CLOCK):
        return ""
    values = _floats(column, np.float64)
    rises, falls = rising(values)
    if rises and falls <= FALLS and np.nanmin(values) >= CLOCK:
        return "a clock: large numbers that rise"
    if may_be_id and _is_whole(values):
        return "an id"
    return "a time or an index" if (is_time and falls <= FALLS) or (may_count and rises >= RISES) else ""


@lru_cache(maxsize=4096)
def words_in(name: str) -> tuple[str, ...]:
    """``accelTimestamp_sinceReboot(s)`` -> accel, timestamp, since, reboot; units in brackets are left out."""
    plain = re.sub(r"[(\[{].*?[)\]}]", " ", name)
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|#", plain)
    return tuple(part.lower() for part in parts)


def _ids(table: Any, chosen: Sequence[int]) -> list[int]:
    """Of a table without names, as ``33,Jogging,49105962326000,-0.69``: the whole numbers that its lines begin with, if
    text follows, and channels after it."""
    text = next((number for number, kind in enumerate(table.schema.types) if not_numbers(kind)), 0)
    leading = [number for number in chosen if number < text]
    if len(leading) == len(chosen) or not all(_is_whole(_floats(table.column(n), np.float64)) for n in leading):
        return []
    return leading


def _is_whole(values: np.ndarray) -> bool:
    finite = values[np.isfinite(values)]
    return bool(len(finite)) and bool((finite == np.floor(finite)).all())


def _floats(column: Any, kind: type = np.float32) -> np.ndarray:
    from pyarrow import from_numpy_dtype

    values: np.ndarray = column.cast(from_numpy_dtype(kind), safe=False).to_numpy()
    return values

"""Finds files with the same content in different splits: a score on what was trained on says nothing.

Only files of equal size are read, first a little of each, and whole only what agrees in that. Digests are kept in
``$MBT_CACHE/digests.sqlite`` by path, size and time of change. Of members of shards the index holds size and checksum.
Folders of pictures and recordings inside a file are compared by their paths alone.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from hashlib import blake2b, file_digest
from itertools import combinations
from time import monotonic
from typing import Any, NamedTuple

import numpy as np

from mbt_core.data.columns import IN_FILES, encode
from mbt_core.data.manifest import Manifest
from mbt_core.data.splits import TEST, TRAIN, VAL
from mbt_core.errors import DataError, MBTError
from mbt_core.io import remote
from mbt_core.media.shards import open_shard, packed

FILE = "digests.sqlite"
SPLITS = (TRAIN, VAL, TEST)
THREADS = 16
CHUNK = 256
"""Files that the threads take at a time."""
SAMPLE = 4096
"""Bytes of the beginning, the middle and the end of a file that are compared first."""
SECONDS = 30.0
"""That a training looks for copies before it starts."""
SHOWN = 3
"""Pairs of rows that are shown for two splits."""


class Pair(NamedTuple):
    """Two rows with the same content: their ids, and the files as the manifest names them."""

    ids: tuple[str, str]
    files: tuple[str, str]


@dataclass
class Repeats:
    """Rows of one split whose content another split has, too.

    Args:
        splits: the one that has it, and the one that repeats it.
        rows: of the second one.
        total: rows of the second one in all.
        pairs: the first `SHOWN`.
    """

    splits: tuple[str, str]
    total: int
    rows: set[int] = field(default_factory=set)
    pairs: list[Pair] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """``{"splits", "rows", "total", "examples": [{"ids", "files"}]}``, the total of the second split"""
        examples = [{"ids": list(pair.ids), "files": list(pair.files)} for pair in self.pairs]
        return {"splits": list(self.splits), "rows": len(self.rows), "total": self.total, "examples": examples}


def tell(found: Iterable[Mapping[str, Any]]) -> list[str]:
    """What `Repeats.as_json` gives, a line each."""
    lines = []
    for repeats in found:
        (first, second), example = repeats["splits"], repeats["examples"][0]
        (one, other), (own, same) = example["ids"], example["files"]
        files = f"both read {own}" if own == same else f"{same} is a copy of {own}"
        verb = "repeats" if repeats["rows"] == 1 else "repeat"
        lines.append(
            f"{repeats['rows']:,} of {repeats['total']:,} rows of {second} {verb} files of {first}, "
            f"e.g. {other!r} and {one!r}: {files}. "
            f"Remove them from one of the two: a score on {second} would be of what is known by heart"
        )
    return lines


def repeated(manifest: Manifest, seconds: float = SECONDS) -> list[str]:
    """`tell` of what was found in so many seconds, and whether that was enough to look at all files."""
    found, complete = find_repeats(manifest, seconds)
    more = f"not all files were compared in {seconds:g} s; mbt data check {manifest.path} compares all"
    return [*tell(repeats.as_json() for repeats in found), *([] if complete else [more])]


@dataclass(frozen=True)
class _Files:
    """The U distinct cells that name files, and the M times that a row names one.

    Args:
        cells, paths: [U] as they are in the manifest, and resolved.
        bits: int [U], the splits that name them.
        cells_named, rows_naming: int [M] each.
    """

    cells: list[str]
    paths: list[str]
    bits: np.ndarray
    cells_named: np.ndarray
    rows_naming: np.ndarray


def find_repeats(manifest: Manifest, seconds: float | None = None) -> tuple[list[Repeats], bool]:
    """Rows of val and test whose files, or parts of them that overlap, are in train (or val), too.

    Args:
        manifest: the rows.
        seconds: after which no other file is read; None: all are.

    Returns:
        What was found, for each two splits that have something in common, and whether all files were looked at.
    """
    split_N = np.full(len(manifest), -1)
    for number, name in enumerate(SPLITS):
        split_N[manifest.splits.get(name, [])] = number
    files = _list_files(manifest, split_N)
    content_U, complete = _contents(files, None if seconds is None else monotonic() + seconds)
    found: dict[tuple[int, int], Repeats] = {}
    content_M = content_U[files.cells_named]
    bits_C = np.zeros(len(files.cells) + 1, np.int64)
    np.bitwise_or.at(bits_C, content_U, files.bits)
    several = np.flatnonzero(_several(bits_C[content_M]))
    for group in _groups(content_M[several]):
        members = several[group]
        rows, cells = files.rows_naming[members], files.cells_named[members]
        for one, other in combinations(range(len(SPLITS)), 2):
            a, b = np.flatnonzero(split_N[rows] == one), np.flatnonzero(split_N[rows] == other)
            partner = _overlapping(*manifest.spans(rows[a]), *manifest.spans(rows[b]))
            for k in np.flatnonzero(partner >= 0).tolist():
                names = SPLITS[one], SPLITS[other]
                pair = found.setdefault((one, other), Repeats(names, len(manifest.splits[names[1]])))
                i, j = a[partner[k]], b[k]
                if len(pair.pairs) < SHOWN and int(rows[j]) not in pair.rows:
                    ids = tuple(manifest.ids[int(rows[n])].as_py() for n in (i, j))
                    pair.pairs.append(Pair(ids, tuple(files.cells[cells[n]] for n in (i, j))))
                pair.rows.add(int(rows[j]))
    return [found[key] for key in sorted(found)], complete


def _several(bits: np.ndarray) -> np.ndarray:
    """Whether more than one bit is set."""
    return (bits & (bits - 1)) != 0


def _groups(keys: np.ndarray) -> Iterator[np.ndarray]:
    """Places of equal keys."""
    order = np.argsort(keys, kind="stable")
    yield from (part for part in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1) if len(part))


def _overlapping(start_A: np.ndarray, end_A: np.ndarray, start_B: np.ndarray, end_B: np.ndarray) -> np.ndarray:
    """For each of B a place in A of a span that overlaps with it; -1: there is none. Not given: from or to the end."""
    if not len(start_A) or not len(start_B):
        return np.full(len(start_B), -1)
    starts, ends = np.nan_to_num(start_A), np.where(np.isnan(end_A), np.inf, end_A)
    order = np.argsort(starts, kind="stable")
    latest = np.maximum.accumulate(ends[order])
    owner = np.maximum.accumulate(np.where(ends[order] == latest, np.arange(len(order)), 0))
    before = np.searchsorted(starts[order], np.where(np.isnan(end_B), np.inf, end_B)) - 1
    overlaps = (before >= 0) & (latest[before] > np.nan_to_num(start_B))
    return np.where(overlaps, order[owner[before]], -1)


def _list_files(manifest: Manifest, split_N: np.ndarray) -> _Files:
    """The files that rows of `SPLITS` name; texts are left out, many of which are meant to be the same."""
    number_of: dict[str, int] = {}
    cell_M, row_M = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for modalities, column in zip(manifest.served().values(), manifest.file_columns(), strict=True):
        if not any(manifest.reads[name] in IN_FILES for name in modalities):
            continue
        codes, cells = encode(column, keep_empty=True)
        numbers = np.array([number_of.setdefault(cell, len(number_of)) if cell else -1 for cell in cells], np.int64)
        rows = np.flatnonzero((split_N >= 0) & (numbers[codes] >= 0))
        cell_M.append(numbers[codes[rows]])
        row_M.append(rows)
    cell, row = np.concatenate(cell_M), np.concatenate(row_M)
    bits = np.zeros(len(number_of), np.int64)
    np.bitwise_or.at(bits, cell, 1 << split_N[row])
    return _Files(list(number_of), [_resolved(manifest, cell) for cell in number_of], bits, cell, row)


def _resolved(manifest: Manifest, cell: str) -> str:
    """The path of a cell; of one that leaves a confining root none: reading it is an error elsewhere."""
    try:
        return manifest.resolve(cell)
    except DataError:
        return ""


def _contents(files: _Files, deadline: float | None) -> tuple[np.ndarray, bool]:
    """Number of the content of each file, the same for copies, and whether all were looked at."""
    content_U = np.arange(len(files.cells))
    with _Digests(deadline) as digests:
        waiting = np.arange(len(files.cells))
        for key_of in (digests.identity, digests.sample, digests.whole):
            keys = digests.all(key_of, [files.paths[i] for i in waiting.tolist()])
            numbers: dict[bytes, int] = {}
            content = np.array([-1 if key is None else numbers.setdefault(key, len(numbers)) for key in keys], int)
            waiting, content = waiting[content >= 0], content[content >= 0]
            bits = np.zeros(len(numbers), np.int64)
            np.bitwise_or.at(bits, content, files.bits[waiting])
            shared = _several(bits)[content] & (np.bincount(content, minlength=1)[content] > 1)
            waiting, content = waiting[shared], content[shared]
        for group in _groups(content):
            content_U[waiting[group]] = waiting[group[0]]
        return content_U, digests.complete


class _Digests:
    """Digests of files, kept between runs. What cannot be kept or read is left out, and nothing fails for it.

    Args:
        deadline: by `time.monotonic`, after which no file is read any more.
    """

    def __init__(self, deadline: float | None) -> None:
        self.deadline, self.complete = deadline, True
        self._status: dict[str, os.stat_result | None] = {}
        self._known: dict[tuple[str, str], tuple[int, int, bytes]] = {}
        self._new: list[tuple[str, str, int, int, bytes]] = []

    def __enter__(self) -> _Digests:
        return self

    def __exit__(self, *_: object) -> None:
        if self._new:
            with suppress(sqlite3.Error, OSError), closing(self._open()) as store, store:
                store.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?)", self._new)

    def _open(self) -> sqlite3.Connection:
        folder = remote.cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        store = sqlite3.connect(folder / FILE, timeout=10)
        columns = "path TEXT, part TEXT, size INTEGER, changed INTEGER, digest BLOB, PRIMARY KEY (path, part)"
        store.execute(f"CREATE TABLE IF NOT EXISTS digests ({columns}) WITHOUT ROWID")
        return store

    def _load(self, paths: Sequence[str], part: str) -> None:
        with suppress(sqlite3.Error, OSError), closing(self._open()) as store:
            for path in paths:
                row = store.execute(
                    "SELECT size, changed, digest FROM digests WHERE path = ? AND part = ?", (path, part)
                ).fetchone()
                if row is not None:
                    self._known[path, part] = row

    def all(self, key_of: Callable[[str], bytes | None], paths: Sequence[str]) -> list[bytes | None]:
        """`key_of` each path, in threads; None for what cannot be compared."""
        if key_of != self.identity:
            self._load(paths, key_of.__name__)
        chunks = [paths[first : first + CHUNK] for first in range(0, len(paths), CHUNK)]
        with ThreadPoolExecutor(THREADS) as pool:
            return [key for keys in pool.map(lambda chunk: [key_of(path) for path in chunk], chunks) for key in keys]

    def identity(self, path: str) -> bytes | None:
        """Kind and size of a file; of a clip in a shard here, names, sizes and checksums of its members."""
        place = packed(path)
        if place is not None:
            return _of_members(*place)
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return None
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            return None
        self._status[path] = status
        return b"%d" % status.st_size

    def sample(self, path: str) -> bytes | None:
        """Of `SAMPLE` bytes at the beginning, in the middle and at the end."""
        return self._kept(path, "sample", _sample)

    def whole(self, path: str) -> bytes | None:
        """Of all bytes."""
        return self._kept(path, "whole", _whole)

    def _kept(self, path: str, part: str, digest_of: Callable[[str, int], bytes]) -> bytes | None:
        status = self._status.get(path)
        if status is None:  # a member of a shard: what the index says is all there is
            return b"".join(_of_members(*place) or b"" for place in [packed(path)] if place is not None)
        size, changed, digest = self._known.get((path, part), (-1, -1, b""))
        if (size, changed) == (status.st_size, status.st_mtime_ns):
            return digest
        if self.deadline is not None and monotonic() > self.deadline:
            self.complete = False
            return None
        try:
            digest = digest_of(path, status.st_size)
        except OSError:
            return None
        self._new.append((path, part, status.st_size, status.st_mtime_ns, digest))
        return digest


def _of_members(tar: str, key: str, column: str) -> bytes | None:
    if remote.url_of(tar) is not None:  # its index would have to be copied
        return None
    try:
        members = open_shard(tar).members(key)
    except MBTError:
        return None
    begin = f"{key}.{column}.".encode()
    told = [(bytes(m["member"]).removeprefix(begin), int(m["length"]), int(m["crc"])) for m in members
            if bytes(m["member"]).startswith(begin)]  # fmt: skip
    return b"shard" + blake2b(repr(told).encode(), digest_size=16).digest() if told else None


def _sample(path: str, size: int) -> bytes:
    digest = blake2b(digest_size=16)
    with open(path, "rb") as file:
        for begin in sorted({0, max(0, size // 2 - SAMPLE // 2), max(0, size - SAMPLE)}):
            file.seek(begin)
            digest.update(file.read(SAMPLE))
    return digest.digest()


def _whole(path: str, _: int) -> bytes:
    with open(path, "rb") as file:
        return file_digest(file, lambda: blake2b(digest_size=16)).digest()

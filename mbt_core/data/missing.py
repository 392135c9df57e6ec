"""Counts what a split loses: files that are named and not there, or that cannot be read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mbt_core.data.manifest import Manifest
from mbt_core.errors import DataError
from mbt_core.media import absence, exists

THREADS = 16
CHUNK = 4096


@dataclass
class Losses:
    """What a split has lost, against what it may lose.

    Args:
        where: the manifest and split, for messages.
        named: files that the split's rows name, counted once per row that names them.
        missing: of these, how many are not there.
        max_missing: the share of `named` that may be missing or unreadable.
        examples: some paths that are not there.
        rows: rows with a missing file, and those that name none.
    """

    where: str
    named: int
    missing: int
    max_missing: float
    examples: Sequence[str] = ()
    rows: frozenset[int] = frozenset()
    unreadable: dict[int, str] = field(default_factory=dict)

    def add(self, errors: Iterable[tuple[int, str]]) -> None:
        """Counts rows that could not be read (`Batch.errors`), each once.

        Raises:
            DataError: above the limit, showing three.
        """
        self.unreadable |= {row: message for row, message in errors if row not in self.rows}
        self.check()

    def check(self) -> None:
        """Raises `DataError` above the limit, showing three paths."""
        lost = self.missing + len(self.unreadable)
        if lost > self.max_missing * self.named:
            shown = [*map(absence, self.examples), *self.unreadable.values()]
            raise DataError(
                f"{self.where}: {self.missing} of {self.named} named files are missing"
                + (f" and {len(self.unreadable)} cannot be read" if self.unreadable else "")
                + f", more than the {self.max_missing:.2%} that data.max_missing allows:\n  "
                + "\n  ".join(shown[:3])
                + "\nCheck data.root, empty the cells of files that you do not have, or raise data.max_missing "
                "(mbt eval, predict, embed: --max-missing)"
            )


def check_missing(manifest: Manifest, split: str, max_missing: float) -> Losses:
    """Looks for every file that the rows of a split name, once each.

    Returns:
        The count, to which unreadable rows can be added.

    Raises:
        DataError: if more than the share `max_missing` is not there, showing three paths; or if the manifest confines
            and a file is outside its root.
    """
    rows = manifest.rows(split)
    named, missing, bad_rows, examples = 0, 0, set(), []
    for column in manifest.file_columns():
        cells = column.take(pa.array(rows))
        distinct = pc.unique(cells).filter(pc.not_equal(pc.unique(cells), ""))
        gone = _not_there([manifest.resolve(cell) for cell in distinct.to_pylist()])
        is_gone = pc.is_in(cells, value_set=distinct.filter(pa.array(gone))).to_numpy(zero_copy_only=False)
        named += len(cells) - pc.sum(pc.equal(cells, "")).as_py()
        missing += int(is_gone.sum())
        bad_rows |= set(rows[is_gone].tolist())
        examples += [manifest.resolve(distinct[i].as_py()) for i in np.flatnonzero(gone)[:3]]
    bad_rows |= set(rows.tolist()) - set(manifest.usable(split).tolist())
    losses = Losses(f"{manifest.path}: split {split}", named, missing, max_missing, examples[:3], frozenset(bad_rows))
    losses.check()
    return losses


def _not_there(paths: list[str]) -> np.ndarray:
    """bool [N]. In threads: on a network each look takes a while."""
    chunks = [paths[first : first + CHUNK] for first in range(0, len(paths), CHUNK)]
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda chunk: [not exists(path) for path in chunk], chunks)
    return np.array([gone for chunk in found for gone in chunk], bool)

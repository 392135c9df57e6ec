"""Holds out val and test rows of data without splits, so that every data set has rows to be judged on.

Legend: N rows, T tasks, K classes of all tasks, U units (rows, or groups of rows that stay together).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mbt_core.config import DataConfig
from mbt_core.data.splits import TEST, TRAIN, VAL, Groups, Splits, unit_hash

LARGEST_SHARE = 5
"""Small data hold out a row of each class, but at most one row in so many for each split."""
FEWEST_TRAINED = 3
"""At least one row in so many stays in train, however large the groups are."""


class TaskClasses(NamedTuple):
    """The classes of the rows in one task.

    Args:
        codes: int [N], the distinct label cell of each row; -1: empty.
        members: the classes of each distinct cell, as numbers from 0 on.
    """

    codes: np.ndarray
    members: Sequence[Sequence[int]]


def hold_out(tasks: Sequence[TaskClasses], groups: Groups, config: DataConfig) -> Splits:
    """Parts all rows into train, val and test, about the same share of each class in all of them.

    Which rows are held out depends on the groups' names and classes alone, neither on their order nor on a seed.
    ``data.test_fraction`` and ``data.val_fraction`` of the rows are taken; of small data a row of each class, up to one
    row in `LARGEST_SHARE`. Every class keeps a row in train, which is why very few rows may leave val or test empty.

    Args:
        tasks: what the rows are; rows of several classes count as of their rarest one.
        groups: rows that stay together; of other rows each is a group of its own.
        config: the two shares.

    Returns:
        split -> rows in ascending order; without those that have none.
    """
    N = len(groups.codes)
    row, member, counts = _mentions(tasks, N)
    stratum_N = _rarest(row, member, counts, N)
    used, unit_N = np.unique(groups.codes, return_inverse=True)
    names = [groups.names[code] for code in used.tolist()]
    units = _Units(unit_N, names, stratum_N, row, member, counts)
    split_U = np.zeros(len(names), np.int64)
    wanted = {TEST: config.test_fraction, VAL: config.val_fraction}
    for number, share in enumerate(wanted.values(), 1):
        if share:
            split_U[units.take(max(1, round(share * N), min(units.strata, N // LARGEST_SHARE)))] = number
    found = {name: np.flatnonzero(split_U[unit_N] == number) for number, name in enumerate((TRAIN, *wanted))}
    return {name: found[name] for name in (TRAIN, VAL, TEST) if len(found[name])}


def _mentions(tasks: Sequence[TaskClasses], rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row and class of each mention of a class, [M] each, and how many rows each class has, [K]."""
    found_rows, found_classes, offset = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
    for codes, members in tasks:
        filled = np.flatnonzero(codes >= 0)
        lengths = np.array([len(cell) for cell in members], np.int64)
        flat = np.array([number for cell in members for number in cell], np.int64)
        repeats = lengths[codes[filled]]
        begins = (np.cumsum(lengths) - lengths)[codes[filled]]
        within = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        found_rows.append(np.repeat(filled, repeats))
        found_classes.append(flat[np.repeat(begins, repeats) + within] + offset)
        offset += int(flat.max(initial=-1)) + 1
    member = np.concatenate(found_classes)
    return np.concatenate(found_rows), member, np.bincount(member, minlength=offset)


def _rarest(row: np.ndarray, member: np.ndarray, counts: np.ndarray, rows: int) -> np.ndarray:
    """The rarest class of each row, [N]; -1: it has none."""
    order = np.lexsort((member, counts[member], row))
    labelled, first = np.unique(row[order], return_index=True)
    stratum_N = np.full(rows, -1)
    stratum_N[labelled] = member[order][first]
    return stratum_N


class _Units:
    """Hands out units, each once, as long as train keeps enough.

    Args:
        unit_N: the unit of each row.
        names: of the units.
        stratum_N, row, member, counts: as of `_rarest` and `_mentions`.
    """

    def __init__(
        self,
        unit_N: np.ndarray,
        names: Sequence[str],
        stratum_N: np.ndarray,
        row: np.ndarray,
        member: np.ndarray,
        counts: np.ndarray,
    ) -> None:
        rarity_N = np.where(stratum_N < 0, np.iinfo(np.int64).max, np.append(counts, 0)[stratum_N])
        by_rarity = np.lexsort((stratum_N, rarity_N, unit_N))
        first = np.unique(unit_N[by_rarity], return_index=True)[1]
        self.stratum_U, self.size_U = stratum_N[by_rarity[first]], np.bincount(unit_N)
        self.strata = len(np.unique(self.stratum_U))
        self.quantile_U = _quantiles(self.stratum_U, self.size_U, unit_hash(names, "hold-out"))
        self.waiting = np.argsort(self.quantile_U, kind="stable")
        self.rows, self.all_rows, self.left = len(unit_N), len(unit_N), counts.tolist()
        order = np.argsort(unit_N[row], kind="stable")
        self._member, ends = member[order], np.cumsum(np.bincount(unit_N[row], minlength=len(names)))
        self._span = np.stack([np.concatenate([[0], ends[:-1]]), ends], 1)

    def take(self, wanted: int) -> list[int]:
        """Units that come to at least `wanted` rows, or as many as there may be."""
        taken: list[int] = []
        for unit in self._order(wanted).tolist():
            if wanted <= 0:
                break
            size, classes = int(self.size_U[unit]), Counter(self._member[slice(*self._span[unit])].tolist())
            stays = (self.rows - size) * FEWEST_TRAINED >= self.all_rows
            if stays and all(self.left[name] > number for name, number in classes.items()):
                taken.append(unit)
                wanted -= size
                self.rows -= size
                for name, number in classes.items():
                    self.left[name] -= number
        self.waiting = self.waiting[~np.isin(self.waiting, taken)]
        return taken

    def _order(self, wanted: int) -> np.ndarray:
        """Those that wait, all strata evenly; if there is room, first one of each."""
        _, first = np.unique(self.stratum_U[self.waiting], return_index=True)
        if len(first) > wanted:
            return self.waiting
        first.sort()
        return np.concatenate([self.waiting[first], np.delete(self.waiting, first)])


def _quantiles(stratum_U: np.ndarray, size_U: np.ndarray, hash_U: np.ndarray) -> np.ndarray:
    """Where each unit stands in its stratum by its hash, 0 to 1 and uniform, [U]."""
    order = np.lexsort((hash_U, stratum_U))
    size, before = size_U[order], np.cumsum(size_U[order]) - size_U[order]
    _, start, inverse = np.unique(stratum_U[order], return_index=True, return_inverse=True)
    quantile_U = np.empty(len(order))
    quantile_U[order] = (before - before[start][inverse] + hash_U[order] * size) / np.bincount(inverse, size)[inverse]
    return quantile_U

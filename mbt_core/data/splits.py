"""Which rows are train, val and test.

Every choice is made by a hash of a row's id (or group), so that it depends on neither the order of the rows nor a
seed, and a row stays where it is when others are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from mbt_core.config import DataConfig
from mbt_core.errors import DataError

TRAIN, VAL, TEST = "train", "val", "test"
ALIASES = {"": TRAIN, "training": TRAIN, "valid": VAL, "validation": VAL, "testing": TEST}
MIN_HELD_OUT = 20
"""A hold-out of fewer rows would choose by chance."""

Splits = dict[str, np.ndarray]


def split_name(text: str) -> str:
    """A split's name as the manifest gives it -> ``train``, ``val``, ``test`` or another, in lower case."""
    name = text.strip().lower()
    return ALIASES.get(name, name)


def unit_hash(values: Sequence[str], salt: str) -> np.ndarray:
    """A number in [0, 1) per value that depends on nothing but the value and `salt`: float64 [N]."""
    person = salt.encode()
    digests = b"".join(blake2b(value.encode(), digest_size=8, person=person).digest() for value in values)
    return (np.frombuffer(digests, "<u8") >> np.uint64(11)) * 2.0**-53


class Groups(NamedTuple):
    """Rows that must stay together.

    Args:
        codes: int [N], the group of each row, an index into `names`.
        names: name of each group.
    """

    codes: np.ndarray
    names: Sequence[str]


def pool(given: Splits) -> Splits:
    """The splits with train and val together as train, to be parted into folds."""
    rows = np.sort(np.concatenate([given.get(TRAIN, _NONE), given.get(VAL, _NONE)]))
    return {TRAIN: rows} | {name: rows for name, rows in given.items() if name not in (TRAIN, VAL)}


def check_groups(splits: Splits, groups: Groups, column: str) -> None:
    """Raises `DataError` if a group has rows in more than one split. `column`: where the groups are from."""
    count = np.zeros(len(groups.names), np.int64)
    for rows in splits.values():
        count[np.unique(groups.codes[rows])] += 1
    torn = np.flatnonzero(count > 1)
    if len(torn):
        shown = ", ".join(repr(groups.names[i]) for i in torn[:3])
        raise DataError(
            f"data.group: {len(torn)} values of column {column!r} have rows in several splits, e.g. {shown}; "
            "change the split column, or leave it out to have val held out by group"
        )


def make_splits(
    given: Splits, ids: Sequence[str], strata: np.ndarray, groups: Groups | None, config: DataConfig
) -> Splits:
    """The rules for what the manifest leaves open. The test split is never touched.

    - `folds`: train (with `pool`, also the given val) is dealt into folds; fold `fold` is val.
    - no val: `val_fraction` of train is held out, if that gives at least `MIN_HELD_OUT` rows.
    - `fraction`: share of train that is used; a smaller share is a subset of a larger one, and classes keep theirs.

    Args:
        given: split -> rows, as the manifest has it.
        ids: id of each row.
        strata: class of each row (any code), kept in proportion by folds and fraction.
        groups: rows that stay together in the hold-out and in folds.

    Returns:
        split -> rows in ascending order; without ``val`` if there is none.
    """
    splits = dict(given)
    if config.folds is not None:
        rows = splits.get(TRAIN, _NONE)
        in_val = _folds(rows, ids, strata, groups, config.folds) == config.fold
        splits |= {TRAIN: rows[~in_val], VAL: rows[in_val]}
    elif VAL not in splits and config.val_fraction and TRAIN in splits:
        rows = splits[TRAIN]
        in_val = _held_out(rows, ids, groups, config.val_fraction)
        if in_val.sum() >= MIN_HELD_OUT:
            splits |= {TRAIN: rows[~in_val], VAL: rows[in_val]}
    if config.fraction < 1 and TRAIN in splits:
        rows = splits[TRAIN]
        splits[TRAIN] = _share(rows, ids, strata, config.fraction)
    return splits


_NONE = np.zeros(0, np.int64)


def _hash(rows: np.ndarray, ids: Sequence[str], salt: str) -> np.ndarray:
    return unit_hash(ids if len(rows) == len(ids) else [ids[i] for i in rows.tolist()], salt)


def _held_out(rows: np.ndarray, ids: Sequence[str], groups: Groups | None, fraction: float) -> np.ndarray:
    """bool [N]. By rows: those whose hash is below `fraction`. By groups: in order of hash, until it is reached."""
    if groups is None:
        return _hash(rows, ids, "val") < fraction
    used, members, sizes = np.unique(groups.codes[rows], return_inverse=True, return_counts=True)
    order = np.argsort(unit_hash([groups.names[i] for i in used], "val"), kind="stable")
    # a group is taken while less than the fraction was taken before it; the last one always stays in train
    before = np.cumsum(sizes[order]) - sizes[order]
    taken = order[before < fraction * len(rows)][: len(order) - 1]
    return np.isin(members, taken)


def _folds(rows: np.ndarray, ids: Sequence[str], strata: np.ndarray, groups: Groups | None, folds: int) -> np.ndarray:
    """Fold of each row, [N]. Rows are dealt in turn, class by class. Groups go, the largest first, to the fold that has
    least of their classes and fewest rows."""
    if groups is None:
        _at_least(folds, len(rows), "rows")
        fold = np.empty(len(rows), np.int64)
        fold[np.lexsort((_hash(rows, ids, "fold"), strata[rows]))] = np.arange(len(rows)) % folds
        return fold
    used, members, sizes = np.unique(groups.codes[rows], return_inverse=True, return_counts=True)
    _at_least(folds, len(used), "groups")
    keys = unit_hash([groups.names[i] for i in used], "fold")
    _, stratum, of_stratum = np.unique(strata[rows], return_inverse=True, return_counts=True)
    strata_of = np.split(stratum[np.argsort(members, kind="stable")], np.cumsum(sizes)[:-1])
    filled, size = np.zeros((folds, len(of_stratum))), np.zeros(folds)
    fold_of = np.empty(len(used), np.int64)
    for group in np.lexsort((keys, -sizes)):
        present, counts = np.unique(strata_of[group], return_counts=True)
        share = filled[:, present] / of_stratum[present] @ counts / sizes[group]
        fold = fold_of[group] = (share + size / len(rows)).argmin()
        filled[fold, present] += counts
        size[fold] += sizes[group]
    return fold_of[members]


def _at_least(folds: int, count: int, what: str) -> None:
    if count < folds:
        raise DataError(f"data.folds: {folds} folds of {count} training {what}; expected at most {count}")


def _share(rows: np.ndarray, ids: Sequence[str], strata: np.ndarray, fraction: float) -> np.ndarray:
    """ceil(fraction N) of the rows in ascending order, about the same share of each stratum."""
    hashes = _hash(rows, ids, "fraction")
    order = np.lexsort((hashes, strata[rows]))
    _, starts, members, sizes = np.unique(
        strata[rows][order], return_index=True, return_inverse=True, return_counts=True
    )
    rank = np.arange(len(rows)) - starts[members]
    quantile = (rank + hashes[order]) / sizes[members]  # uniform in [0, 1) within each stratum
    count = int(np.ceil(fraction * len(rows) - 1e-9))
    return np.sort(rows[order[np.argsort(quantile, kind="stable")[:count]]])

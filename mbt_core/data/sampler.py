"""Which rows make up which batch.

Everything is computed from (seed, epoch) and the step: a run goes on from any step without saved state, and what all
processes draw together does not depend on how many they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from torch.utils.data import Sampler

from mbt_core.data.dataset import Draw
from mbt_core.errors import ConfigError


class TrainSampler(Sampler[list[Draw]]):
    """An endless stream of epochs, cut into batches; a batch may lie in two epochs.

    An epoch is a permutation of the rows, or with `weights` as many weighted draws with replacement.

    Args:
        rows: of the manifest.
        batch_size: rows of a global batch, over all processes.
        steps: at which step the stream ends.
        seed: of the run.
        start_step: the first step.
        rank, world: this process takes the `rank`-th of `world` equal parts of every batch.
        weights: [len(rows)], probability of each row, up to a factor.

    Raises:
        ConfigError: if the batch cannot be shared out equally, or there are no rows.
    """

    def __init__(
        self,
        rows: Sequence[int] | np.ndarray,
        batch_size: int,
        steps: int,
        seed: int,
        start_step: int = 0,
        rank: int = 0,
        world: int = 1,
        weights: np.ndarray | None = None,
    ) -> None:
        if len(rows) == 0:
            raise ConfigError("data: the train split has no rows")
        if batch_size % world:
            raise ConfigError(f"train.batch_size: {batch_size} is not a multiple of the {world} processes")
        self.rows = np.asarray(rows, np.int64)
        self.batch_size, self.steps, self.seed, self.start_step = batch_size, steps, seed % 2**64, start_step
        self.rank, self.world = rank, world
        self.cumulative = None if weights is None else np.cumsum(weights) / np.sum(weights)

    def __len__(self) -> int:
        return max(0, self.steps - self.start_step)

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch_draws = lru_cache(maxsize=2)(self._epoch)
        share = self.batch_size // self.world
        for step in range(self.start_step, self.steps):
            first = step * self.batch_size + self.rank * share
            places = (divmod(place, len(self.rows)) for place in range(first, first + share))
            yield [Draw(epoch, *(int(x[i]) for x in epoch_draws(epoch))) for epoch, i in places]

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows in the order of an epoch, and how often each was drawn before in it."""
        rng = np.random.default_rng((self.seed, epoch))
        count = len(self.rows)
        if self.cumulative is None:
            return self.rows[rng.permutation(count)], np.zeros(count, np.int64)
        drawn = np.searchsorted(self.cumulative, rng.random(count), side="right").clip(max=count - 1)
        order = np.argsort(drawn, kind="stable")
        ordered = drawn[order]
        repeats = np.empty(count, np.int64)
        repeats[order] = np.arange(count) - np.searchsorted(ordered, ordered)
        return self.rows[drawn], repeats


class EvalSampler(Sampler[list[Draw]]):
    """All rows once, in order, in batches.

    Args:
        rows: of the manifest.
        batch_size: rows of a batch of one process.
        rank, world: this process takes every `world`-th row from `rank` on; no row is repeated, so the numbers of rows
            and batches of two processes may differ by one.
    """

    def __init__(self, rows: Sequence[int] | np.ndarray, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.rows = np.asarray(rows, np.int64)[rank::world]
        self.batch_size = batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        for first in range(0, len(self.rows), self.batch_size):
            yield [Draw(0, int(row)) for row in self.rows[first : first + self.batch_size]]

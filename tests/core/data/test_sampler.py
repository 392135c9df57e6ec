"""Which rows make up which batch."""

from collections import Counter

import numpy as np
import pytest

from mbt_core.data.dataset import Draw
from mbt_core.data.sampler import EvalSampler, TrainSampler
from mbt_core.errors import ConfigError

ROWS = np.arange(100, 110)


def test_epochs_are_permutations_and_batches_straddle_them() -> None:
    batches = list(TrainSampler(ROWS, 4, 5, seed=1))
    assert [len(batch) for batch in batches] == [4] * 5
    stream = [draw for batch in batches for draw in batch]
    assert [draw.epoch for draw in stream] == [0] * 10 + [1] * 10
    assert sorted(draw.index for draw in stream[:10]) == sorted(draw.index for draw in stream[10:]) == list(ROWS)
    assert [d.index for d in stream[:10]] != [d.index for d in stream[10:]]
    assert stream == [draw for batch in TrainSampler(ROWS, 4, 5, seed=1) for draw in batch]
    assert stream != [draw for batch in TrainSampler(ROWS, 4, 5, seed=2) for draw in batch]


def test_any_step_can_be_the_first() -> None:
    whole = list(TrainSampler(ROWS, 4, 30, seed=1))
    later = TrainSampler(ROWS, 4, 30, seed=1, start_step=23)
    assert len(later) == 7
    assert list(later) == whole[23:]
    assert list(TrainSampler(ROWS, 4, 30, seed=1, start_step=40)) == []


@pytest.mark.parametrize("weights", [None, np.arange(1, 11)])
def test_processes_share_out_the_same_batches(weights: np.ndarray | None) -> None:
    whole = list(TrainSampler(ROWS, 6, 9, seed=1, weights=weights))
    parts = [list(TrainSampler(ROWS, 6, 9, 1, rank=rank, world=3, weights=weights)) for rank in range(3)]
    assert [[draw for part in batches for draw in part] for batches in zip(*parts, strict=True)] == whole


def test_a_batch_larger_than_the_data() -> None:
    (batch,) = TrainSampler(ROWS[:3], 8, 1, seed=0)
    assert [draw.epoch for draw in batch] == [0, 0, 0, 1, 1, 1, 2, 2]


def test_weighted_draws() -> None:
    weights = np.array([1, 3, 0, 6])
    stream = [d for batch in TrainSampler([5, 6, 7, 8], 4, 1000, seed=0, weights=weights) for d in batch]
    counts = Counter(draw.index for draw in stream)
    assert counts[7] == 0
    assert counts[5] == pytest.approx(400, abs=60)
    assert counts[6] == pytest.approx(1200, abs=90)
    # drawn again in an epoch, a row is another draw: it gets another window
    assert len(set(stream)) == len(stream)
    assert max(draw.repeat for draw in stream) == 3


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="the train split has no rows"):
        TrainSampler([], 4, 1, seed=0)
    with pytest.raises(ConfigError, match=r"train\.batch_size: 10 is not a multiple of the 4 processes"):
        TrainSampler(ROWS, 10, 1, seed=0, world=4)


@pytest.mark.parametrize("world", [1, 2, 3, 12])
def test_evaluation_sees_every_row_once(world: int) -> None:
    samplers = [EvalSampler(ROWS, 3, rank, world) for rank in range(world)]
    batches = [list(sampler) for sampler in samplers]
    assert [len(b) for b in batches] == [len(sampler) for sampler in samplers]
    seen = sorted(draw for rank in batches for batch in rank for draw in batch)
    assert seen == [Draw(0, int(row)) for row in ROWS]
    assert all(len(batch) <= 3 for rank in batches for batch in rank)

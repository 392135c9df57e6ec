"""Which weights of a training are kept."""

from functools import partial
from types import SimpleNamespace

import pytest

from mbt_core.training.loop import Plan, Trainer, standard_error
from mbt_core.training.state import Progress

NAN = float("nan")


@pytest.mark.parametrize(("evaluations", "kept", "stale"), [
    ([(0.5, 3.0), (1.0, 2.0), (1.0, 1.0), (1.0, 1.5), (0.9, 0.5)], [1, 2, 3], 3),
    ([(0.5, 1.0), (0.5, 1.0), (0.5, NAN)], [1], 2),
    ([(0.5, NAN), (0.5, 1.0)], [1], 1),
    ([(None, 2.0), (None, 3.0), (0.1, 9.0), (None, 1.0)], [1, 2, 3], 1),
])  # fmt: skip
def test_among_equals_the_lowest_loss_is_kept(evaluations, kept, stale):
    """And patience runs on: a lower loss is no better value of the monitored metric."""
    saved, progress = saved_steps(evaluations, "best", "top1")
    assert (saved, progress.best_step, progress.stale) == (kept, kept[-1], stale)


@pytest.mark.parametrize(("monitor", "values", "kept", "stale"), [
    ("top1", [0.5, 0.9, 0.86, 1.0, 0.99, 0.96, 0.98], [1, 2, 3, 4, 5, 7], 3),
    ("top1", [0.9, 0.6, 0.85, None], [1, 3], 3),
    ("kind/top1", [0.9, 0.89], [1, 2], 1),
    ("r2", [0.9, 0.89, 0.9], [1], 2),
    ("mean", [0.9, 0.89], [1], 1),
])  # fmt: skip
def test_the_latest_that_val_cannot_tell_from_the_best_is_kept(monitor, values, kept, stale):
    """Of 100 rows: two standard errors are 0.06 at 0.9 and 0.03 at 1."""
    saved, progress = saved_steps([(value, 1.0) for value in values], "latest", monitor)
    assert (saved, progress.best_step, progress.stale) == (kept, kept[-1], stale)
    assert progress.best == max(value for value in values if value is not None)


def test_standard_error():
    """As of the binomial distribution for many rows, and not zero at the ends."""
    assert standard_error(0.5, 10**6) == pytest.approx(5e-4, rel=1e-3)
    assert standard_error(1.0, 100) == pytest.approx((102 / 104 * 2 / 104 / 104) ** 0.5)
    assert standard_error(0.0, 100) == pytest.approx(standard_error(1.0, 100))


def saved_steps(evaluations, select, monitor):
    progress, saved = Progress(), []
    trainer = SimpleNamespace(
        progress=progress,
        config=SimpleNamespace(select=select),
        plan=Plan(9, 32, 1, monitor, val_rows=100),
        team=SimpleNamespace(is_first=False),
        _save_model=lambda: saved.append(progress.step),
    )
    trainer._is_as_good = partial(Trainer._is_as_good, trainer)
    for progress.step, (value, loss) in enumerate(evaluations, 1):
        Trainer._keep_if_best(trainer, value, loss)
    return saved, progress

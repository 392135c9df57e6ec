"""Which weights of a training are kept."""

from types import SimpleNamespace

import pytest

from mbt_core.training.loop import Trainer
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
    progress, saved = Progress(), []
    trainer = SimpleNamespace(
        progress=progress, team=SimpleNamespace(is_first=False), _save_model=lambda: saved.append(progress.step)
    )
    for progress.step, (value, loss) in enumerate(evaluations, 1):
        Trainer._keep_if_best(trainer, value, loss)
    assert (saved, progress.best_step, progress.stale) == (kept, kept[-1], stale)

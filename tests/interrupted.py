"""A training that is interrupted and resumed, which must end as one that is not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mbt_core.run import Run, Trainer, train


def train_interrupted(experiment: Mapping[str, Any], out: Path, step: int) -> Run:
    """Trains until `step`, saves, is interrupted, and resumes from the run folder to the end."""
    train_step = Trainer.train_step

    def interrupt(self: Trainer, *args: Any) -> None:
        if self.progress.step == step:
            self.save()
            raise KeyboardInterrupt
        train_step(self, *args)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "train_step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(experiment, out)
    return train(experiment, out, resume=True)

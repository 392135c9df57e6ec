"""How much a score hangs on which examples were tested: the delete-a-group jackknife (Shao & Tu 1995, chapter 2)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from zlib import crc32

import torch
from torch import Tensor

from mbt_core.errors import DataError
from mbt_core.evaluate.evaluator import FUSED, Evaluation
from mbt_core.evaluate.table import FILE, read_predictions
from mbt_core.training.folder import RunFolder

GROUPS = 20


def scores_without(folder: RunFolder, main: Sequence[str]) -> tuple[float, ...]:
    """The mean of some metrics on the test split without each group of its examples in turn.

    An example's group depends on the ids alone, so that runs on the same rows can be compared. Examples that belong
    together (``data.group``) are in the same one, since they come out alike.

    Args:
        folder: of a run.
        main: names of metrics of the fused prediction.

    Returns:
        `GROUPS` scores, as many as there are examples (or groups of `data.group`) if these are fewer; none where the
        run has no test predictions.
    """
    if not (folder.path / FILE).is_file():
        return ()
    try:
        said = read_predictions(folder.path, folder.experiment().model.head)
    except DataError:
        return ()
    # those that could not be read have a rank, too: all others keep their groups in a run that could
    names = sorted(set(said.groups), key=lambda name: (crc32(name.encode()), name))
    count, groups = len(said.found.index), min(GROUPS, len(names))
    if count < 2 or groups < 2:
        return ()
    rank = {name: number for number, name in enumerate(names)}
    ranks_N = torch.tensor([rank[name] for name in said.groups[:count]])
    return tuple(_score(said.found, ranks_N % groups != group, main) for group in range(groups))


def _score(found: Evaluation, keep_N: Tensor, main: Sequence[str]) -> float:
    logits = {task: values[keep_N] for task, values in found.logits[FUSED].items()}
    targets = {task: values[keep_N] for task, values in found.targets.items()}
    metrics = Evaluation(found.index[keep_N], {FUSED: logits}, targets, {}, found.head).metrics()
    values = [metrics[name] for name in main if name in metrics]
    return statistics.fmean(values) if values else math.nan  # nothing is left to judge by


def standard_error(without: Sequence[float]) -> float:
    """Of an estimate, by its values without each group in turn."""
    mean, count = statistics.fmean(without), len(without)
    return math.sqrt((count - 1) / count * sum((value - mean) ** 2 for value in without))

"""Every subset of the trained modalities, and what adding one does to right answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Literal, get_args

import torch

from mbt_core.errors import ConfigError, unknown
from mbt_core.evaluate.evaluator import FUSED, Evaluation, Subset

Rows = Literal["common", "own"]
ROWS: tuple[Rows, ...] = get_args(Rows)


def all_subsets(names: Sequence[str]) -> list[Subset]:
    """All non-empty subsets, smallest first, each in the order of `names`."""
    return [subset for size in range(1, len(names) + 1) for subset in combinations(names, size)]


def on_rows(evaluations: Mapping[Subset, Evaluation], rows: Rows) -> dict[Subset, Evaluation]:
    """The evaluations of subsets on the rows that are asked for.

    A subset has an answer for every row that has any of its modalities: ``own`` leaves it at that. ``common`` are the
    rows that all subsets answer, so that what differs between them is the modalities alone; a subset that answers no
    row at all does not count.

    Raises:
        ConfigError: for another word.
    """
    if rows not in ROWS:
        raise ConfigError(f"--rows: {unknown('choice', rows, ROWS)}")
    answered = [evaluation.index for evaluation in evaluations.values() if len(evaluation.index)]
    if rows == "own" or not answered:
        return dict(evaluations)
    common = answered[0]
    for index in answered[1:]:
        common = common[torch.isin(common, index)]
    return {subset: evaluation.select(common) for subset, evaluation in evaluations.items()}


def by_name(evaluations: Mapping[Subset, Evaluation]) -> dict[str, dict[str, float]]:
    """Modalities joined by ``+`` -> ``examples``, the number of rows, and the metrics of these."""
    return {"+".join(s): {"examples": len(e.index), **e.metrics()} for s, e in evaluations.items()}


def confusion(found: Mapping[Subset, Evaluation]) -> list[dict[str, Any]]:
    """Modality confusion (VGGSounder, 2025): how often adding one modality turns a right answer wrong, and the reverse.

    Counted over the examples that have all modalities of both subsets; single-label tasks only.

    Returns:
        Rows ``{"from", "adding", "task", "lost", "gained", "examples"}``; lost and gained are shares of the examples.
    """
    rows = []
    for larger, after in found.items():
        tasks = [task for task in after.logits.get(FUSED, {}) if after.head.kind_of(task) == "single"]
        for name in larger:
            smaller = tuple(n for n in larger if n != name)
            if smaller in found and len(_complete(after)):
                pair = {"from": "+".join(smaller), "adding": name}
                rows += [{**pair, "task": task, **_change(found[smaller], after, task)} for task in tasks]
    return rows


def _complete(evaluation: Evaluation) -> torch.Tensor:
    """Places of the examples that have all its modalities."""
    return (
        torch.stack(list(evaluation.present.values())).all(0).nonzero()[:, 0] if evaluation.present else torch.empty(0)
    )


def _change(before: Evaluation, after: Evaluation, task: str) -> dict[str, float]:
    complete = _complete(after)
    place = torch.searchsorted(before.index, after.index[complete])
    right_after = _right(after, task)[complete]
    right_before = _right(before, task)[place]
    count = len(right_after)
    return {
        "lost": int((right_before & ~right_after).sum()) / count,
        "gained": int((~right_before & right_after).sum()) / count,
        "examples": count,
    }


def _right(evaluation: Evaluation, task: str) -> torch.Tensor:
    return evaluation.logits[FUSED][task].argmax(1) == evaluation.targets[task]

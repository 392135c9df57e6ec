"""What the report tells of predictions, as numbers.

Shapes: N examples, C classes of a task, K chosen classes, B bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mbt_core.config import TaskKind
from mbt_core.evaluate.metrics import average_precision

BINS = 15


@dataclass(frozen=True)
class Reliability:
    """How often a model is right that says p.

    Args:
        said: mean probability of each bin that is not empty.
        right: share of right answers in it.
        share: of all answers in it.
        count: of answers in it.
        error: expected calibration error, the mean of |said - right| weighted by share (Guo et al., 2017).
    """

    said: list[float]
    right: list[float]
    share: list[float]
    count: list[int]
    error: float


def reliability(kind: TaskKind, logits_NC: Tensor, target: Tensor, bins: int = BINS) -> Reliability | None:
    """Of the first answers (``single``), or of all classes' probabilities (``multilabel``); None: there is none.

    Args:
        kind: of the task; a regression has no probabilities.
        logits_NC: float [N, C].
        target: class indices [N], or multi-hot [N, C].
        bins: of equal width between 0 and 1.
    """
    if kind == "regression" or not len(logits_NC):
        return None
    if kind == "single":
        p, answer = logits_NC.softmax(1).max(1)
        right = answer == target
    else:
        p, right = logits_NC.sigmoid().flatten(), target.flatten() > 0.5
    where = (p * bins).long().clamp(0, bins - 1)
    counts = torch.bincount(where, minlength=bins).double()
    said = torch.bincount(where, p.double(), bins)
    good = torch.bincount(where, right.double(), bins)
    filled = counts > 0
    n = counts[filled]
    share_B, said_B, right_B = n / n.sum(), said[filled] / n, good[filled] / n
    error = float((share_B * (said_B - right_B).abs()).sum())
    return Reliability(said_B.tolist(), right_B.tolist(), share_B.tolist(), n.long().tolist(), error)


def confusion_matrix(logits_NC: Tensor, target_N: Tensor) -> Tensor:
    """int64 [C, C]: how many examples of each class (row) the model calls what (column)."""
    C = logits_NC.shape[1]
    return torch.bincount(target_N.long() * C + logits_NC.argmax(1), minlength=C * C).reshape(C, C)


def most_confused(matrix_CC: Tensor, count: int) -> list[int]:
    """At most `count` classes, in their order: those that most mistakes are between."""
    wrong_CC = matrix_CC - matrix_CC.diag().diag()
    mistakes_C = wrong_CC.sum(0) + wrong_CC.sum(1)
    return mistakes_C.topk(min(count, len(matrix_CC))).indices.sort().values.tolist()


def confused_pairs(matrix_CC: Tensor, count: int) -> list[tuple[int, int, int]]:
    """(what it is, what the model says, how often) of at most `count` mistakes, the commonest first."""
    wrong_CC = matrix_CC - matrix_CC.diag().diag()
    found = wrong_CC.flatten().topk(min(count, wrong_CC.numel()))
    C = len(matrix_CC)
    pairs = zip(found.indices.tolist(), found.values.tolist(), strict=True)
    return [(place // C, place % C, times) for place, times in pairs if times]


@dataclass(frozen=True)
class ClassRow:
    """One class: its place, how many examples it has, and its score (None where there is none).

    The score is the recall of a class of a ``single`` task (with its precision), the average precision of one of a
    ``multilabel`` task.
    """

    place: int
    examples: int
    score: float | None
    precision: float | None = None


def class_rows(kind: TaskKind, logits_NC: Tensor, target: Tensor) -> list[ClassRow]:
    """All classes, the worst first, those without examples last; none for a regression."""
    if kind == "regression" or not len(logits_NC):
        return []
    if kind == "single":
        matrix_CC = confusion_matrix(logits_NC, target).double()
        examples_C = matrix_CC.sum(1)
        score_C, precision_C = matrix_CC.diag() / examples_C, matrix_CC.diag() / matrix_CC.sum(0)
    else:
        examples_C, score_C = target.sum(0), average_precision(logits_NC, target)
        precision_C = torch.full_like(score_C, torch.nan)
    columns = (examples_C.tolist(), score_C.tolist(), precision_C.tolist())
    rows = [
        ClassRow(place, int(n), _number(score), _number(precision))
        for place, (n, score, precision) in enumerate(zip(*columns, strict=True))
    ]
    return sorted(rows, key=lambda row: (row.score is None, row.score))


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def hardness(kind: TaskKind, logits_NC: Tensor, target: Tensor) -> Tensor:
    """[N]: how wrong each answer is, above 0 where it is wrong at all.

    ``single``: by how much the best logit is above the right one. ``multilabel``: the same for the right class with the
    lowest logit against the best wrong one; 0 (a probability of half) stands in where no class is right, or none wrong.
    ``regression``: largest error of the C numbers, in their deviations, or as it is where one does not vary.
    What is no number is endlessly wrong.
    """
    return _hardness(kind, logits_NC.float(), target).nan_to_num(nan=torch.inf, posinf=torch.inf)


def _hardness(kind: TaskKind, logits_NC: Tensor, target: Tensor) -> Tensor:
    if kind == "single":
        return logits_NC.max(1).values - logits_NC.gather(1, target.long()[:, None])[:, 0]
    if kind == "multilabel":
        right_NC = target > 0.5
        lowest_N = logits_NC.masked_fill(~right_NC, torch.inf).min(1).values.where(right_NC.any(1), 0)
        best_N = logits_NC.masked_fill(right_NC, -torch.inf).max(1).values.where(~right_NC.all(1), 0)
        return (best_N - lowest_N).clamp(min=0)
    target = target.float()
    deviation_C = target.std(0) if len(target) > 1 else torch.ones(target.shape[1])
    return ((logits_NC - target).abs() / deviation_C.where(deviation_C > 0, 1)).max(1).values


def hardest(hard_N: Tensor, count: int) -> list[int]:
    """Places of at most `count` wrong answers, the most wrong first."""
    found = hard_N.topk(min(count, len(hard_N)))
    return [place for place, how in zip(found.indices.tolist(), found.values.tolist(), strict=True) if how > 0]


def surest(logits_NC: Tensor, hard_N: Tensor, count: int) -> list[int]:
    """Places of at most `count` right answers of different classes, those with the largest best logit share first."""
    p_N, answer_N = logits_NC.float().softmax(1).max(1)
    order = p_N.masked_fill(hard_N > 0, -1.0).argsort(descending=True)
    found: dict[int, int] = {}
    for place in order.tolist():
        if len(found) == count or hard_N[place] > 0:
            break
        found.setdefault(int(answer_N[place]), place)
    return list(found.values())


def smooth(points: Sequence[tuple[int, float]], count: int) -> list[tuple[float, float]]:
    """At most `count` (step, value), each the mean of as many neighbours."""
    width = -(-len(points) // count)
    parts = [points[i : i + width] for i in range(0, len(points), width)] if points else []
    return [(sum(s for s, _ in part) / len(part), sum(v for _, v in part) / len(part)) for part in parts]

"""Metrics of predictions.

Shapes: N examples, C classes of a task.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mbt_core.config import TaskKind

TOP = 5
"""Places that are ranked."""


def task_metrics(kind: TaskKind, logits_NC: Tensor, target: Tensor) -> dict[str, float]:
    """Metrics of one task.

    Args:
        kind: ``single``: ``top1``, ``top5`` (from 6 classes on), ``macro_f1`` and ``balanced_accuracy``, see
            `class_scores`; ``multilabel``: ``mAP``, and ``macro_f1`` of the classes whose probability is above half;
            ``regression``: ``mae``, ``rmse`` (root of each output's mean squared error, mean over outputs), both in the
            targets' own units, and ``r2`` and ``pearson`` (means over the outputs whose target varies; left out where
            none does), see `correlation`.
        logits_NC: float [N, C].
        target: class indices [N], multi-hot [N, C], or values [N, C].
    """
    if not len(logits_NC):
        return {}
    if kind == "single":
        top = {"top1": 1, "top5": 5} if logits_NC.shape[1] > 5 else {"top1": 1}
        best_NK = _best(logits_NC)
        hits_NK = best_NK == target[:, None]
        metrics = {name: float(hits_NK[:, :k].any(1).float().mean()) for name, k in top.items()}
        classes = logits_NC.shape[1]
        counts = (torch.bincount(x.long(), minlength=classes) for x in (target[hits_NK[:, 0]], best_NK[:, 0], target))
        return metrics | class_scores(*counts)
    if kind == "multilabel":
        positive_NC, answer_NC = target > 0.5, logits_NC > 0
        counts = (x.sum(0) for x in (positive_NC & answer_NC, answer_NC, positive_NC))
        macro_f1 = class_scores(*counts)["macro_f1"]
        return {"mAP": float(average_precision(logits_NC, target).nanmean()), "macro_f1": macro_f1}
    error_NC = logits_NC.double() - target.double()
    metrics = {"mae": float(error_NC.abs().mean()), "rmse": float(error_NC.square().mean(0).sqrt().mean())}
    varies_C = target.amax(0) > target.amin(0)
    if varies_C.any():
        numbers = target[:, varies_C].double()
        unexplained_C, all_C = error_NC[:, varies_C].square().sum(0), (numbers - numbers.mean(0)).square().sum(0)
        metrics["r2"] = float((1 - unexplained_C / all_C).mean())
        metrics["pearson"] = float(correlation(logits_NC[:, varies_C], numbers).mean())
    return metrics


def metric_names(kind: TaskKind, outputs: int) -> list[str]:
    """Names of what `task_metrics` finds for a task with that many outputs; the main one first."""
    if kind == "single":
        return ["top1", *(["top5"] if outputs > 5 else []), "macro_f1", "balanced_accuracy"]
    return ["mAP", "macro_f1"] if kind == "multilabel" else ["r2", "rmse", "mae", "pearson"]


def class_scores(right_C: Tensor, answers_C: Tensor, examples_C: Tensor) -> dict[str, float]:
    """``macro_f1`` and ``balanced_accuracy``: each class counts the same, however many examples it has.

    ``macro_f1`` is the mean over classes of 2 right / (answers + examples), ``balanced_accuracy`` the mean of right /
    examples, the recall. Both are over the classes that have examples. Scikit-learn has the same balanced accuracy; its
    macro F1 counts a class that is answered and has no example as 0, unless ``labels`` names those that have some.

    Args:
        right_C: how many examples of each class are answered by it, int64 [C].
        answers_C: how many examples are answered by each class.
        examples_C: how many examples each class has.

    Returns:
        Both; NaN where no class has an example.
    """
    has = examples_C > 0
    right, answers, examples = (x[has].double() for x in (right_C, answers_C, examples_C))
    return {
        "macro_f1": float((2 * right / (answers + examples)).mean()),
        "balanced_accuracy": float((right / examples).mean()),
    }


def correlation(values_NC: Tensor, target_NC: Tensor) -> Tensor:
    """Pearson's r of each output, float64 [C], within -1 and 1; 0 for values that do not vary, as they tell nothing.

    Args:
        values_NC: that are predicted, float [N, C].
        target_NC: that vary in each column.
    """
    x_NC, y_NC = (v.double() - v.double().mean(0) for v in (values_NC, target_NC))
    norms_C = x_NC.square().sum(0).sqrt() * y_NC.square().sum(0).sqrt()
    r_C = ((x_NC * y_NC).sum(0) / norms_C).clamp(-1, 1)
    return r_C.masked_fill(values_NC.amax(0) == values_NC.amin(0), 0)


def base_name(name: str) -> str:
    """A metric without its task and modality: ``mae`` of ``TASK/mae[NAME]``."""
    return name.partition("[")[0].rpartition("/")[2]


def lower_is_better(name: str) -> bool:
    """Whether a metric (``loss``, ``TASK/mae``, ``mae[NAME]`` ...) is better the lower it is."""
    return base_name(name) in ("loss", "mae", "rmse")


SHARES = ("top1", "top5", "mAP", "macro_f1", "balanced_accuracy")
"""Names of the metrics from 0 to 1."""


def bounds(name: str) -> tuple[float, float]:
    """The least and the largest value that a metric can have."""
    name = base_name(name)
    if lower_is_better(name):
        return 0.0, math.inf
    others = {"r2": (-math.inf, 1.0), "pearson": (-1.0, 1.0)}
    return (0.0, 1.0) if name in SHARES else others.get(name, (-math.inf, math.inf))


def as_text(name: str, value: float) -> str:
    """A metric for people: four places after the point, or five digits of one in the units of what was predicted."""
    return f"{value:.5g}" if base_name(name) in ("mae", "rmse") else f"{value:.4f}"


def joint_metrics(logits: Sequence[Tensor], targets: Sequence[Tensor]) -> dict[str, float]:
    """``top1`` and ``top5`` of several single tasks together, all combinations ranked by the product of probabilities.

    ``top1`` is the share of examples whose tasks are all right. The reference's "action" of a verb and a noun.

    Args:
        logits: [N, C] of each task, with the same N.
        targets: class indices [N] of each task.
    """
    if not len(targets[0]):
        return {}
    # the five best combinations are made of the five best of each task; among equals, the best of each come first
    sums_NK = torch.zeros(len(targets[0]), 1, dtype=torch.float64, device=targets[0].device)
    hits_NK = torch.ones_like(sums_NK, dtype=torch.bool)
    for values, target in zip(logits, targets, strict=True):
        places = _best(values)
        log_p = values.double().log_softmax(1).gather(1, places)
        sums, order = (sums_NK[:, :, None] + log_p[:, None]).flatten(1).sort(stable=True, dim=1, descending=True)
        hits = (hits_NK[:, :, None] & (places == target[:, None])[:, None]).flatten(1).gather(1, order)
        sums_NK, hits_NK = sums[:, :TOP], hits[:, :TOP]
    combinations = math.prod(values.shape[1] for values in logits)
    return {f"top{k}": float(hits_NK[:, :k].any(1).double().mean()) for k in (1, TOP) if k == 1 or combinations > k}


def _best(logits_NC: Tensor) -> Tensor:
    """The classes of the highest logits, at most `TOP`; of equal ones always the same come first."""
    return logits_NC.topk(min(TOP, logits_NC.shape[1]), 1).indices


def average_precision(logits_NC: Tensor, target_NC: Tensor) -> Tensor:
    """Non-interpolated average precision of each class, float64 [C]; NaN without positives (left out of the mean).

    Mean over the positives of the precision among all examples that score as high; ties share one place.
    """
    found = np.full(logits_NC.shape[1], np.nan)
    columns = zip(logits_NC.T.contiguous().numpy(), (target_NC > 0.5).T.contiguous().numpy(), strict=True)
    for place, (scores_N, right_N) in enumerate(columns):
        if right_N.any():
            all_N, right_P = np.sort(scores_N), np.sort(scores_N[right_N])
            as_high = len(all_N) - np.searchsorted(all_N, right_P)
            right_as_high = len(right_P) - np.searchsorted(right_P, right_P)
            found[place] = (right_as_high / as_high).mean()
    return torch.from_numpy(found)

"""Metrics of predictions.

Shapes: N examples, C classes of a task.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.regression import mean_absolute_error

from mbt_core.config import TaskKind

TIE = 1e-12
"""Difference of log probabilities that is rounding."""


def task_metrics(kind: TaskKind, logits_NC: Tensor, target: Tensor) -> dict[str, float]:
    """Metrics of one task.

    Args:
        kind: ``single``: ``top1``, ``top5`` (from 6 classes on); ``multilabel``: ``mAP``; ``regression``: ``mae, r2``
            (mean over the outputs whose target varies; left out where none does).
        logits_NC: float [N, C].
        target: class indices [N], multi-hot [N, C], or values [N, C].
    """
    if not len(logits_NC):
        return {}
    if kind == "single":
        top = {"top1": 1, "top5": 5} if logits_NC.shape[1] > 5 else {"top1": 1}
        hits_NK = logits_NC.topk(max(top.values()), 1).indices == target[:, None]
        return {name: float(hits_NK[:, :k].any(1).float().mean()) for name, k in top.items()}
    if kind == "multilabel":
        return {"mAP": float(average_precision(logits_NC, target).nanmean())}
    metrics = {"mae": float(mean_absolute_error(logits_NC.contiguous(), target.float().contiguous()))}
    varies_C = target.amax(0) > target.amin(0)
    if varies_C.any():
        values, numbers = logits_NC[:, varies_C].double(), target[:, varies_C].double()
        unexplained_C, all_C = (numbers - values).square().sum(0), (numbers - numbers.mean(0)).square().sum(0)
        metrics["r2"] = float((1 - unexplained_C / all_C).mean())
    return metrics


def metric_names(kind: TaskKind, outputs: int) -> list[str]:
    """Names of what `task_metrics` finds for a task with that many outputs; the main one first."""
    if kind == "single":
        return ["top1", "top5"] if outputs > 5 else ["top1"]
    return ["mAP"] if kind == "multilabel" else ["r2", "mae"]


def lower_is_better(name: str) -> bool:
    """Whether a metric (``loss``, ``TASK/mae``, ``mae[NAME]`` ...) is better the lower it is."""
    return name.partition("[")[0].rpartition("/")[2] in ("loss", "mae")


def joint_metrics(logits: Sequence[Tensor], targets: Sequence[Tensor]) -> dict[str, float]:
    """``top1`` and ``top5`` of several single tasks together, all combinations ranked by the product of probabilities.

    ``top1`` is the share of examples whose tasks are all right. The reference's "action" of a verb and a noun.

    Args:
        logits: [N, C] of each task, with the same N.
        targets: class indices [N] of each task.
    """
    if not len(targets[0]):
        return {}
    log_p = [values.double().log_softmax(1) for values in logits]
    own_N = torch.stack([p.gather(1, y.long()[:, None])[:, 0] for p, y in zip(log_p, targets, strict=True)]).sum(0)
    # the five best combinations are made of the five best of each task
    best_NK = torch.zeros(len(own_N), 1, dtype=torch.float64, device=own_N.device)
    for p in log_p:
        sums = best_NK[:, :, None] + p.topk(min(5, p.shape[1]), 1).values[:, None]
        best_NK = sums.flatten(1).topk(min(5, sums[0].numel()), 1).values
    better_N = (best_NK > own_N[:, None] + TIE).sum(1)
    combinations = math.prod(p.shape[1] for p in log_p)
    return {f"top{k}": float((better_N < k).double().mean()) for k in (1, 5) if k == 1 or combinations > k}


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

"""Losses per example, and their mean over modalities and tasks.

Shapes: B batch, C classes of a task.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mbt_core.config import DEFAULT_TASK, HeadConfig, TaskKind
from mbt_core.config.schema import Scale
from mbt_core.model.mbt import Prediction

Targets = Mapping[str, Tensor]
"""Task -> float [B, C]: class probabilities, multi-hot labels, or values to regress."""


def by_task(logits: Any) -> dict[str, Tensor]:
    """Logits as task -> [B, C], whether one task was configured or several."""
    return dict(logits) if isinstance(logits, Mapping) else {DEFAULT_TASK: logits}


def dense_targets(targets: Targets, head: HeadConfig) -> dict[str, Tensor]:
    """Class indices [B] -> one-hot float [B, C]; other kinds unchanged."""
    return {
        task: F.one_hot(y, head.outputs[task]).float() if head.kind_of(task) == "single" else y.float()
        for task, y in targets.items()
    }


def smooth(target_BC: Tensor, epsilon: float) -> Tensor:
    """Label smoothing: target * (1 - e) + e / C, for sigmoid losses too, as the reference."""
    return target_BC if epsilon == 0 else target_BC * (1 - epsilon) + epsilon / target_BC.shape[1]


def task_loss(
    kind: TaskKind,
    logits_BC: Tensor,
    target_BC: Tensor,
    smoothing: float = 0.0,
    scale: Scale | None = None,
    *,
    huber_delta: float | None = None,
    class_weights_C: Tensor | None = None,
) -> Tensor:
    """Loss of each example [B] in float32.

    ``single``: softmax cross entropy. ``multilabel``: binary cross entropy *summed* over classes, as the reference.
    ``regression``: mean squared error, of numbers divided by the deviations of `scale`.

    Args:
        kind: of the task.
        logits_BC: of the model.
        target_BC: class probabilities, multi-hot labels, or numbers.
        smoothing: label smoothing.
        scale: of the numbers of a regression.
        huber_delta: of a regression; in place of the squared error, `torch.nn.functional.huber_loss` with this delta.
        class_weights_C: ``single``: `weight` of `torch.nn.functional.cross_entropy`, before it divides by the weights
            of the batch; ``multilabel``: `pos_weight` of its binary cross entropy.
    """
    logits_BC = logits_BC.float()
    if kind == "single":
        target_BC = smooth(target_BC, smoothing)
        target_BC = target_BC if class_weights_C is None else target_BC * class_weights_C
        return -(target_BC * logits_BC.log_softmax(1)).sum(1)
    if kind == "multilabel":
        target_BC = smooth(target_BC, smoothing)
        losses_BC = F.binary_cross_entropy_with_logits(
            logits_BC, target_BC, pos_weight=class_weights_C, reduction="none"
        )
        return losses_BC.sum(1)
    error_BC = logits_BC - target_BC
    if scale is not None:
        error_BC = error_BC / _deviations(tuple(scale.std), error_BC.device)
    if huber_delta is not None:
        return F.huber_loss(error_BC, torch.zeros_like(error_BC), reduction="none", delta=huber_delta).mean(1)
    return error_BC.square().mean(1)


@lru_cache(maxsize=64)
def _deviations(std: tuple[float, ...], device: torch.device) -> Tensor:
    """[C], copied to a device once, not in every step."""
    with torch.inference_mode(False):  # wherever it is first asked for, training may use it later
        return torch.tensor(std, device=device)


def example_losses(
    prediction: Prediction,
    targets: Mapping[str, Targets],
    head: HeadConfig,
    present: Mapping[str, Tensor] | None = None,
    smoothing: float = 0.0,
    class_weights: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Loss of each example, [B]: weighted mean over tasks of the mean over its present modalities.

    Args:
        prediction: of the model.
        targets: modality -> its targets (they differ under mixup per modality); ``""`` -> those of the fused logits.
        head: tasks, weights, and whether the loss is ``per-modality`` or of the ``fused`` logits.
        present: modality -> bool [B]; an absent modality adds nothing.
        smoothing: label smoothing.
        class_weights: task -> [C], see `task_loss`.
    """
    over_tasks = partial(_over_tasks, head=head, smoothing=smoothing, class_weights=class_weights or {})
    separate = prediction.modality_logits if head.loss == "per-modality" else {}
    if not separate:
        return over_tasks(by_task(prediction.logits), targets[""])
    total = weight = torch.zeros((), device=prediction.embedding.device)
    for name, logits in separate.items():
        loss_B = over_tasks(by_task(logits), targets[name])
        share = torch.full_like(loss_B, head.modality_weights.get(name, 1.0))
        if present is not None:
            share = share * present[name]
            loss_B = torch.where(present[name], loss_B, 0)
        total, weight = total + share * loss_B, weight + share
    return torch.where(weight > 0, total / weight.clamp(min=1e-12), 0)


def _over_tasks(
    logits: Mapping[str, Tensor],
    targets: Targets,
    head: HeadConfig,
    smoothing: float,
    class_weights: Mapping[str, Tensor],
) -> Tensor:
    weights = {task: head.task_weights.get(task, 1.0) for task in logits}
    losses = [
        weights[task]
        * task_loss(
            head.kind_of(task),
            logits[task],
            targets[task],
            smoothing,
            head.scale_of(task),
            huber_delta=head.huber_delta,
            class_weights_C=class_weights.get(task),
        )
        for task in logits
    ]
    return torch.stack(losses).sum(0) / (sum(weights.values()) or 1.0)

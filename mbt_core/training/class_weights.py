"""Weights of classes in the training loss, so that rare ones count as much as the others (``train.class_weights``).

Shapes: C classes of a task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mbt_core.data.collate import Batch
from mbt_core.data.manifest import Manifest
from mbt_core.data.splits import TRAIN


class ClassWeights:
    """Weights by task, of the rows of the training split alone. Nothing of it needs saving.

    A ``single`` task's are those of torch's cross entropy, whose mean over a batch is a weighted one: the sum of the
    weighted losses, divided by the sum of the weights of the examples' own classes, over all parts and processes of the
    batch. Where labels are mixed or smoothed the losses are, and the divisor is that of the labels as they were. A
    ``multilabel`` task's are torch's `pos_weight`, whose mean is over the examples.

    Args:
        weights: task -> float32 [C], on the training's device.
        normalised: of these, the tasks whose mean is a weighted one.
    """

    def __init__(self, weights: Mapping[str, Tensor], normalised: Sequence[str]) -> None:
        self.weights = dict(weights)
        self._on_cpu = {task: weights[task].double().cpu() for task in normalised}

    @classmethod
    def balanced(cls, manifest: Manifest, device: torch.device) -> ClassWeights:
        """See `mbt_core.data.labels.Labels.class_weights`; a regression has none."""
        rows = manifest.usable(TRAIN)
        labels = {task: of for task, of in manifest.labels.items() if of.kind != "regression"}
        weights = {task: torch.tensor(of.class_weights(rows), dtype=torch.float32) for task, of in labels.items()}
        single = [task for task, of in labels.items() if of.kind == "single"]
        return cls({task: x.to(device) for task, x in weights.items()}, single)

    def sums(self, batch: Batch) -> list[float]:
        """For each task of a weighted mean, the sum over a batch of example's weight times its own class's."""
        weight = batch.weight.double()
        return [float(weight @ w_C[batch.targets[task]]) for task, w_C in self._on_cpu.items()]

    def of_step(self, weight: float, sums: Sequence[float]) -> dict[str, Tensor]:
        """Task -> [C], for losses that are summed and then divided by `weight`.

        Args:
            weight: sum of the weights of the examples of the whole batch.
            sums: as of the method, over all processes.
        """
        factors = {task: weight / total for task, total in zip(self._on_cpu, sums, strict=True) if total > 0}
        return {task: w_C * factors.get(task, 1.0) for task, w_C in self.weights.items()}


NO_WEIGHTS = ClassWeights({}, ())
"""All classes count the same."""

"""What is reached without looking: by always answering the largest class, or the mean.

Shapes: N examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from mbt_core.data.manifest import Manifest
from mbt_core.data.splits import TRAIN
from mbt_core.evaluate.evaluator import FUSED, Evaluation
from mbt_core.evaluate.metrics import as_text

ROUNDING = 1e-9
"""Of a mean over classes."""


@dataclass(frozen=True)
class Baseline:
    """The score of a constant answer, beside the model's on the same rows.

    Args:
        task: its name.
        metric: by which they are compared: ``top1`` or ``r2``, with several tasks ``TASK/top1``.
        model: what the model reaches.
        constant: what the constant answer reaches.
        answer: the class that is always answered; None: the mean of the numbers.
        known: whether it is the largest class of the train split, or else of the rows that were evaluated.
    """

    task: str
    metric: str
    model: float
    constant: float
    answer: int | None = None
    known: bool = False

    @property
    def is_as_good(self) -> bool:
        """Whether the model is no better."""
        return not self.model > self.constant


def largest_classes(manifest: Manifest) -> dict[str, int]:
    """``single`` task -> the class that most rows of the train split have; nothing without a train split."""
    if TRAIN not in manifest.splits:
        return {}
    single = [task for task, kind in manifest.kinds.items() if kind == "single"]
    return {task: int(manifest.class_counts(task, TRAIN).argmax()) for task in single}


def largest_class(found: Evaluation, task: str) -> int:
    """Of the train split, where that is known, else of the rows that were evaluated."""
    return found.majority.get(task, int(torch.bincount(found.targets[task].long()).argmax()))


def baselines(found: Evaluation) -> list[Baseline]:
    """Of each task but ``multilabel`` ones, of the fused prediction: `largest_class`, or the mean, whose R2 is 0."""
    metrics = found.metrics()
    compared = []
    for task in found.logits.get(FUSED, {}) if len(found.index) else ():
        kind, prefix = found.head.kind_of(task), "" if found.head.tasks is None else f"{task}/"
        if kind == "single":
            answer = largest_class(found, task)
            constant = float((found.targets[task] == answer).float().mean())  # as top1, so that equal shares are equal
            known = task in found.majority
            compared.append(Baseline(task, f"{prefix}top1", metrics[f"{prefix}top1"], constant, answer, known))
        elif kind == "regression" and f"{prefix}r2" in metrics:
            compared.append(Baseline(task, f"{prefix}r2", metrics[f"{prefix}r2"], 0.0))
    return compared


def remarks(
    found: Evaluation, classes: Mapping[str, Sequence[str]], text: Callable[[str, float], str] = as_text
) -> list[str]:
    """A line for each task in which the model is no better than a constant answer.

    Args:
        found: the evaluation.
        classes: task -> names.
        text: how a metric (name, value) is written.
    """
    metrics = found.metrics()
    lines = []
    for b in baselines(found):
        if not b.is_as_good:
            continue
        line = f"{b.metric} {text(b.metric, b.model)} is no better than always answering "
        if b.answer is None:
            lines.append(f"{line}the mean")
            continue
        name = names[b.answer] if (names := classes.get(b.task)) else f"class_{b.answer}"
        balanced = b.metric.removesuffix("top1") + "balanced_accuracy"
        # a class that is not among these rows has no recall
        value, chance = metrics[balanced], (b.constant > 0) / len(found.targets[b.task].unique())
        other = f"{balanced} {text(balanced, value)}"
        also = f", but {other} is" if value > chance + ROUNDING else f"; nor is {other}"
        of = "the train split" if b.known else "these rows"
        lines.append(
            f"{line}{name!r}, the largest class of {of} ({text(b.metric, b.constant)}){also} ({text(balanced, chance)})"
        )
    return lines

"""Runs a model over a split: logits of every example, averaged over its views, fused and per modality.

Shapes: B clips-times-views of a batch, N examples, C classes of a task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from mbt_core.config import EvaluateConfig, HeadConfig, TaskKind
from mbt_core.data.collate import Batch
from mbt_core.evaluate.metrics import joint_metrics, task_metrics
from mbt_core.evaluate.metrics import metric_names as task_metrics_of
from mbt_core.model import MBT, Prediction
from mbt_core.model.loss import by_task, dense_targets, task_loss

FUSED = ""
Subset = tuple[str, ...]


@dataclass
class Evaluation:
    """Everything an evaluation found, on the CPU, in the order of the rows.

    Args:
        index: [N] row of the manifest.
        logits: source (a modality, or `FUSED`) -> task -> [N, C].
        targets: task -> class indices [N], or [N, C].
        present: modality -> bool [N].
        head: kinds of the tasks.
        failed: row -> why it could not be read; not in any of the above.
        majority: ``single`` task -> the largest class of the split that the model was trained on; empty: not known.
    """

    index: Tensor
    logits: dict[str, dict[str, Tensor]]
    targets: dict[str, Tensor]
    present: dict[str, Tensor]
    head: HeadConfig
    failed: dict[int, str] = field(default_factory=dict)
    majority: dict[str, int] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Metric names: ``top1``, with several tasks ``TASK/top1``; of one modality ``top1[NAME]``; ``loss``."""
        return dict(self._metrics)

    @cached_property
    def _metrics(self) -> dict[str, float]:
        found: dict[str, float] = {}
        losses = []
        targets = dense_targets(self.targets, self.head)
        single = self.head.tasks is None
        for source, logits in self.logits.items():
            # a modality is judged on the examples that have it
            here = self.present[source] if source in self.present else torch.ones(len(self.index), dtype=torch.bool)
            for task, values in logits.items():
                kind = self.head.kind_of(task)
                if source == FUSED:
                    scale, delta = self.head.scale_of(task), self.head.huber_delta
                    losses.append(task_loss(kind, values, targets[task], scale=scale, huber_delta=delta).mean())
                for name, value in task_metrics(kind, values[here], self.targets[task][here]).items():
                    label = name if single else f"{task}/{name}"
                    found[f"{label}[{source}]" if source else label] = value
            for joint, tasks in self.head.joint.items():
                both = joint_metrics([logits[t][here] for t in tasks], [self.targets[t][here] for t in tasks])
                found |= {f"{joint}/{n}[{source}]" if source else f"{joint}/{n}": v for n, v in both.items()}
        if len(self.index):
            found["loss"] = float(torch.stack(losses).mean())
        return found

    @property
    def examples(self) -> dict[str, int]:
        """Of how many rows the metrics are: those that were evaluated (`FUSED`), and those that have each modality."""
        return {FUSED: len(self.index)} | {name: int(here.sum()) for name, here in self.present.items()}

    def select(self, index: Tensor) -> Evaluation:
        """Of those of its rows alone that are among `index`, rows of the manifest; `failed` is left as it is."""
        chosen = torch.isin(self.index, index)
        return replace(
            self,
            index=self.index[chosen],
            logits={source: {t: x[chosen] for t, x in tasks.items()} for source, tasks in self.logits.items()},
            targets={task: x[chosen] for task, x in self.targets.items()},
            present={name: x[chosen] for name, x in self.present.items()},
        )


def merge(parts: Sequence[Evaluation]) -> Evaluation:
    """What several processes have evaluated as one, in the order of the rows."""
    failed = {row: message for part in parts for row, message in part.failed.items()}
    filled = [part for part in parts if len(part.index)] or parts[:1]
    index = torch.cat([part.index for part in filled])
    order = index.argsort()

    def together(of: Callable[[Evaluation], Tensor]) -> Tensor:
        return torch.cat([of(part) for part in filled])[order]

    first = filled[0]
    return Evaluation(
        index[order],
        {
            source: {task: together(lambda part, s=source, t=task: part.logits[s][t]) for task in tasks}  # type: ignore[misc]
            for source, tasks in first.logits.items()
        },
        {task: together(lambda part, t=task: part.targets[t]) for task in first.targets},  # type: ignore[misc]
        {name: together(lambda part, n=name: part.present[n]) for name in first.present},  # type: ignore[misc]
        first.head,
        dict(sorted(failed.items())),
    )


def metric_names(head: HeadConfig, modalities: Iterable[str]) -> list[str]:
    """Names of all that `Evaluation.metrics` of a whole model can have."""
    found: list[str] = []
    modalities = list(modalities)
    for task, outputs in head.outputs.items():
        for name in task_metrics_of(head.kind_of(task), outputs):
            found.append(name if head.tasks is None else f"{task}/{name}")
    found += [f"{joint}/{name}" for joint in head.joint for name in ("top1", "top5")]
    return [*found, *(f"{label}[{modality}]" for label in found for modality in modalities), "loss"]


def forward(model: Callable[..., Prediction], preprocess: nn.Module, batch: Batch) -> Prediction:
    """One forward pass of a collated batch on the model's device."""
    return model(preprocess(batch), None if batch.complete else batch.present)


@torch.inference_mode()
def evaluate(
    model: MBT,
    preprocess: nn.Module,
    batches: Iterable[Batch],
    config: EvaluateConfig,
    *,
    subsets: Sequence[Subset] = (),
    autocast: Callable[[], object] | None = None,
    progress: Callable[[int], None] | None = None,
    start: int | None = None,
) -> dict[Subset, Evaluation]:
    """Evaluates `model`, and each of `subsets` of its modalities, in one pass over the data.

    Args:
        model: in evaluation mode.
        preprocess: `mbt_core.data.collate.Preprocess`.
        batches: on the model's device; all views of an example lie in one batch.
        config: what is averaged over views.
        subsets: names of modalities each; the layers below the fusion layer run once for all of them.
        autocast: makes a context for the forward pass.
        progress: called with the number of examples done.
        start: `preprocess` gives streams as they enter this layer; for `subsets` at most the fusion layer.

    Returns:
        Subset -> its evaluation; without `subsets`, of all the model's modalities.
    """
    everything: Subset = tuple(model.modalities)
    collectors = {subset: _Collector() for subset in subsets or [everything]}
    failed: dict[int, str] = {}
    head = model.config.head
    done = 0
    for batch in batches:
        failed |= dict(batch.errors)
        with autocast() if autocast else torch.autocast("cpu", enabled=False):  # type: ignore[attr-defined]
            inputs = preprocess(batch)
            present = None if batch.complete else batch.present
            lower = inputs if start is not None else model.encode_alone(model.embed(inputs, present=present))
            first = model.first_fused if start is None else start
            for subset, collector in collectors.items():
                streams = {name: lower[name] for name in subset}
                here = {name: batch.present[name] for name in subset}
                complete = all(bool(p.all()) for p in here.values())
                prediction = model.encode(streams, None if complete else here, start=first)
                collector.add(prediction, batch, here, head, config.average)
        done += int(batch.index.unique().numel())
        if progress:
            progress(done)
    return {subset: collector.result(head, failed) for subset, collector in collectors.items()}


Map = Callable[[Tensor], Tensor]


def scales(kind: TaskKind, average: str) -> tuple[Map, Map]:
    """From logits to what is averaged over views, and back."""
    if average == "logits" or kind == "regression":
        return torch.clone, torch.clone
    if kind == "single":
        return lambda x: x.softmax(1), lambda p: p.clamp(min=1e-30).log()
    return torch.sigmoid, lambda p: p.double().logit(eps=1e-12).float()


class _Collector:
    """Gathers one subset's predictions batch by batch."""

    def __init__(self) -> None:
        self.parts: list[tuple[Tensor, dict[str, dict[str, Tensor]], dict[str, Tensor], dict[str, Tensor]]] = []

    def add(
        self, prediction: Prediction, batch: Batch, present: Mapping[str, Tensor], head: HeadConfig, average: str
    ) -> None:
        something = torch.stack(list(present.values())).any(0)
        good = (batch.weight > 0) & something
        index, views = batch.index[good].unique_consecutive(return_inverse=True)
        if not len(index):
            return
        by_source = {FUSED: by_task(prediction.logits)}
        if len(present) > 1 or prediction.modality_logits:
            by_source |= {name: by_task(logits) for name, logits in prediction.modality_logits.items()}
        counts = torch.bincount(views, minlength=len(index))[:, None]
        first = torch.searchsorted(views, torch.arange(len(index), device=views.device))

        def mean(task: str, values: Tensor) -> Tensor:
            there, back = scales(head.kind_of(task), average)
            values = there(values[good].float())
            total = values.new_zeros(len(index), values.shape[1]).index_add_(0, views, values)
            return back(total / counts).cpu()

        logits = {source: {task: mean(task, v) for task, v in tasks.items()} for source, tasks in by_source.items()}
        targets = {task: y[good][first].cpu() for task, y in batch.targets.items()}
        self.parts.append((index.cpu(), logits, targets, {n: p[good][first].cpu() for n, p in present.items()}))

    def result(self, head: HeadConfig, failed: dict[int, str]) -> Evaluation:
        if not self.parts:
            return Evaluation(torch.zeros(0, dtype=torch.int64), {}, {}, {}, head, failed)
        index = torch.cat([part[0] for part in self.parts])
        logits = {
            source: {task: torch.cat([part[1][source][task] for part in self.parts]) for task in tasks}
            for source, tasks in self.parts[0][1].items()
        }
        targets = {task: torch.cat([part[2][task] for part in self.parts]) for task in self.parts[0][2]}
        present = {name: torch.cat([part[3][name] for part in self.parts]) for name in self.parts[0][3]}
        return Evaluation(index, logits, targets, present, head, failed)

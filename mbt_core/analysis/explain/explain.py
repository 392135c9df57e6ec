"""Explains media files: what each prediction rests on, drawn by the modalities.

Shapes: N patches of a modality, M modalities.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mbt_core.analysis.explain.rollout import DEFAULT, Method, Relevance, trace_attention
from mbt_core.config import Experiment
from mbt_core.data.collate import Collate, Preprocess
from mbt_core.data.dataset import ClipDataset, Example
from mbt_core.data.loader import row_reader
from mbt_core.data.manifest import Manifest
from mbt_core.errors import ConfigError, unknown
from mbt_core.evaluate.evaluator import FUSED
from mbt_core.evaluate.predict import FilePrediction, best_labels, files_manifest, find_files, without_name
from mbt_core.modality import Picture
from mbt_core.model import MBT, Prediction
from mbt_core.model.loss import by_task

BOTTLENECKS = "bottlenecks"
KEPT = "class tokens"


@dataclass(frozen=True)
class View:
    """What one prediction rests on.

    Args:
        name: of its modality, or `FUSED` for all together.
        top: task -> (label, score) from the best down.
        pictures: modality -> its input with relevance over it.
        shares: of the relevance: on each modality's patches, on `KEPT` (class and register tokens), on `BOTTLENECKS`.
        layers: (fused layer, shares of the tokens at its input), from the first one up: each modality, `BOTTLENECKS`.
    """

    name: str
    top: dict[str, list[tuple[str, float]]]
    pictures: dict[str, Picture]
    shares: dict[str, float]
    layers: list[tuple[int, dict[str, float]]]


@dataclass(frozen=True)
class Explanation:
    """A file, what it was classified as, and why.

    Args:
        prediction: the file, its modalities and labels; or why there is none.
        label: what the method ``gradient`` explains.
        inputs: modality -> its input alone.
        views: all predictions together (if there are several), then each one.
        seconds: modality -> length of what was read; None: no certain one.
    """

    prediction: FilePrediction
    label: str | None = None
    inputs: dict[str, Picture] = field(default_factory=dict)
    views: list[View] = field(default_factory=list)
    seconds: dict[str, float | None] = field(default_factory=dict)


def explain_files(
    model: MBT,
    paths: Sequence[Path],
    experiment: Experiment,
    *,
    device: torch.device,
    method: Method = DEFAULT,
    task: str | None = None,
    label: str | None = None,
    top: int = 5,
    fps: float | None = None,
) -> Iterator[Explanation]:
    """Explains files and folders of them, one window from the middle of each; a bad file yields its error.

    Args:
        model: in evaluation mode; moved to the device.
        paths: files and folders.
        experiment: of the run: how data is read.
        device: where it computes.
        method: see `trace_attention`.
        task, label: what ``gradient`` explains; by default the first task, and what the model says, or a regression's
            first number.
        top: how many labels.
        fps: frames a second of folders of pictures and of arrays, see `find_files`.

    Raises:
        ConfigError: for an unknown method, task or label.
    """
    task, index = _class_of(model, task, label)
    reads = {name: m.reads for name, m in model.modalities.items()}
    files = list(find_files(paths, set(reads.values()), fps))
    good = [(str(file), None, None) for file in files if not isinstance(file, FilePrediction)]
    explained: Iterator[Explanation] = iter(())
    if good:
        manifest = files_manifest(good, reads, fps)
        explain = _Explainer.over(manifest, model, experiment, device, method, task, index, top)
        explained = (explain(file, row) for row, (file, _, _) in enumerate(good))
    for file in files:
        yield Explanation(file) if isinstance(file, FilePrediction) else next(explained)


def row_explainer(
    model: MBT, manifest: Manifest, experiment: Experiment, *, device: torch.device, top: int = 5
) -> Callable[[int], Explanation]:
    """A function that explains a row of a manifest, as `explain_files` does; its file is the row's id."""
    task, index = _class_of(model, None, None)
    explain = _Explainer.over(manifest, model, experiment, device, DEFAULT, task, index, top)
    return lambda row: explain(manifest.row(row).id, row)


def _class_of(model: MBT, task: str | None, label: str | None) -> tuple[str, int | None]:
    """The task and the class that were asked for."""
    outputs = model.config.head.outputs
    task = next(iter(outputs)) if task is None else task
    if task not in outputs:
        raise ConfigError(f"--task: {unknown('task', task, outputs)}")
    names = model.output_names(task)
    if label is None:  # no number of a regression is more of an answer than the others
        return task, 0 if model.config.head.kind_of(task) == "regression" else None
    if label not in names:
        raise ConfigError(f"--label: {unknown('label', label, names)}")
    return task, names.index(label)


@dataclass(frozen=True)
class _Explainer:
    """Explains one row of a data set."""

    read: Callable[[int], list[Example]]
    model: MBT
    preprocess: Preprocess
    method: Method
    task: str
    index: int | None
    top: int

    @classmethod
    def over(
        cls,
        manifest: Manifest,
        model: MBT,
        experiment: Experiment,
        device: torch.device,
        method: Method,
        task: str,
        index: int | None,
        top: int,
    ) -> _Explainer:
        model.to(device).eval()
        dataset = ClipDataset(manifest, model.modalities, {}, config=experiment.data, seed=0, training=False)
        read = row_reader(dataset, experiment.data.workers)
        return cls(read, model, Preprocess(model.modalities).to(device), method, task, index, top)

    def __call__(self, file: str, row: int) -> Explanation:
        example = self.read(row)[0]
        if example.error is not None:
            return Explanation(FilePrediction(file, error=without_name(example.error, os.path.abspath(file))))
        model = self.model
        device = next(model.parameters()).device
        batch = Collate(model.modalities)([[example]]).to(device)
        inputs = {name: x for name, x in self.preprocess(batch).items() if example.present[name]}
        classes = None if self.index is None else torch.tensor([self.index], device=device)
        prediction, relevance = trace_attention(model, inputs, method=self.method, task=self.task, classes=classes)
        index = int(by_task(prediction.logits)[self.task].argmax()) if self.index is None else self.index
        names = relevance.predictions if len(relevance.predictions) == 1 else (FUSED, *relevance.predictions)
        return Explanation(
            FilePrediction(file, list(inputs), self._top(prediction, FUSED)),
            model.output_names(self.task)[index] if self.method == "gradient" else None,
            {name: model.modalities[name].draw(example.samples[name], None) for name in inputs},
            [self._view(name, example, prediction, relevance) for name in names],
            {name: model.modalities[name].seconds for name in inputs},
        )

    def _top(self, prediction: Prediction, name: str) -> dict[str, list[tuple[str, float]]]:
        logits = prediction.logits if name == FUSED else prediction.modality_logits[name]
        head = self.model.config.head
        return {
            task: best_labels(values[0].detach().float(), head.kind_of(task), self.model.output_names(task), self.top)
            for task, values in by_task(logits).items()
        }

    def _view(self, name: str, example: Example, prediction: Prediction, relevance: Relevance) -> View:
        model = self.model
        pictures, shares = {}, {}
        for modality in relevance.tokens:
            patches_N = relevance.patches(modality, name)[0].float().cpu()
            on_patches = on_grid(patches_N, model.stream(modality).grid)
            pictures[modality] = model.modalities[modality].draw(example.samples[modality], on_patches)
            shares[modality] = float(patches_N.sum())
        bottlenecks = float(relevance.of(name, relevance.bottlenecks).sum())
        shares |= {KEPT: max(0.0, 1 - sum(shares.values()) - bottlenecks), BOTTLENECKS: bottlenecks}
        return View(name, self._top(prediction, name), pictures, shares, self._layers(name, relevance))

    def _layers(self, name: str, relevance: Relevance) -> list[tuple[int, dict[str, float]]]:
        """See `View.layers`; where relevance was not led down, there is none."""
        keys = [*relevance.tokens, BOTTLENECKS]
        shares_TM = relevance.of(name, relevance.shares)[:, 0].tolist()
        lowest = self.model.backbone.depth + 1 - len(shares_TM)
        fused = range(max(lowest, self.model.first_fused), self.model.backbone.depth)
        return [(layer, dict(zip(keys, shares_TM[layer - lowest], strict=True))) for layer in fused]


def on_grid(relevance_N: Tensor, grid: Sequence[int]) -> np.ndarray:
    """Relevance of patches on their grid; a sequence shorter than its grid is filled up with 0."""
    filled = torch.zeros(math.prod(grid))
    filled[: len(relevance_N)] = relevance_N
    return filled.reshape(tuple(grid)).numpy()

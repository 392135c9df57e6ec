"""Clips as the report shows them: what they are, what the model says, their pictures, and where it looks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from time import monotonic

import numpy as np
import torch
from torch import Tensor

from mbt_core.analysis.explain.explain import Explanation, View, row_explainer
from mbt_core.analysis.report.numbers import hardest, hardness, surest
from mbt_core.config import Experiment, TaskKind
from mbt_core.data.dataset import ClipDataset, Example
from mbt_core.data.loader import row_reader
from mbt_core.data.manifest import Manifest
from mbt_core.evaluate.evaluator import FUSED
from mbt_core.evaluate.predict import best_labels
from mbt_core.evaluate.table import Predictions
from mbt_core.modality import Picture
from mbt_core.model import MBT

CLIPS = 12
"""Hardest clips on a page, in all tasks together."""
FEW = 2
"""Sure right answers, and as many of the hardest clips, whose attention is shown."""
TOP = 3
"""Labels of a clip of several."""
SECONDS = 60.0
"""After which no other clip is read, e.g. of slow storage."""
SMALL, LARGE = (144, 1152), (200, 1200)
"""Most (height, width) in pixels of pictures of hardest clips, and of attention."""
FRAMES = 8
LETTERS = 20_000
"""Most frames of an animation and letters of markup."""


@dataclass(frozen=True)
class Shown:
    """A clip on the page.

    Args:
        id: its name.
        truth: task -> the labels that are right, or the numbers.
        said: task -> (label, score) from the best down.
        alone: modality -> task -> what it says alone.
        pictures: modality -> its input.
        errors: why something could not be drawn.
    """

    id: str
    truth: dict[str, list[str]]
    said: dict[str, list[tuple[str, float]]]
    alone: dict[str, dict[str, str]]
    pictures: dict[str, Picture] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Chosen:
    """Places of the clips to show: the hardest ones, and those whose attention is shown."""

    hardest: list[int]
    attention: list[int]


def choose(predictions: Predictions) -> Chosen:
    """The hardest clips, of all tasks in turn; the surest right ones and the hardest of the first task."""
    found, kinds = predictions.found, predictions.found.head
    logits = found.logits.get(FUSED, {})
    hard = {task: hardness(kinds.kind_of(task), values, found.targets[task]) for task, values in logits.items()}
    worst = {task: hardest(values, CLIPS) for task, values in hard.items()}
    in_turn = [place for places in zip_longest(*worst.values()) for place in places if place is not None]
    first = next(iter(hard), None)
    if first is None:
        return Chosen([], [])
    sure = surest(logits[first], hard[first], FEW) if kinds.kind_of(first) != "regression" else []
    return Chosen(list(dict.fromkeys(in_turn))[:CLIPS], list(dict.fromkeys([*sure, *worst[first][:FEW]])))


def describe(predictions: Predictions, place: int) -> Shown:
    """A clip without its pictures."""
    found, classes = predictions.found, predictions.classes
    head = found.head

    def best(source: str, task: str, count: int) -> list[tuple[str, float]]:
        return best_labels(found.logits[source][task][place], head.kind_of(task), classes.get(task) or None, count)

    tasks = list(found.targets)
    alone = {
        source: {task: ", ".join(_text(head.kind_of(task), best(source, task, 1))) for task in tasks}
        for source, here in found.present.items()
        if source in found.logits and here[place]
    }
    truth = {task: _truth(head.kind_of(task), found.targets[task][place], classes.get(task, [])) for task in tasks}
    said = {task: best(FUSED, task, 1 if head.kind_of(task) == "single" else TOP) for task in tasks}
    return Shown(predictions.ids[place], truth, said, alone)


def _truth(kind: TaskKind, target: Tensor, names: Sequence[str]) -> list[str]:
    if kind == "regression":
        return [f"{value:.6g}" for value in target.reshape(-1).tolist()]
    places = [int(target)] if kind == "single" else target.nonzero()[:, 0].tolist()
    return [names[i] if i < len(names) else f"class_{i}" for i in places]


def _text(kind: TaskKind, best: Sequence[tuple[str, float]]) -> list[str]:
    return [f"{value:.6g}" if kind == "regression" else label for label, value in best]


class Drawer:
    """Reads clips of a manifest again and draws them, until it has taken `SECONDS`.

    Args:
        model: in evaluation mode, on the CPU.
        manifest: that was evaluated.
        predictions: of it.
        experiment: of the run: how data are read.
    """

    def __init__(self, model: MBT, manifest: Manifest, predictions: Predictions, experiment: Experiment) -> None:
        self.model, self.manifest, self.experiment = model, manifest, experiment
        dataset = ClipDataset(manifest, model.modalities, {}, config=experiment.data, seed=0, training=False)
        self.read = row_reader(dataset, experiment.data.workers)
        self.rows = dict(enumerate(manifest.find(predictions.ids)))
        self.end = monotonic() + SECONDS

    def _row(self, place: int) -> int:
        row = self.rows[place]
        if row is None:
            raise LookupError("the data have no such clip any more")
        if monotonic() > self.end:
            raise TimeoutError("left out: reading the clips before it took too long")
        return row

    def draw(self, shown: Shown, place: int) -> Shown:
        """The clip with its pictures, or with why there are none."""
        try:
            example = self.read(self._row(place))[0]
        except Exception as error:  # one clip must not lose the others
            return replace(shown, errors=[_why(error)])
        if example.error is not None:
            return replace(shown, errors=[example.error])
        pictures, errors = {}, []
        for name, picture in self._pictures(example):
            if isinstance(picture, Picture):
                pictures[name] = picture
            else:
                errors.append(f"{name}: {picture}")
        return replace(shown, pictures=pictures, errors=errors)

    def _pictures(self, example: Example) -> Iterator[tuple[str, Picture | str]]:
        for name, modality in self.model.modalities.items():
            if example.present[name]:
                try:
                    yield name, smaller(modality.draw(example.samples[name], None), SMALL, moving=False)
                except Exception as error:  # a fault of the plugin
                    yield name, _why(error)

    def explain(self, place: int) -> Explanation | str:
        """Where the model looks in the clip, in its prediction of all modalities together; or why it is not known."""
        try:
            explain = row_explainer(self.model, self.manifest, self.experiment, device=torch.device("cpu"), top=3)
            found = explain(self._row(place))
            if found.prediction.error is not None:
                return found.prediction.error
            inputs = {name: smaller(picture, LARGE) for name, picture in found.inputs.items()}
            return replace(found, inputs=inputs, views=[_smaller_view(view) for view in found.views[:1]])
        except Exception as error:  # one clip must not lose the others
            return _why(error)


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, LookupError | TimeoutError) else f"{type(error).__name__}: {error}"


def _smaller_view(view: View) -> View:
    pictures: Mapping[str, Picture] = view.pictures
    return replace(view, pictures={name: smaller(picture, LARGE) for name, picture in pictures.items()})


def smaller(picture: Picture, most: tuple[int, int], moving: bool = True) -> Picture:
    """A picture that a page has room for: at most (height, width), `FRAMES` frames, `LETTERS` letters."""
    frames = list(picture.frames) if moving else []
    kept = np.linspace(0, len(frames) - 1, min(len(frames), FRAMES)).round().astype(int)
    html = picture.html
    if html is not None and len(html) > LETTERS:
        html = f"<p>too long to be shown: {len(html):,} letters of markup</p>"
    return Picture([_fit(x, most) for x in picture.stills], [_fit(frames[i], most) for i in kept], html)


def _fit(image: np.ndarray, most: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    height, width = image.shape[:2]
    scale = min(1.0, most[0] / height, most[1] / width)
    if scale == 1.0:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.LANCZOS))

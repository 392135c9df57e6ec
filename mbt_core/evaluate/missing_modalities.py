"""How a model does as a modality goes missing: its metrics against the share of the rows that lose it.

Shapes: N examples.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from mbt_core.errors import ConfigError
from mbt_core.evaluate.evaluator import FUSED, Evaluation, Subset

FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Point:
    """A point of the curve of one modality.

    Args:
        modality: that goes missing.
        fraction: the share of the rows that can lose it which do.
        examples: rows that were evaluated.
        lost: rows that lose it here.
        absent: rows that never had it; they count with what they have.
        kept: rows that have nothing else, and keep it.
        metrics: of the fused prediction of all examples.
    """

    modality: str
    fraction: float
    examples: int
    lost: int
    absent: int
    kept: int
    metrics: dict[str, float]


def subsets_for_curves(names: Sequence[str]) -> list[Subset]:
    """What `missing_curves` needs: all modalities, and all but each. Raises `ConfigError` if there is only one."""
    if len(names) < 2:
        raise ConfigError(
            f"--missing: the run has one modality, {names[0]!r}; without it there is nothing to predict by"
        )
    return [tuple(names), *(_without(names, name) for name in names)]


def missing_curves(
    found: Mapping[Subset, Evaluation], fractions: Sequence[float] = FRACTIONS, seed: int = 0
) -> list[Point]:
    """Metrics of the fused prediction as ever more rows lose one modality, for each modality in turn.

    A row that loses it is answered by the evaluation of all others, so that nothing runs again. Which rows do is drawn
    per row of the manifest: it depends on nothing but `seed`, the modality's name and the rows that could be read, and
    who has lost it at one fraction has lost it at every larger one.

    Args:
        found: of `mbt_core.evaluate.evaluator.evaluate`: all modalities, and all but some; see `subsets_for_curves`.
        fractions: in [0, 1].
        seed: of the draw.

    Returns:
        Modality by modality, in the order of `fractions`; none of a modality whose "all but it" was not evaluated.
    """
    everything = max(found, key=len)
    whole = found[everything]
    if not len(whole.index):
        return []
    return [
        point
        for name in everything
        if (rest := found.get(_without(everything, name))) is not None
        for point in _curve(name, whole, rest, fractions, seed)
    ]


def _without(names: Sequence[str], name: str) -> Subset:
    return tuple(n for n in names if n != name)


def _curve(name: str, whole: Evaluation, rest: Evaluation, fractions: Sequence[float], seed: int) -> Iterator[Point]:
    has_N = whole.present[name]
    able_N = has_N & torch.isin(whole.index, rest.index)
    order = _order(name, whole.index, able_N, seed)
    for fraction in fractions:
        lost = order[: round(fraction * len(order))]
        yield Point(
            name,
            fraction,
            examples=len(has_N),
            lost=len(lost),
            absent=int((~has_N).sum()),
            kept=int((has_N & ~able_N).sum()),
            metrics=_replaced(whole, rest, lost).metrics(),
        )


def _order(name: str, index_N: Tensor, able_N: Tensor, seed: int) -> Tensor:
    """Places of the rows that can lose it, in the order in which they do. The n-th draw is that of the n-th row."""
    draws = np.random.default_rng((seed, crc32(name.encode()))).random(int(index_N.max()) + 1)
    places = able_N.nonzero()[:, 0]
    return places[torch.from_numpy(draws)[index_N[places]].argsort()]


def _replaced(whole: Evaluation, rest: Evaluation, lost: Tensor) -> Evaluation:
    """The fused predictions of `whole`, at the places `lost` those of `rest`."""
    source = torch.searchsorted(rest.index, whole.index[lost])
    fused = {task: values.index_copy(0, lost, rest.logits[FUSED][task][source]) if len(lost) else values
             for task, values in whole.logits[FUSED].items()}  # fmt: skip
    return Evaluation(whole.index, {FUSED: fused}, whole.targets, {}, whole.head)


def write_csv(path: Path, points: Sequence[Point]) -> None:
    """A line a point: what `Point` says, and a column for each metric; empty where it has no value."""
    names = list(dict.fromkeys(name for point in points for name in point.metrics))
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["modality", "fraction", "examples", "lost", "absent", "kept", *names])
        for p in points:
            numbers = [p.fraction, p.examples, p.lost, p.absent, p.kept]
            lines.writerow([p.modality, *numbers, *(p.metrics.get(name) for name in names)])

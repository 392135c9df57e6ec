"""What folds come to: mean and interval of every metric, predictions for all rows, tables."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from mbt_core.config import Experiment
from mbt_core.config.schema import validate
from mbt_core.data.splits import TEST, VAL
from mbt_core.evaluate.metrics import as_text, bounds
from mbt_core.evaluate.table import FILE as PREDICTIONS
from mbt_core.evaluate.table import evaluated
from mbt_core.io.files import finite, read_parquet, write_atomically
from mbt_core.run import Run, load
from mbt_core.sweep.folds import FOLD, FoldResult, Scored, begin, score
from mbt_core.sweep.interval import half_width
from mbt_core.sweep.report import Report, Table, write
from mbt_core.sweep.results import Result
from mbt_core.training.folder import RunFolder

OF_SPLIT = {VAL: "each row once, by the fold that was not trained on it", TEST: "the same rows for every fold"}


@dataclass(frozen=True)
class Score:
    """A metric over folds.

    Args:
        values: one for each finished fold that has it.
        bounds: the least and the largest value it can have; the interval ends there.
    """

    values: tuple[float, ...]
    bounds: tuple[float, float] = (-math.inf, math.inf)

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 %, by Student's t over the folds; None for one fold. Folds share training rows: it is approximate."""
        if len(self.values) < 2:
            return None
        half, (lowest, highest) = half_width(self.values), self.bounds
        return max(lowest, self.mean - half), min(highest, self.mean + half)


@dataclass(frozen=True)
class CrossValidation:
    """What folds came to.

    Args:
        path: the folder of all.
        results: one a fold; `FoldResult` of those that are finished.
        pooled: of all rows together, each predicted by the fold that was not trained on it; None while a fold is
            missing.
    """

    path: Path
    results: Sequence[Result]
    pooled: Scored | None = None

    @property
    def finished(self) -> list[FoldResult]:
        return [result for result in self.results if isinstance(result, FoldResult)]

    @property
    def runs(self) -> list[Run]:
        """Of the finished folds."""
        return [load(result.folder.path) for result in self.finished if result.folder is not None]

    def scores(self, split: str = VAL) -> dict[str, Score]:
        """Metric -> what the folds came to in it; empty for a split that was not evaluated.

        Args:
            split: ``val``: each fold on its own rows; ``test``: all on the same ones.
        """
        values_of: dict[str, list[float]] = {}
        for result in self.finished:
            for name, value in result.scored[split].metrics.items() if split in result.scored else ():
                if math.isfinite(value):
                    values_of.setdefault(name, []).append(value)
        return {name: Score(tuple(values), bounds(name)) for name, values in values_of.items()}


def cross_validate(
    experiment: Experiment | Mapping[str, Any],
    folds: int = 5,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    device: str = "auto",
) -> CrossValidation:
    """Trains and evaluates folds of the data; what they come to also lies in `out`, as of ``mbt train --folds``.

    The train and val rows are parted into folds, class by class (``data.group``: what stays together). Each run is
    trained on all folds but one, everything that is taken from the data included, and its last weights are scored on
    that one; a test split is scored by every run.

    Args:
        experiment: the configuration, with what each fold is to fill from its own training rows left at ``auto``: not
            that of a finished run.
        folds: how many, at least 2.
        out: the folder; new or empty, unless `resume`; by default ``runs/folds`` (or ``folds-2`` ...).
        resume: go on with the folds in `out`, which must be of this experiment; finished ones are left.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Returns:
        The scores. A fold that fails is noted in `CrossValidation.results`, and the others go on.

    Raises:
        ConfigError: before any work, for a wrong configuration or a folder in use.
        DataError: for data that cannot be used, or cannot be parted into so many folds.
        Interrupted: after Ctrl-C, SIGTERM or SIGHUP; the state is saved.
    """
    experiment = validate(Experiment, experiment)
    folder = RunFolder(out) if out is not None else RunFolder.named(Path("runs"), "folds")
    command = "mbt_core.cross_validate"
    try:
        sweep = begin(folder.path, experiment, folds, command, resume=resume, device=device)
        outcome = gather(folder.path, sweep.run(device))
        save(outcome, f"{folds} folds", command)
        return outcome
    finally:
        if out is None:
            folder.release()


def gather(out: Path, results: Sequence[Result]) -> CrossValidation:
    """What the folds came to. Writes ``OUT/predictions.parquet`` once all are finished: what the fold that was not
    trained on it says of each row, which fold that is (``fold``), and else the columns of a run's predictions."""
    outcome = CrossValidation(out, results)
    if len(outcome.finished) < len(results):
        return outcome
    tables = []
    for result in outcome.finished:
        assert result.folder is not None
        folder = evaluated(result.folder.path, VAL)
        assert folder is not None
        table = read_parquet(folder / PREDICTIONS)
        number = np.full(len(table), int(result.cell.labels[FOLD]))
        tables.append(table.append_column(FOLD, pa.array(number)))
    table = pa.concat_tables(tables)
    readable = table["error"].is_null()
    table = pa.concat_tables([table.filter(readable), table.filter(pc.invert(readable))])  # those of no answer last
    write_atomically(out / PREDICTIONS, lambda path: pa.parquet.write_table(table, path))
    head = outcome.runs[0].experiment.model.head
    scored = score(out, head)
    # its unit is the deviation in the training rows of a fold, another one in each
    metrics = {name: value for name, value in scored.metrics.items() if name != "loss" or not head.scales}
    return CrossValidation(out, results, Scored(scored.examples, metrics))


def report(out: Path, results: Sequence[Result], title: str, command: str, figure: bool = True) -> Report:
    """Writes and returns what `mbt train --folds` found so far; `figure`: it has none."""
    return save(gather(out, results), title, command)


def save(outcome: CrossValidation, title: str, command: str) -> Report:
    """Writes ``results.md``, ``results.csv`` (a line a fold, of val) and ``results.json`` (all there is)."""
    out = outcome.path
    tables: dict[str, Table] = {}
    for split, about in OF_SPLIT.items():
        if scores := outcome.scores(split):
            tables[f"{split}: {about}"] = _by_fold(outcome, split, scores)
            tables[f"{split}: every metric, mean and 95 % interval over the folds"] = _by_metric(scores, outcome)
    summary = Report(tables, _in_words(outcome), _as_document(outcome))
    write(out, outcome.results, summary, title, command, "folds")
    text = json.dumps(finite(summary.document), indent=1, ensure_ascii=False)
    write_atomically(out / "results.json", lambda path: path.write_text(text, encoding="utf-8"))
    summary.files.append(out / "results.json")
    summary.files.extend([out / PREDICTIONS] if outcome.pooled else [])
    return summary


def _by_fold(outcome: CrossValidation, split: str, scores: Mapping[str, Score]) -> Table:
    """The main metrics, fused and of each modality: a row a fold, then the mean, its interval and all rows as one."""
    main = outcome.finished[0].main
    several = len(outcome.finished[0].cell.experiment.modalities) > 1
    names = [name for name in scores if name.partition("[")[0] in main and (several or name in main)]

    def cells(metrics: Mapping[str, float]) -> list[str]:
        return [as_text(name, metrics[name]) if name in metrics else "" for name in names]

    rows = []
    for result in outcome.results:
        scored = result.scored.get(split) if isinstance(result, FoldResult) else None
        values = [str(scored.examples), *cells(scored.metrics)] if scored else [result.status, *cells({})]
        rows.append([result.cell.labels[FOLD], *values])
    rows.append(["mean", "", *cells({name: score.mean for name, score in scores.items()})])
    rows.append(["95 % interval", "", *(_span(name, scores[name]) for name in names)])
    if split == VAL and outcome.pooled is not None:
        rows.append(["all rows as one", str(outcome.pooled.examples), *cells(outcome.pooled.metrics)])
    return ["fold", "examples", *names], rows


def _by_metric(scores: Mapping[str, Score], outcome: CrossValidation) -> Table:
    """Mean and interval: a row a metric, a column for the fused result and each modality that has one."""
    metrics = list(dict.fromkeys(name.partition("[")[0] for name in scores))
    modalities = list(outcome.finished[0].cell.experiment.modalities)
    others = [name for name in modalities if any(f"{metric}[{name}]" in scores for metric in metrics)]
    others = others if len(modalities) > 1 else []

    def cell(name: str) -> str:
        if name not in scores:
            return ""
        span = _span(name, scores[name])
        return as_text(name, scores[name].mean) + (f" ({span})" if span else "")

    names = ["metric", "fused" if len(modalities) > 1 else modalities[0], *others]
    return names, [[metric, cell(metric), *(cell(f"{metric}[{name}]") for name in others)] for metric in metrics]


def _span(name: str, score: Score) -> str:
    return " to ".join(as_text(name, end) for end in score.interval or ())


def _in_words(outcome: CrossValidation) -> str:
    if not outcome.finished:
        return ""
    scores, done = outcome.scores(), len(outcome.finished)
    parts = []
    for name in outcome.finished[0].main:
        if name in scores:
            span = _span(name, scores[name])
            text = f"{name} {as_text(name, scores[name].mean)}" + (f" (95 % interval {span})" if span else "")
            if outcome.pooled is not None and name in outcome.pooled.metrics:
                text += f", {as_text(name, outcome.pooled.metrics[name])} on all {outcome.pooled.examples} rows as one"
            parts.append(text)
    of = f"{done} folds" if done == len(outcome.results) else f"{done} of {len(outcome.results)} folds"
    return (
        f"{'; '.join(parts)}. Mean over {of}, each scored on the rows that it was not trained on. It is the last "
        "weights that are scored: the best ones would have been chosen by these very rows. The interval is Student's t "
        "over the folds; as they share training rows, it is approximate."
    )


def _as_document(outcome: CrossValidation) -> dict[str, Any]:
    pooled = outcome.pooled
    return {
        "out": str(outcome.path),
        "folds": [
            {
                **{"fold": int(r.cell.labels[FOLD]), "folder": r.cell.name, "status": r.status, "error": r.error},
                "splits": {
                    split: {"examples": scored.examples, "metrics": dict(scored.metrics)}
                    for split, scored in (r.scored.items() if isinstance(r, FoldResult) else ())
                },
            }
            for r in outcome.results
        ],
        "splits": {
            split: {
                name: {"mean": score.mean, "interval": score.interval, "folds": len(score.values)}
                for name, score in outcome.scores(split).items()
            }
            for split in OF_SPLIT
            if outcome.scores(split)
        },
        "pooled": pooled and {"examples": pooled.examples, "metrics": dict(pooled.metrics)},
    }

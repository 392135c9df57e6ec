"""What the cells of a sweep came to: a result per cell, a row per point of the grid, CSV and Markdown."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from mbt_core.config import Experiment
from mbt_core.errors import DataError
from mbt_core.evaluate.metrics import as_text, metric_names
from mbt_core.evaluate.table import counted
from mbt_core.io.files import write_atomically
from mbt_core.sweep.cost import Cost, cost_of
from mbt_core.sweep.grid import Cell, short
from mbt_core.sweep.left_out import scores_without
from mbt_core.training.folder import RunFolder
from mbt_core.training.loggers import read_metrics
from mbt_core.training.resolve import MAIN, monitored
from mbt_core.training.state import read_progress

Status = Literal["finished", "unfinished", "missing", "failed", "running elsewhere"]


@dataclass(frozen=True)
class Result:
    """What one cell came to.

    Args:
        cell: which.
        status: ``missing``: not begun; ``unfinished``: begun here or elsewhere; ``running elsewhere``: another
            process was training it when its turn came here.
        error: why it failed.
        steps: of the optimiser.
        split: of the metrics: ``test``, or ``val`` where there is no test split.
        examples: how many rows they are of; None: not known.
        metrics: of the best weights.
        main: the metrics that judge it, one per task.
        listed: the metrics that tables have, all of the fused prediction; those of `main` by default.
        clips_per_second: of training, median over the logged steps.
        cost: of the model.
        curve: (step, value) of the monitored metric on val, or of the training loss where there is no val.
        curve_name: what the curve is of.
        folder: of the run, once it is finished.
    """

    cell: Cell
    status: Status = "missing"
    error: str = ""
    steps: int = 0
    split: str = ""
    examples: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    main: tuple[str, ...] = ()
    listed: tuple[str, ...] = ()
    clips_per_second: float | None = None
    cost: Cost | None = None
    curve: tuple[tuple[int, float], ...] = ()
    curve_name: str = ""
    folder: RunFolder | None = None

    @property
    def score(self) -> float | None:
        """Mean of the main metrics."""
        values = [self.metrics[name] for name in self.main if name in self.metrics]
        return sum(values) / len(values) if values else None

    @cached_property
    def left_out(self) -> tuple[float, ...]:
        """`score` without each group of the test examples in turn; see `mbt_core.sweep.left_out`."""
        return scores_without(self.folder, self.main) if self.folder and self.split == "test" else ()


@dataclass(frozen=True)
class Row:
    """One point of the grid, over its seeds.

    Args:
        labels: axis -> label.
        count: finished seeds.
        examples: how many rows were evaluated: the fewest and the most over the seeds; None: not known.
        mean, std: of each listed metric; the deviation (of a sample) is NaN for one seed.
        score: mean and deviation of `Result.score`; None: nothing to judge by.
        cost: of the model.
        clips_per_second, speed_std: mean and deviation over the seeds, as measured beside whatever else ran.
        main: those of the metrics that judge it.
    """

    labels: Mapping[str, str]
    count: int
    examples: tuple[int, int] | None
    mean: Mapping[str, float]
    std: Mapping[str, float]
    score: tuple[float, float] | None
    cost: Cost | None
    clips_per_second: float | None
    speed_std: float = math.nan
    main: tuple[str, ...] = ()


def main_metrics(experiment: Experiment) -> tuple[str, ...]:
    """One metric per task, greater is better: ``top1``, or ``TASK/mAP`` of several tasks."""
    head = experiment.model.head
    single = head.tasks is None
    return tuple(MAIN[head.kind_of(t)] if single else f"{t}/{MAIN[head.kind_of(t)]}" for t in head.outputs)


def listed_metrics(experiment: Experiment) -> tuple[str, ...]:
    """All metrics of each task, the main one first, that tables list."""
    head = experiment.model.head
    prefixes = {task: "" if head.tasks is None else f"{task}/" for task in head.outputs}
    return tuple(
        f"{prefixes[task]}{name}"
        for task, outputs in head.outputs.items()
        for name in metric_names(head.kind_of(task), outputs)
    )


def is_finished(folder: RunFolder) -> bool:
    """Whether a run was trained and evaluated to its end."""
    progress = read_progress(folder.state)
    return progress is not None and progress.finished


def read_result(cell: Cell, folder: RunFolder) -> Result:
    """What a cell's run folder tells."""
    progress = read_progress(folder.state)
    if progress is None or not progress.finished:
        return Result(cell, "unfinished" if folder.config_file.exists() else "missing")
    experiment = folder.experiment()
    lines = read_metrics(folder.path / "metrics.jsonl")
    metrics, split, monitor = progress.results, "test", monitored(experiment)
    if not metrics:
        best = next((ln for ln in lines if ln["event"] == "val" and ln["step"] == progress.best_step), {})
        left_out = ("event", "step", "time")
        metrics = {key: value for key, value in best.items() if key not in left_out and value is not None}
        split = "val"
    speeds = [line["clips_per_second"] for line in lines if line.get("clips_per_second")]
    curve_name = monitor if any(line["event"] == "val" and monitor in line for line in lines) else "loss"
    return Result(
        cell,
        "finished",
        steps=progress.step,
        split=split if metrics else "",
        examples=_examples(folder, split) if metrics else None,
        metrics=metrics,
        main=main_metrics(experiment),
        listed=listed_metrics(experiment),
        clips_per_second=statistics.median(speeds) if speeds else None,
        cost=cost_of(experiment),
        curve=tuple(
            (line["step"], line[curve_name])
            for line in lines
            if line.get(curve_name) is not None and line["event"] == ("step" if curve_name == "loss" else "val")
        ),
        curve_name=curve_name,
        folder=folder,
    )


def _examples(folder: RunFolder, split: str) -> int | None:
    """Rows that were evaluated; of val, of which no predictions are left, also those that could not be read."""
    with suppress(DataError):
        evaluated, count = counted(folder.path)
        if evaluated == split:
            return count
    return folder.rows(split)


def summarise(results: Iterable[Result]) -> list[Row]:
    """Mean and deviation over the finished seeds of each point, in the order of the grid."""
    points: dict[tuple[tuple[str, str], ...], list[Result]] = {}
    for result in results:
        points.setdefault(tuple(result.cell.labels.items()), []).append(result)
    return [_row(dict(labels), [r for r in found if r.status == "finished"]) for labels, found in points.items()]


def _row(labels: Mapping[str, str], found: Sequence[Result]) -> Row:
    names = dict.fromkeys(name for result in found for name in result.listed or result.main)
    values = {n: [r.metrics[n] for r in found if n in r.metrics] for n in names}
    values = {n: v for n, v in values.items() if v}
    scores = [r.score for r in found if r.score is not None]
    speeds = [r.clips_per_second for r in found if r.clips_per_second]
    examples = [r.examples for r in found if r.examples is not None]
    return Row(
        labels,
        len(found),
        (min(examples), max(examples)) if examples else None,
        {n: statistics.fmean(v) for n, v in values.items()},
        {n: _deviation(v) for n, v in values.items()},
        (statistics.fmean(scores), _deviation(scores)) if scores else None,
        found[0].cost if found else None,
        statistics.fmean(speeds) if speeds else None,
        _deviation(speeds),
        tuple(dict.fromkeys(name for result in found for name in result.main)),
    )


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan


def columns(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """A table for people: names of the columns, and the cells' texts."""
    axes = list(rows[0].labels) if rows else []
    metrics = list(dict.fromkeys(name for row in rows for name in row.mean))
    names = [*map(short, axes), *metrics, "examples", "seeds", "GFLOPs", "M parameters", "clips/s"]
    return names, [
        [
            *row.labels.values(),
            *(_plus_minus(name, row.mean.get(name), row.std.get(name)) for name in metrics),
            "-".join(map(str, dict.fromkeys(row.examples or ()))),
            str(row.count),
            f"{row.cost.gflops:.3g}" if row.cost else "",
            f"{row.cost.parameters / 1e6:.3g}" if row.cost else "",
            f"{row.clips_per_second:.3g}" if row.clips_per_second else "",
        ]
        for row in rows
    ]


def _plus_minus(name: str, mean: float | None, std: float | None) -> str:
    if mean is None:
        return ""
    return as_text(name, mean) + ("" if std is None or math.isnan(std) else f" ± {as_text(name, std)}")


def markdown_table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of GitHub's Markdown; the first column to the left, the others to the right."""
    lines = [names, [":--", *["--:"] * (len(names) - 1)], *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def write_csv(path: Path, results: Sequence[Result]) -> None:
    """One line per cell, with every metric, fused and per modality."""
    axes = list(results[0].cell.labels) if results else []
    metrics = list(dict.fromkeys(name for result in results for name in result.metrics))
    fixed = ["seed", "status", "steps", "split", "examples", "gflops", "parameters", "clips_per_second"]

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*axes, *fixed, *metrics, "error", "folder"])
            for r in results:
                cost = (r.cost.gflops, r.cost.parameters) if r.cost else ("", "")
                known = (r.cell.seed, r.status, r.steps, r.split, r.examples, *cost, r.clips_per_second)
                values = (r.metrics.get(name, "") for name in metrics)
                writer.writerow([*r.cell.labels.values(), *known, *values, r.error, r.cell.name])

    write_atomically(path, write)


def document(results: Sequence[Result], rows: Sequence[Row]) -> dict[str, Any]:
    """For ``--json``."""
    return {
        "cells": [
            {
                "name": r.cell.name,
                **{"labels": dict(r.cell.labels), "seed": r.cell.seed, "status": r.status, "error": r.error},
                **{"steps": r.steps, "split": r.split, "examples": r.examples},
                "metrics": dict(r.metrics),
                "clips_per_second": r.clips_per_second,
            }
            for r in results
        ],
        "points": [
            {
                **{"labels": dict(row.labels), "seeds": row.count, "mean": dict(row.mean), "std": dict(row.std)},
                "gflops": row.cost.gflops if row.cost else None,
                "parameters": row.cost.parameters if row.cost else None,
                "clips_per_second": row.clips_per_second,
            }
            for row in rows
        ],
    }

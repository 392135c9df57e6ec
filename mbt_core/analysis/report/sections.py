"""The sections of the report: figures with what one sees on them, tables, facts.

Shapes: C classes of a task, K shown classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from mbt_core.analysis.page.colours import names_of
from mbt_core.analysis.page.html import percent
from mbt_core.analysis.report import figures
from mbt_core.analysis.report.figures import Line
from mbt_core.analysis.report.left import Left
from mbt_core.analysis.report.numbers import (
    ClassRow,
    Reliability,
    class_rows,
    confused_pairs,
    confusion_matrix,
    most_confused,
    reliability,
    smooth,
)
from mbt_core.config import BackboneConfig, HeadConfig, TaskKind
from mbt_core.data.splits import TEST, TRAIN, VAL
from mbt_core.evaluate.baseline import largest_class
from mbt_core.evaluate.evaluator import FUSED, Evaluation
from mbt_core.evaluate.metrics import SHARES, base_name, lower_is_better, metric_names
from mbt_core.evaluate.table import Predictions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WHOLE = 20
"""Classes up to which a confusion matrix shows all; else the most confused so many."""
ENDS = 15
"""Worst and best classes that have a bar, where there are more."""
PAIRS = 10
ROWS = 1000
"""Most confused pairs in a list, most classes in a table."""
POINTS = 300
"""Most points of a curve."""
DOTS = 2000
"""Most examples in a scatter plot, most numbers of a regression that have one."""
NUMBERS = 6
ALL = "fused"
UNITS = {"single": "recall", "multilabel": "average precision"}


@dataclass(frozen=True)
class Drawn:
    """A figure, its heading, and what one sees on it."""

    title: str
    figure: Figure
    caption: str


@dataclass(frozen=True)
class Table:
    """A table: its columns and rows of text; and what it shows."""

    columns: list[str]
    rows: list[list[str]]
    caption: str = ""


@dataclass(frozen=True)
class TaskSection:
    """What is told of one task."""

    name: str
    figures: list[Drawn]
    pairs: list[tuple[str, str, int]] = field(default_factory=list)
    classes: Table | None = None


def shown(name: str, value: float) -> str:
    """A metric as text: shares of right answers in per cent."""
    if math.isnan(value):
        return "\N{EN DASH}"
    if base_name(name) in ("top1", "top5", "balanced_accuracy"):
        return percent(value)
    return f"{value:.4g}" if base_name(name) in ("mae", "rmse") else f"{value:.3f}"


def facts(left: Left) -> list[tuple[str, str]]:
    """(what, how it was) of the run."""
    experiment = left.experiment
    model, train = experiment.model, experiment.train
    backbone = model.backbone
    size = f"{backbone.depth} layers of width {backbone.dim}" if isinstance(backbone, BackboneConfig) else backbone
    parameters = sum(p.numel() for p in left.model.parameters()) if left.model else 0
    fusion = f"{model.fusion.strategy} from layer {model.fusion.layer}"
    bottlenecks = f", {model.fusion.bottlenecks} bottlenecks" if model.fusion.strategy.startswith("bottleneck") else ""
    found = {
        "modalities": ", ".join(n if n == c.kind else f"{n} ({c.kind})" for n, c in experiment.modalities.items()),
        "model": f"{size}{f', {parameters:,} parameters' if parameters else ''}",
        "fusion": fusion + bottlenecks,
        "initial weights": str(model.pretrained or "fresh"),
        "classes": ", ".join(
            str(count) if model.head.tasks is None else f"{count} of {task}"
            for task, count in model.head.outputs.items()
            if model.head.kind_of(task) != "regression"
        ),
        "training": f"{train.optimizer}, learning rate {train.lr:g}, batch {train.batch_size}, seed {train.seed}",
        **_progress(left.log),
        **_origin(left.notes),
    }
    return [(key, value) for key, value in found.items() if value]


def _origin(notes: Sequence[str]) -> dict[str, str]:
    found = {}
    for note in notes[1:]:
        kind, _, rest = note.partition(" ")
        if kind in ("started", "commit"):
            found[kind] = rest
        elif kind == "mbt-fusion":
            found["versions"] = note
    return found


def _progress(log: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    if not log:
        return {}
    seconds = log[-1]["time"] - log[0]["time"]
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    took = f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
    return {"steps": f"{log[-1]['step']:,} in {took}"}


def data_table(left: Left) -> Table | None:
    """Clips and classes of each split."""
    manifest = left.manifest
    if manifest is None:
        return None
    named = [task for task in manifest.tasks if manifest.labels[task].names]
    rows = []
    order = [TRAIN, VAL, TEST]
    for split in sorted(manifest.splits, key=lambda name: order.index(name) if name in order else len(order)):
        counts = [manifest.class_counts(task, split) for task in named]
        spread = [f"{c.min():,}\N{EN DASH}{c.max():,}" if c.min() < c.max() else f"{c.max():,}" for c in counts]
        rows.append([split, f"{len(manifest.rows(split)):,}", *spread])
    single = left.experiment.model.head.tasks is None
    columns = ["per class" if single else f"per {task}" for task in named]
    return Table(["split", "clips", *columns], rows, str(manifest.path))


def curves(left: Left) -> tuple[list[Drawn], list[str]]:
    """What training logged, and of what there are too few values for a curve, with the last one."""
    head, colours = left.experiment.model.head, names_of(left.experiment.modalities)
    val = [line for line in left.log if line["event"] == "val"]
    train_loss, val_loss = _points(left.log, "loss", "step"), _points(val, "loss")
    found: list[Drawn] = []
    few: list[str] = []
    if _is_curve(train_loss, val_loss):
        drawn = [
            Line("train", "z", smooth(train_loss, POINTS), faint=len(train_loss) > 60),
            Line("train, smoothed", "m0", smooth(train_loss, 40), bold=True) if len(train_loss) > 60 else None,
            Line("val", "m1", val_loss, bold=True),
        ]
        caption = _lowest(val_loss) if val_loss else "There was no val split to measure it on."
        found.append(Drawn("Loss", figures.lines([line for line in drawn if line]), caption))
    else:
        few += [
            f"loss {points[-1][1]:.3f} on {where}"
            for where, points in (("train", train_loss), (VAL, val_loss))
            if points
        ]
    for task, outputs in head.outputs.items():
        metric = metric_names(head.kind_of(task), outputs)[0]
        name = metric if head.tasks is None else f"{task}/{metric}"
        points = {ALL: _points(val, name)} | {m: _points(val, f"{name}[{m}]") for m in colours}
        if not _is_curve(points[ALL]):
            few += [f"{name} {shown(name, value)} on val" for _, value in points[ALL][-1:]]
            continue
        drawn_lines = [
            Line(source, colours.get(source, "ink"), found_points, source == ALL)
            for source, found_points in reversed(points.items())
        ]
        best = best_point(points[ALL], dict(val_loss), lower_is_better(name))
        caption = f"On val; best {shown(name, best[1])} at step {best[0]:,}"
        alone = (
            "; each colour is what one modality's own prediction reaches on the clips that have it"
            if any(points[m] for m in colours)
            else ""
        )
        found.append(Drawn(name, figures.lines(drawn_lines, within=limits(metric)), f"{caption}{alone}."))
    for name, title, caption in (
        ("lr", "Learning rate", "As it was scheduled: warm-up, then a cosine down to zero."),
        ("clips_per_second", "Speed", "Clips a second in training."),
    ):
        points_of = _points(left.log, name, "step")
        if _is_curve(points_of):
            found.append(Drawn(title, figures.lines([Line(title, "m0", smooth(points_of, POINTS))]), caption))
    return found, few


def best_point(points: Sequence[tuple[int, float]], losses: Mapping[int, float], lower: bool) -> tuple[int, float]:
    """The point that chooses the weights: among equal ones the one of the lowest loss, as training has it."""
    return min(points, key=lambda point: (point[1] if lower else -point[1], losses.get(point[0], math.inf)))


def _is_curve(*of: Sequence[tuple[int, float]]) -> bool:
    """Whether any of these points are at more than one step."""
    return any(len({step for step, _ in points}) > 1 for points in of)


def _points(log: Sequence[Mapping[str, Any]], name: str, event: str = "val") -> list[tuple[int, float]]:
    return [(line["step"], line[name]) for line in log if line["event"] == event and line.get(name) is not None]


def limits(name: str) -> tuple[float, float] | None:
    """What the values of a metric cannot leave, where there is such a thing."""
    return (0.0, 1.0) if base_name(name) in SHARES else None


def _lowest(points: Sequence[tuple[int, float]]) -> str:
    step, value = min(points, key=lambda point: point[1])
    rises = points[-1][1] > 1.1 * value and points[-1][0] > step
    end = f", then it rises to {points[-1][1]:.3f}: the model learns the training clips by heart" if rises else ""
    return f"The loss on val is lowest ({value:.3f}) at step {step:,}{end}."


def metrics_table(predictions: Predictions | None, modalities: Sequence[str]) -> Table:
    """A row a metric, a column for all modalities together and each alone; above them of how many clips a column is."""
    found = predictions.found if predictions else None
    metrics = found.metrics() if found else {}
    names = list(dict.fromkeys(name.partition("[")[0] for name in metrics))
    alone = [m for m in modalities if any(f"{name}[{m}]" in metrics for name in names)] if len(modalities) > 1 else []

    def cell(key: str) -> str:
        return shown(key, metrics[key]) if key in metrics else ""

    rows = [[name, cell(name), *(cell(f"{name}[{m}]") for m in alone)] for name in names]
    if found and rows:
        rows.insert(0, ["clips", *(f"{found.examples[source]:,}" for source in (FUSED, *alone))])
    return Table(["", ALL if alone else "value", *alone], rows)


def subset_tables(predictions: Predictions) -> list[Table]:
    """Metrics of each evaluated subset, and what adding a modality does to answers."""
    about = predictions.about
    if not about.subsets:
        return []
    names = list(dict.fromkeys(n for metrics in about.subsets.values() for n in metrics if "[" not in n))
    names = [name for name in names if name != "examples"]
    rows = [
        [subset, _count(metrics), *(shown(n, metrics[n]) if n in metrics else "" for n in names)]
        for subset, metrics in about.subsets.items()
    ]
    which = "each on the clips that have any of them: their numbers differ"
    if about.rows == "common":
        which = "on the same clips, those that every row of this table answers"
    caption = f"The same model with only these modalities given to it, {which}."
    found = [Table(["modalities", "clips", *names], rows, caption)]
    changes = [
        [c["from"], c["adding"], c["task"], _count(c), percent(c["gained"]), percent(c["lost"])]
        for c in about.confusion
    ]
    if changes:
        of = "of the same clips" if about.rows == "common" else "of all clips that have both"
        columns = ["from", "adding", "task", "clips", "wrong to right", "right to wrong"]
        found.append(Table(columns, changes, f"What adding a modality does to answers, {of}."))
    return found


def _count(of: Mapping[str, Any]) -> str:
    """The number of examples; nothing where an older file does not tell it."""
    return f"{of['examples']:,}" if "examples" in of else ""


def task_section(task: str, predictions: Predictions, modalities: Sequence[str]) -> TaskSection:
    """Where the model is right and wrong in a task, and how sure it is."""
    found = predictions.found
    kind = found.head.kind_of(task)
    names = predictions.classes.get(task) or [f"class_{i}" for i in range(found.head.outputs[task])]
    if kind == "regression":
        return TaskSection(task, _scatters(task, found))
    rows = class_rows(kind, found.logits[FUSED][task], found.targets[task])
    if kind == "single":
        matrix_CC = confusion_matrix(found.logits[FUSED][task], found.targets[task])
        pairs = [(names[a], names[b], n) for a, b, n in confused_pairs(matrix_CC, PAIRS)]
        drawn = [_confusion(matrix_CC, names, largest_class(found, task))] if len(names) > 1 else []
    else:
        drawn, pairs = _average_precisions(rows, names), []
    calibrated = _calibration(task, kind, found, modalities)
    return TaskSection(task, [*drawn, *calibrated], pairs, _class_table(kind, rows, names))


def _confusion(matrix_CC: torch.Tensor, names: Sequence[str], common: int) -> Drawn:
    kept = list(range(len(names))) if len(names) <= WHOLE else most_confused(matrix_CC, WHOLE)
    wrong, total = int(matrix_CC.sum() - matrix_CC.diag().sum()), int(matrix_CC.sum())
    figure = figures.confusion(
        matrix_CC[kept][:, kept].numpy(), matrix_CC.sum(1)[kept].numpy(), [names[i] for i in kept]
    )
    # an accuracy says little without what the commonest class alone would score
    caption = (
        "Rows are what a clip is, columns what the model says; the fuller the colour, the larger the share of the row. "
        f"{total - wrong:,} of {total:,} clips lie on the diagonal (blue), {wrong:,} off it (orange). "
        f"Always answering {names[common]} would be right for {int(matrix_CC[common].sum()):,}."
    )
    if len(kept) < len(names):
        caption += f" Of {len(names)} classes these {len(kept)} are confused most."
    return Drawn("Confusion", figure, caption)


def _average_precisions(rows: Sequence[ClassRow], names: Sequence[str]) -> list[Drawn]:
    scored = [(names[row.place], row.score) for row in rows if row.score is not None]
    if not scored:
        return []
    without = len(rows) - len(scored)
    rest = f" {without} classes have no clip here." if without else ""
    mean = sum(score for _, score in scored) / len(scored)
    if len(scored) <= 2 * ENDS:
        caption = f"The worst class at the top; the mean is {mean:.3f}.{rest}"
        return [Drawn("Average precision", figures.bars(scored, "average precision"), caption)]
    return [
        Drawn(
            "Average precision",
            figures.ranked([score for _, score in scored], "average precision"),
            f"Of all {len(scored)} classes; the mean is {mean:.3f}.{rest}",
        ),
        Drawn("Worst classes", figures.bars(scored[:ENDS], "average precision"), "The worst at the top."),
        Drawn("Best classes", figures.bars(scored[: -ENDS - 1 : -1], "average precision"), "The best at the top."),
    ]


def _scatters(task: str, found: Evaluation) -> list[Drawn]:
    said_NC, true_NC = found.logits[FUSED][task], found.targets[task].float()
    C = said_NC.shape[1]
    drawn = []
    for number in range(min(C, NUMBERS)):
        said, true = said_NC[:, number], true_NC[:, number]
        finite = said.isfinite() & true.isfinite()
        left_out = int((~finite).sum())
        said, true = said[finite], true[finite]
        kept = torch.linspace(0, len(said) - 1, min(len(said), DOTS)).round().long()
        name = task if C == 1 else f"{task} {number + 1}"
        off = float((said - true).abs().mean())
        caption = f"A point a clip; on the dashed line the model is right. On average it is off by {off:.3g}."
        if left_out:
            lost = f"{left_out:,} of {len(finite):,} have no point: inf or nan."
            caption = f"{caption} {lost}" if len(said) else lost
        figure = figures.scatter(said[kept].numpy(), true[kept].numpy(), name)
        drawn.append(Drawn("Said against true" if C == 1 else name, figure, caption))
    return drawn


def _calibration(task: str, kind: TaskKind, found: Evaluation, modalities: Sequence[str]) -> list[Drawn]:
    colours = names_of(modalities)
    curves_of: dict[str, tuple[str, Reliability]] = {}
    for source, logits in found.logits.items():
        here = found.present.get(source, torch.ones(len(found.index), dtype=torch.bool))
        curve = reliability(kind, logits[task][here], found.targets[task][here])
        if curve is not None:
            curves_of[source or ALL] = (colours.get(source, "ink"), curve)
    if ALL not in curves_of or max(curves_of[ALL][1].count) < figures.FEWEST:
        return []
    errors = ", ".join(f"{name} {percent(curve.error)}" for name, (_, curve) in curves_of.items())
    sure, right = _means(curves_of[ALL][1])
    alone = " (a modality's own on the clips that have it)" if len(curves_of) > 1 else ""
    verdict = "surer than it is right" if sure > right else "less sure than it is right"
    caption = (
        f"Below the dashed line the model is surer than it should be. On average it is {percent(sure)} sure and "
        f"{percent(right)} right: {verdict}. Expected calibration error: {errors}{alone}. "
        f"Below: how many answers are so sure; above, fewer than {figures.FEWEST} have no point."
    )
    return [Drawn("Calibration", figures.calibration(curves_of), caption)]


def _means(curve: Reliability) -> tuple[float, float]:
    sure = sum(s * p for s, p in zip(curve.share, curve.said, strict=True))
    return sure, sum(s * r for s, r in zip(curve.share, curve.right, strict=True))


def _class_table(kind: TaskKind, rows: Sequence[ClassRow], names: Sequence[str]) -> Table:
    def text(value: float | None) -> str:
        return "\N{EN DASH}" if value is None else percent(value) if kind == "single" else f"{value:.3f}"

    precision = ["precision"] if kind == "single" else []
    cells = [
        [names[r.place], f"{r.examples:,}", text(r.score), *([text(r.precision)] if precision else [])]
        for r in rows[:ROWS]
    ]
    caption = "" if len(rows) <= ROWS else f"The worst {ROWS:,} of {len(rows):,}."
    return Table(["class", "clips", UNITS[kind], *precision], cells, caption)


def headline(metrics: Mapping[str, float], head: HeadConfig, predictions: Predictions) -> list[tuple[str, str]]:
    """(what, how much) of the few numbers that matter most."""
    found = []
    for task, outputs in head.outputs.items():
        metric = metric_names(head.kind_of(task), outputs)[0]
        name = metric if head.tasks is None else f"{task}/{metric}"
        if name in metrics:
            found.append((name.replace("/", " "), shown(name, metrics[name])))
    found.append((f"clips of {predictions.split}", f"{len(predictions.found.index):,}"))
    if predictions.found.failed:
        found.append(("unreadable", f"{len(predictions.found.failed):,}"))
    return found

"""The figures of sweeps, by matplotlib (extra ``plots``)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbt_core.io.files import write_atomically
from mbt_core.sweep.grid import short
from mbt_core.sweep.results import Result, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333", "#F0E442")
"""Told apart by colour-blind people: M. Okabe, K. Ito, Color Universal Design (2008)."""
MARKERS = "osD^vPX*"
STYLE: Any = {
    **{"font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left"},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e4e4e4"},
    **{"axes.axisbelow": True, "axes.edgecolor": "#808080", "svg.fonttype": "none", "legend.frameon": False},
}
LOG_FROM = 8
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""

Grouped = dict[str, list[tuple[float, Row]]]


def save(figure: Figure, out: Path, name: str) -> list[Path]:
    """Writes ``NAME.png`` and ``NAME.svg``."""
    paths = [out / f"{name}.{kind}" for kind in ("png", "svg")]
    for path in paths:
        write_atomically(path, lambda file, kind=path.suffix[1:]: figure.savefig(file, format=kind, dpi=150))  # type: ignore[misc]
    return paths


@dataclass(frozen=True)
class Scale:
    """An axis of the grid as the horizontal axis of a plot: where each label lies.

    Args:
        name: of the axis.
        at: label -> position; labels that are no numbers are equally spaced.
        numeric: whether they are numbers.
    """

    name: str
    at: Mapping[str, float]
    numeric: bool

    @property
    def logarithmic(self) -> bool:
        values = self.at.values()
        return self.numeric and min(values) > 0 and max(values) / min(values) >= LOG_FROM

    def beside(self, x: Sequence[float], number: int, count: int) -> list[float]:
        """Positions of line `number` of `count`, a little apart so that error bars do not hide each other."""
        share = (number - (count - 1) / 2) / count
        low, high = min(self.at.values()), max(self.at.values())
        if self.logarithmic:
            return [value * (high / low) ** (0.02 * share) for value in x]
        return [value + share * (0.02 * (high - low) if self.numeric else 0.6) for value in x]

    @classmethod
    def of(cls, name: str, labels: Sequence[str]) -> Scale:
        labels = list(dict.fromkeys(labels))
        with suppress(ValueError):  # a number may have a unit: "2 s"
            return cls(name, {label: float(label.split()[0]) for label in labels}, True)
        return cls(name, {label: float(place) for place, label in enumerate(labels)}, False)

    def apply(self, axes: Axes) -> None:
        """Ticks, their labels, limits."""
        if self.logarithmic:
            axes.set_xscale("log")
            axes.minorticks_off()
        rotated = not self.numeric and sum(map(len, self.at)) > 28
        turned: Any = {"rotation": 25, "ha": "right"} if rotated else {}
        axes.set_xticks(list(self.at.values()), list(self.at), **turned)
        axes.set_xlabel(short(self.name))
        if not self.numeric:
            axes.set_xlim(-0.5, len(self.at) - 0.5)
            axes.grid(axis="x", visible=False)


def comparison(rows: Sequence[Row], title: str) -> Figure:
    """Each main metric with its deviation over the seeds, beside GFLOPs and clips/s."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    scale = _main_axis(rows)
    groups = _groups(rows, scale)
    metrics = list(dict.fromkeys(name for row in rows for name in row.main if name in row.mean))
    with rc_context(STYLE):
        panels = [*metrics, "GFLOPs per clip", _speed_title(rows)]
        wide = 3.3 if scale.numeric else max(3.3, 0.62 * len(scale.at) * max(1.0, len(groups) / 3))
        figure = Figure(figsize=(wide * len(panels), 3.4 + 0.22 * math.ceil(len(groups) / 4)), layout="constrained")
        plots = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, name in zip(plots, metrics, strict=False):
            _draw(axes, groups, scale, name, partial(_metric, name))
            _within(axes, 0, 1)
        gflops, speed = plots[-2], plots[-1]
        _draw(gflops, groups, scale, panels[-2], lambda row: (row.cost.gflops if row.cost else None, math.nan))
        _draw(speed, groups, scale, panels[-1], _speed, joined=False)
        for axes in (gflops, speed):
            axes.set_ylim(0, 1.06 * axes.get_ylim()[1])
        figure.suptitle(_heading(title, rows), x=0.01, ha="left", fontsize=11)
        if len(groups) > 1:
            handles, labels = plots[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(groups)))
    return figure


def _heading(title: str, rows: Sequence[Row]) -> str:
    counts = {row.count for row in rows if row.count}
    if max(counts, default=0) < 2:
        return f"{title}  (one seed)"
    few, many = min(counts), max(counts)
    return f"{title}  (mean and deviation over {many if few == many else f'{few} to {many}'} seeds)"


def _main_axis(rows: Sequence[Row]) -> Scale:
    """The axis with most numbers, or else the first."""
    scales = [Scale.of(name, [row.labels[name] for row in rows]) for name in rows[0].labels]
    numeric = [scale for scale in scales if scale.numeric]
    return max(numeric or scales[:1], key=lambda scale: len(scale.at))


def _groups(rows: Sequence[Row], scale: Scale) -> Grouped:
    """Line of the plot -> (position, row), in order; a line is a point of the other axes."""
    groups: Grouped = {}
    for row in rows:
        others = [f"{short(a)} {label}" for a, label in row.labels.items() if a != scale.name]
        groups.setdefault(", ".join(others), []).append((scale.at[row.labels[scale.name]], row))
    return {name: sorted(found, key=lambda pair: pair[0]) for name, found in groups.items()}


def _metric(name: str, row: Row) -> tuple[float | None, float]:
    return row.mean.get(name), row.std.get(name, math.nan)


def _speed(row: Row) -> tuple[float | None, float]:
    return row.clips_per_second, row.speed_std


def _speed_title(rows: Sequence[Row]) -> str:
    one = all(row.count < 2 for row in rows)
    return f"clips/s in training, {'one run each' if one else 'mean and deviation'}"


def _draw(
    axes: Axes,
    groups: Grouped,
    scale: Scale,
    title: str,
    value: Callable[[Row], tuple[float | None, float]],
    joined: bool = True,
) -> None:
    """A line or bars for each of `groups`; not `joined`: points, of what differs from run to run by itself."""
    for number, (name, rows) in enumerate(groups.items()):
        found = [(x, *value(row)) for x, row in rows]
        points = [(x, mean, std) for x, mean, std in found if mean is not None]
        if not points:
            continue
        places, mean, std = zip(*points, strict=True)
        x = scale.beside(places, number, len(groups))
        errors = None if all(map(math.isnan, std)) else [0.0 if math.isnan(s) else s for s in std]
        if errors is None and not scale.numeric and joined:
            axes.bar(x, mean, 0.5 / len(groups), color=COLOURS[number % len(COLOURS)], label=name)
        else:
            _line(axes, number, x, mean, errors, "-" if scale.numeric and joined else "none", name)
    axes.set_title(title)
    scale.apply(axes)


def _line(
    axes: Axes,
    number: int,
    x: Sequence[float],
    y: Sequence[float],
    errors: Sequence[float] | None,
    line: str,
    label: str,
) -> None:
    drawn = axes.errorbar(
        x,
        y,
        errors,
        color=COLOURS[number % len(COLOURS)],
        marker=MARKERS[number % len(MARKERS)],
        markersize=5,
        markeredgecolor="white",
        markeredgewidth=0.7,
        linestyle=line,
        linewidth=1.6,
        capsize=3,
        elinewidth=1.2,
        label=label,
    )
    drawn[0].set_clip_on(False)  # at the limits of what is measured, points are shown whole


def _within(axes: Axes, low: float, high: float) -> None:
    """Limits of values that cannot leave a range: what is drawn, with its error bars as far as they are in it."""
    bottom, top = axes.get_ylim()
    if bottom >= low - 0.2:
        axes.set_ylim(max(low, bottom), min(high, max(top, bottom + 0.05)))


def transfer(results: Sequence[Result], rows: Sequence[Row], title: str, names: Mapping[str, str]) -> Figure:
    """Above: score against the share of the training rows, a panel per way of tuning, a line per start.

    Below: the learning curves of the largest share.

    Args:
        results: of the cells.
        rows: of the points.
        title: of the figure.
        names: axis -> what it is: the names of the axes ``init``, ``tune``, ``fraction``.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    tunes = list(dict.fromkeys(row.labels[names["tune"]] for row in rows))
    inits = list(dict.fromkeys(row.labels[names["init"]] for row in rows))
    scale = Scale.of("share of the training rows", [row.labels[names["fraction"]] for row in rows])
    largest = max(scale.at, key=lambda label: scale.at[label])
    with rc_context(STYLE):
        figure = Figure(figsize=(1 + 3.6 * len(tunes), 6.4), layout="constrained")
        plots: Any = figure.subplots(2, len(tunes), squeeze=False, sharey="row")
        for (above, below), tune in zip(plots.T, tunes, strict=True):
            for number, init in enumerate(inits):
                here = [r for r in rows if (r.labels[names["tune"]], r.labels[names["init"]]) == (tune, init)]
                _scores(above, number, [(scale.at[r.labels[names["fraction"]]], r) for r in here], init)
                labels = {names["tune"]: tune, names["init"]: init, names["fraction"]: largest}
                _curves(below, number, [r for r in results if dict(r.cell.labels) == labels])
            above.set_title(f"tune {tune}")
            scale.apply(above)
            below.set_xlabel("step")
        plots[0][0].set_ylabel(score_name(results))
        _within(plots[0][0], 0, 1)
        curve = next((r.curve_name for r in results if r.curve), "")
        plots[1][0].set_ylabel("loss in training" if curve == "loss" else f"{curve} on val")
        plots[1][0].set_title(f"learning curves, share {largest}")
        figure.suptitle(_heading(title, rows), x=0.01, ha="left", fontsize=11)
        handles, labels_ = plots[0][0].get_legend_handles_labels()
        figure.legend(handles, labels_, loc="outside lower center", ncols=len(inits))
    return figure


def score_name(results: Sequence[Result]) -> str:
    done = next((r for r in results if r.metrics), None)
    if done is None:
        return "score"
    return f"{'mean of ' if len(done.main) > 1 else ''}{', '.join(done.main)} on {done.split}"


def _scores(axes: Axes, number: int, found: Sequence[tuple[float, Row]], label: str) -> None:
    points = sorted((x, *row.score) for x, row in found if row.score)
    if points:
        x, mean, std = zip(*points, strict=True)
        errors = None if all(map(math.isnan, std)) else [0.0 if math.isnan(s) else s for s in std]
        _line(axes, number, x, mean, errors, "-", label)


def _curves(axes: Axes, number: int, results: Sequence[Result]) -> None:
    """Each seed's curve faintly, their mean boldly where all have a value."""
    colour = COLOURS[number % len(COLOURS)]
    values: dict[int, list[float]] = {}
    drawn = [r for r in results if r.curve]
    for result in drawn:
        alone: Any = {"marker": "o", "markersize": 4} if len(result.curve) == 1 else {}
        axes.plot(*zip(*result.curve, strict=True), color=colour, alpha=0.3, linewidth=0.9, **alone)
        for step, value in result.curve:
            values.setdefault(step, []).append(value)
    mean = [(step, statistics.fmean(v)) for step, v in sorted(values.items()) if len(v) == len(drawn)]
    if mean:
        axes.plot(*zip(*mean, strict=True), color=colour, linewidth=1.8)

"""The figures of the report, by matplotlib, drawn in the light colours of `mbt_core.analysis.page.colours`.

Shapes: C classes, K shown classes.
"""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mbt_core.analysis.page.colours import colour, themed
from mbt_core.analysis.report.numbers import Reliability
from mbt_core.io.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 3.9
"""Inches of a usual figure: on a phone its letters are a little smaller than the page's, and no figure is cut off."""
WIDE = 5.0
"""Inches from which a figure has a row of the page to itself, and scrolls on a phone."""
FEWEST = 5
"""Answers from which a bin has a point in the figure of calibration."""
LONGEST = 22
"""Letters of a class's name in a figure."""
STYLE: Any = {
    **{"font.size": 9.5, "axes.titlesize": 10, "axes.labelsize": 9.5, "legend.fontsize": 9, "legend.frameon": False},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True},
    **{"grid.color": colour("line"), "grid.linewidth": 0.8, "axes.edgecolor": colour("z"), "axes.linewidth": 0.8},
    **{"text.color": colour("ink"), "axes.labelcolor": colour("soft"), "axes.titlecolor": colour("ink")},
    **{"xtick.color": colour("soft"), "ytick.color": colour("soft"), "xtick.major.size": 3, "ytick.major.size": 3},
    **{"figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none"},
    **{"svg.fonttype": "none", "text.parse_math": False, "lines.solid_capstyle": "round"},
}


@dataclass(frozen=True)
class Line:
    """A line of a plot: its label, name of its colour, points, and whether it is the one that matters."""

    label: str
    colour: str
    points: Sequence[tuple[float, float]]
    bold: bool = False
    faint: bool = False


@contextmanager
def _drawing() -> Iterator[None]:
    from matplotlib import rc_context

    with rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that its own font lacks are drawn by the browser's
        yield


@contextmanager
def _figure(height: float, width: float = WIDTH) -> Iterator[tuple[Figure, Axes]]:
    from matplotlib.figure import Figure

    with _drawing():
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots()


def svg(figure: Figure, title: str) -> str:
    """As markup for the page, in its colours, as wide as there is room. `title`: what a screen reader says."""
    from html import escape

    from matplotlib import rc_context

    file = io.StringIO()
    with _drawing(), rc_context({"svg.hashsalt": title}):
        engine = figure.get_layout_engine()
        if engine is not None:  # once is enough; `savefig` would draw everything a second time for it
            engine.execute(figure)
            figure.set_layout_engine("none")
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue()
    text = re.sub(r"<(metadata|style).*?</\1>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    size = re.search(r'viewBox="0 0 ([\d.]+) ', text)
    pixels = float(size[1]) * 4 / 3 if size else 0.0
    least = 0.75 * pixels if figure.get_figwidth() > WIDE else 0.0
    limits = f"min-width: {least:.0f}px; max-width: {1.12 * pixels:.0f}px"
    head = f'<svg role="img" aria-label="{escape(title, quote=True)}" style="{limits}"'
    return re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', lambda found: f"{head} {found[1]}>", themed(text), count=1)


def save(figure: Figure, folder: Path, name: str) -> None:
    """Writes ``NAME.png`` and ``NAME.svg``, on white."""
    with _drawing():
        for kind in ("png", "svg"):
            options: Any = {"format": kind, "dpi": 150, "facecolor": "white"}
            write_atomically(folder / f"{name}.{kind}", partial(figure.savefig, **options))


def png(figure: Figure) -> np.ndarray:
    """As a picture on white, uint8 [H, W, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with _drawing():
        figure.set_facecolor("white")
        figure.set_dpi(130)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def short(name: str) -> str:
    """A name on one line, cut in the middle if it is long."""
    line = " ".join(name.split())
    shown = "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c)[0] == "C" else c for c in line)
    half = (LONGEST - 1) // 2
    return shown if len(shown) <= LONGEST else f"{shown[:half]}\N{HORIZONTAL ELLIPSIS}{shown[-half:]}"


Limits = tuple[float, float] | None


def lines(drawn: Sequence[Line], within: Limits = None, xlabel: str = "step") -> Figure:
    """Values against the step. `within`: limits that values cannot leave."""
    with _figure(2.7) as (figure, axes):
        _lines(axes, drawn, within, xlabel)
    return figure


def panels(drawn: Mapping[str, tuple[Sequence[Line], Limits]], xlabel: str) -> Figure:
    """Several of `lines` beside one another: title -> its lines and limits."""
    from matplotlib.figure import Figure

    with _drawing():
        figure = Figure(figsize=(WIDTH * len(drawn), 2.9), layout="constrained")
        found: Any = figure.subplots(1, len(drawn), squeeze=False)
        for axes, (title, (of, within)) in zip(found[0], drawn.items(), strict=True):
            _lines(axes, of, within, xlabel)
            axes.set_title(title, loc="left", fontweight="bold")
    return figure


def _lines(axes: Axes, drawn: Sequence[Line], within: Limits, xlabel: str) -> None:
    from matplotlib.ticker import MaxNLocator

    for line in drawn:
        if line.points:
            marker: Any = {"marker": "o", "markersize": 3.5} if len(line.points) <= 30 and not line.faint else {}
            width, opacity = 2.2 if line.bold else 1.3, 0.45 if line.faint else 1.0
            axes.plot(
                *zip(*line.points, strict=True),
                color=colour(line.colour),
                linewidth=width,
                alpha=opacity,
                label=line.label,
                zorder=3 if line.bold else 2,
                clip_on=within is None,  # at its limits a line is drawn in its whole width
                **marker,
            )
    axes.set_xlabel(xlabel)
    axes.margins(x=0.02)
    if all(float(x).is_integer() for line in drawn for x, _ in line.points):
        axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
    if within:
        low, high = axes.get_ylim()
        axes.set_ylim(max(within[0], low), min(within[1], high))
    if sum(bool(line.points) for line in drawn) > 1:
        axes.legend(loc="best", handlelength=1.4)


def confusion(matrix_KK: np.ndarray, totals_K: np.ndarray, names: Sequence[str]) -> Figure:
    """Rows: what it is; columns: what the model says; the darker, the larger the share of the row.

    Args:
        matrix_KK: int, of the shown classes.
        totals_K: examples of each row in all, also those called a class that is not shown.
        names: of the shown classes.
    """
    from matplotlib.patches import Rectangle

    K = len(names)
    share_KK = matrix_KK / np.maximum(totals_K, 1)[:, None]
    side = min(max(WIDTH, 1.6 + 0.3 * K), 7.6)
    with _figure(side, side) as (figure, axes):
        for row, column in zip(*np.nonzero(matrix_KK), strict=True):
            share = float(share_KK[row, column])
            right = row == column
            box: Any = {"facecolor": colour("accent" if right else "m1"), "alpha": 0.12 + 0.88 * share, "linewidth": 0}
            axes.add_patch(Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, **box))
            if K <= 20:
                ink = "card" if share > 0.55 else "ink"
                where: Any = {"ha": "center", "va": "center", "fontsize": 9 if K <= 12 else 7}
                axes.text(column, row, str(matrix_KK[row, column]), color=colour(ink), **where)
        labels = [short(name) for name in names]
        size = 9 if K <= 12 else 7.5
        axes.set_xticks(range(K), labels, rotation=90 if max(map(len, labels)) * K > 40 else 0, fontsize=size)
        axes.set_yticks(range(K), labels, fontsize=size)
        axes.set(xlim=(-0.5, K - 0.5), ylim=(K - 0.5, -0.5), aspect="equal")
        axes.set_xlabel("the model says")
        axes.set_ylabel("it is")
        axes.grid(False)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
    return figure


def bars(values: Sequence[tuple[str, float]], xlabel: str) -> Figure:
    """Horizontal bars of scores in [0, 1], in their order from the top; None of a name leaves a gap."""
    with _figure(0.9 + 0.24 * len(values)) as (figure, axes):
        places = range(len(values))
        scores = [value for _, value in values]
        axes.barh(places, [1.0] * len(values), 0.62, color=colour("line"), zorder=1)
        axes.barh(places, scores, 0.62, color=colour("accent"), zorder=2)
        for place, score in zip(places, scores, strict=True):
            axes.text(1.02, place, f"{score:.2f}", va="center", fontsize=9, color=colour("soft"))
        axes.set_yticks(places, [short(name) for name, _ in values], fontsize=9)
        axes.set(xlim=(0, 1.0), ylim=(len(values) - 0.4, -0.6))
        axes.set_xlabel(xlabel)
        axes.grid(False)
        axes.tick_params(axis="y", length=0)
        for name in ("left", "bottom"):
            axes.spines[name].set_visible(False)
    return figure


def ranked(scores: Sequence[float], ylabel: str) -> Figure:
    """Scores in [0, 1] of many classes, from the worst to the best."""
    with _figure(2.5) as (figure, axes):
        axes.fill_between(range(1, len(scores) + 1), scores, color=colour("accent"), alpha=0.25, linewidth=0)
        axes.plot(range(1, len(scores) + 1), scores, color=colour("accent"), linewidth=2, clip_on=False)
        axes.set(xlim=(1, max(2, len(scores))), ylim=(0, 1))
        axes.set_xlabel("classes, from the worst to the best")
        axes.set_ylabel(ylabel)
    return figure


def scatter(said_N: np.ndarray, true_N: np.ndarray, name: str) -> Figure:
    """Finite numbers as the model says them against what they are; there may be none."""
    with _figure(WIDTH * 0.9) as (figure, axes):
        both = [*said_N.tolist(), *true_N.tolist()] or [0.0]
        low, high = min(both), max(both)
        room = 0.04 * (high - low) or 1.0
        axes.plot([low, high], [low, high], color=colour("z"), linewidth=1.2, dashes=(4, 3), zorder=1)
        opacity = min(0.8, max(0.15, 30 / max(1, len(true_N)) ** 0.5))
        axes.scatter(true_N, said_N, 14, color=colour("accent"), alpha=opacity, linewidths=0, zorder=2)
        axes.set(xlim=(low - room, high + room), ylim=(low - room, high + room), aspect="equal")
        axes.set_xlabel(f"{short(name)} as it is")
        axes.set_ylabel("as the model says")
    return figure


def calibration(found: Mapping[str, tuple[str, Reliability]]) -> Figure:
    """How often the model is right against how sure it is, above how often it is so sure.

    Args:
        found: label -> (name of its colour, its reliability); the first one is the one that matters.
    """
    from matplotlib.figure import Figure

    with _drawing():
        figure = Figure(figsize=(WIDTH, WIDTH * 0.95), layout="constrained")
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        axes.plot([0, 1], [0, 1], color=colour("z"), linewidth=1.2, dashes=(4, 3), label="as sure as it should be")
        for number, (label, (name, curve)) in enumerate(found.items()):
            bold: dict[str, Any] = {"clip_on": False, "linewidth": 1.2, "markersize": 3, "alpha": 0.75}
            if number == 0:
                bold |= {"linewidth": 2.2, "markersize": 4.5, "zorder": 3, "alpha": 1.0}
            bins = zip(curve.said, curve.right, curve.count, strict=True)
            points = [(said, right) for said, right, count in bins if count >= FEWEST]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour(name), marker="o", label=label, **bold)
        _, first = next(iter(found.values()))
        below.bar(first.said, first.share, 0.05, color=colour("accent"))
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.set_ylabel("how often it is right")
        axes.legend(loc="upper left", handlelength=1.4)
        below.set_ylabel("answers")
        below.set_ylim(0, 1)
        below.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        below.set_xlabel("how sure the model is")
    return figure


def clip(title: str, pictures: Sequence[tuple[str, np.ndarray]]) -> Figure:
    """Pictures of a clip under one another, each with its modality's name."""
    from matplotlib.figure import Figure

    with _drawing():
        ratios = [max(0.12, min(1.0, image.shape[0] / image.shape[1])) for _, image in pictures] or [0.2]
        figure = Figure(figsize=(6.4, 0.7 + sum(6.0 * r + 0.3 for r in ratios)), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
        found: Any = figure.subplots(len(ratios), 1, squeeze=False, height_ratios=ratios)
        for axes in found[:, 0]:
            axes.set_axis_off()
        for axes, (name, image) in zip(found[:, 0], pictures, strict=False):
            axes.imshow(image)
            axes.set_title(name, loc="left", fontsize=9)
    return figure

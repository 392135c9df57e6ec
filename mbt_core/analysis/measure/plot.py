"""The cost figure, by matplotlib (extra ``plots``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mbt_core.errors import ConfigError
from mbt_core.io.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
COLOURS = ("#0072B2", "#56B4E9", "#D55E00", "#CC79A7", "#333333", "#009E73", "#E69F00")
"""Told apart by colour-blind people: M. Okabe, K. Ito, Color Universal Design (2008)."""
MARKERS = "osD^vPX"


def require_plot(path: Path) -> str:
    """The format that a file's name asks for. Raises `ConfigError` for others."""
    kind = path.suffix[1:].lower()
    if kind not in FORMATS:
        raise ConfigError(f"--plot {path}: expected a name ending in .{', .'.join(FORMATS)}")
    return kind


def cost_figure(curves: Mapping[str, Mapping[int, float]], title: str) -> Figure:
    """GFLOPs of one example against the fusion layer, a line per strategy, as of `over_layers`."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none"}
    with rc_context(style):
        figure = Figure(figsize=(5.6, 3.8), layout="constrained")
        axes = figure.subplots()
        for number, (name, curve) in enumerate(curves.items()):
            axes.plot(
                list(curve),
                list(curve.values()),
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                markersize=4,
                linewidth=1.6,
                label=name,
            )
        axes.set_xlabel("fusion layer")
        axes.set_ylabel("GFLOPs per clip")
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="#e4e4e4")
        axes.set_axisbelow(True)
        axes.legend(frameon=False)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Writes it in the format of the file's name."""
    kind = require_plot(path)
    write_atomically(path, lambda file: figure.savefig(file, format=kind, dpi=160))

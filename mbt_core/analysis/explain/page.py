"""The page of explanations: one HTML file with everything in it, for light and dark, phones and desks.

Needs the extra ``explain`` (Jinja2, Pillow).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mbt_core.analysis.explain.explain import BOTTLENECKS, KEPT, Explanation
from mbt_core.analysis.explain.rollout import Method
from mbt_core.analysis.page.colours import names_of
from mbt_core.analysis.page.html import render, write
from mbt_core.evaluate.evaluator import FUSED

METHOD_TEXTS: dict[Method, str] = {
    "contributions": "What each token adds to the others in all layers, led back from each prediction to the inputs.",
    "rollout": "Attention rollout: the attention of all layers, led back from each prediction to the inputs.",
    "last": "The attention of the last layer alone.",
    "gradient": "The attention of all layers, weighted by its gradient for one label. Class tokens keep most of it.",
}


def write_page(path: Path, explanations: Sequence[Explanation], title: str, method: Method) -> None:
    """Writes the page.

    Args:
        path: of the HTML file.
        explanations: of files, in order.
        title: what explains itself, e.g. the run's folder.
        method: of the explanations.

    Raises:
        MBTError: if it cannot be written.
    """
    write(path, render_page(explanations, title, method))


def render_page(explanations: Sequence[Explanation], title: str, method: Method) -> str:
    """The page as text; see `write_page`."""
    names = list(dict.fromkeys(name for e in explanations for name in e.inputs))
    return render(
        "explain/page.html",
        explanations=explanations,
        title=title,
        method=METHOD_TEXTS[method],
        colours={name: f"var(--{colour})" for name, colour in names_of(names).items()} | {BOTTLENECKS: "var(--z)"},
        FUSED=FUSED,
        BOTTLENECKS=BOTTLENECKS,
        KEPT=KEPT,
    )

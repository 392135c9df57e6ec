"""The page of explanations: one HTML file with everything in it, for light and dark, phones and desks.

Needs the extra ``explain`` (Jinja2, Pillow).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mbt_core.errors import ConfigError
from mbt_core.evaluate.evaluator import FUSED
from mbt_core.explain.explain import BOTTLENECKS, KEPT, Explanation
from mbt_core.explain.rollout import Method
from mbt_core.files import write_atomically

METHOD_TEXTS: dict[Method, str] = {
    "rollout": "Attention rollout: the attention of all layers, led back from each prediction to the inputs.",
    "last": "The attention of the last layer alone.",
    "gradient": "The attention of all layers, weighted by its gradient for one label. Class tokens keep most of it.",
}
FRAME_SECONDS = (0.08, 1.0)
"""Shortest and longest time that a frame of an animation is shown."""
COLOURS = 6
"""Modalities that have a colour of their own."""


def require_page() -> None:
    """Raises `ConfigError` naming what to install to make pages."""
    missing = [name for name in ("jinja2", "PIL") if find_spec(name) is None]
    if missing:
        raise ConfigError(f"the page needs {' and '.join(missing)}: pip install 'mbt-fusion[explain]'")


def write_page(path: Path, explanations: Sequence[Explanation], title: str, method: Method) -> None:
    """Writes the page.

    Args:
        path: of the HTML file.
        explanations: of files, in order.
        title: what explains itself, e.g. the run's folder.
        method: of the explanations.

    Raises:
        ConfigError: naming what to install.
        MBTError: if it cannot be written.
    """
    html = render_page(explanations, title, method)
    write_atomically(path, lambda file: file.write_text(html, encoding="utf-8"))


def render_page(explanations: Sequence[Explanation], title: str, method: Method) -> str:
    """The page as text; see `write_page`."""
    require_page()
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": lambda x: f"{100 * x:.1f} %", "still": still, "animation": animation}
    template = environment.from_string(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    names = list(dict.fromkeys(name for e in explanations for name in e.inputs))
    return template.render(
        explanations=explanations,
        title=title,
        method=METHOD_TEXTS[method],
        colours={name: f"var(--m{number % COLOURS})" for number, name in enumerate(names)} | {BOTTLENECKS: "var(--z)"},
        FUSED=FUSED,
        BOTTLENECKS=BOTTLENECKS,
        KEPT=KEPT,
    )


def still(picture: np.ndarray) -> str:
    """uint8 [H, W, 3] as a data URI."""
    return _webp([picture])


def animation(frames: Sequence[np.ndarray], seconds: float | None) -> str:
    """uint8 [H, W, 3] each as the data URI of an endless animation; `seconds` in all, None: 4 frames a second."""
    each = seconds / len(frames) if seconds else 0.25
    return _webp(frames, round(1000 * min(max(each, FRAME_SECONDS[0]), FRAME_SECONDS[1])))


def _webp(frames: Sequence[np.ndarray], milliseconds: int = 0) -> str:
    from PIL import Image

    first, *others = (Image.fromarray(np.ascontiguousarray(frame)) for frame in frames)
    file = io.BytesIO()
    moving = {"save_all": True, "append_images": others, "duration": milliseconds, "loop": 0} if others else {}
    first.save(file, "WEBP", quality=88, **moving)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"

"""Pages of Jinja2 templates, and pictures in them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from mbt_core.analysis.page.colours import PALETTE
from mbt_core.io.files import write_atomically

FRAME_SECONDS = (0.08, 1.0)
"""Shortest and longest time that a frame of an animation is shown."""


def render(template: str, **values: Any) -> str:
    """The page of a template, e.g. ``explain/page.html``. Whatever is not marked as safe is escaped."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    root = files("mbt_core.analysis")
    environment = Environment(
        loader=FunctionLoader(lambda name: root.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "still": still, "animation": animation}
    environment.globals["PALETTE"] = PALETTE
    return environment.get_template(template).render(**values)


def write(path: Path, html: str) -> None:
    """Writes a page. Raises `MBTError` if it cannot be written."""
    # names of files may hold what is no text: shown as a replacement, as a browser would
    data = html.encode("utf-8", "replace")
    write_atomically(path, lambda file: file.write_bytes(data))


def percent(share: float) -> str:
    """0.123 as ``12.3 %``."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


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

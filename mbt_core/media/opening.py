"""Opens whatever a row of a manifest names."""

from __future__ import annotations

import os

from mbt_core.media.clip import Clip


def exists(path: str) -> bool:
    """Whether there is a file or folder at `path`."""
    return os.path.exists(path)


def open_clip(path: str, *, timeout: float = 60.0, fps: float | None = None) -> Clip:
    """The clip at `path`; see `Clip` for the arguments."""
    return Clip(path, timeout=timeout, fps=fps)

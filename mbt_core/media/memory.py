"""`MemoryClip`: what was decoded of a clip, kept in memory or in a file, and read like the clip itself.

Shapes: N frames, H height, W width, T times.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from mbt_core.media.clip import Clip
from mbt_core.media.errors import MediaError, reason
from mbt_core.media.pictures import decode_span

SMALL = 1e-6  # seconds


@dataclass
class MemoryClip:
    """The decoded content of a `Clip` between `start` and `stop` seconds, with the clip's reading methods.

    It gives what the clip would give for the same times, short side and rate, and raises `MediaError` for what it does
    not hold: other times inside the clip, another size or rate. Make one with `decode_all`.

    Attributes:
        name: the clip's name.
        start, stop: seconds of the clip that are held.
        lengths: seconds until each of what it reads ends, None for what has no duration; its keys are what it holds.
        short_side, rate: of the frames and of the waveform.
        frames_NHWC: [N, H, W, 3] uint8.
        since_N: the time from which each frame is shown.
        samples: float32, the clip's sound at `rate` from round(start rate) on, without the zeros at its end.
        values: what `array` gives.
        words: what `text` gives.
    """

    name: str
    start: float
    stop: float
    lengths: dict[str, float | None]
    short_side: int | None = None
    rate: int = 0
    frames_NHWC: np.ndarray = field(default_factory=lambda: np.zeros((0, 1, 1, 3), np.uint8))
    since_N: np.ndarray = field(default_factory=lambda: np.zeros(0))
    samples: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    values: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    words: str = ""

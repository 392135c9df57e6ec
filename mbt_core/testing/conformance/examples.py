"""Small real files that modalities read in the conformance suite: no two alike, each of another length."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from mbt_core.media.reads import Reads

COUNT = 3
SECONDS = (2.0, 1.2, 2.8)
SAMPLES = (480, 300, 700)
"""Lengths of the arrays."""
CHANNELS = 3
"""Of an array, where the configuration does not say it."""
WORDS = (12, 5, 40)
FPS, HEIGHT, WIDTH = 10, 96, 128
RATE = 16_000


def write_example(reads: str, channels: int | None, folder: Path, number: int) -> Path:
    """Writes file `number` of `COUNT` that offers what `reads` names.

    Frames and waveforms: an mp4 of a moving pattern with sound; arrays: a random walk [channels, samples] as .npy;
    texts: words as .txt.
    """
    rng = np.random.default_rng(number)
    if reads == Reads.ARRAY:
        path = folder / f"{number}.npy"
        np.save(path, _walk(rng, channels or CHANNELS, SAMPLES[number]))
    elif reads == Reads.TEXT:
        path = folder / f"{number}.txt"
        words = ("".join(rng.choice(list("abcdeé漢"), rng.integers(1, 8))) for _ in range(WORDS[number]))
        path.write_text(" ".join(words), encoding="utf-8")
    else:
        path = folder / f"{number}.mp4"
        _write_video(path, rng, SECONDS[number])
    return path


def _walk(rng: np.random.Generator, channels: int, samples: int) -> np.ndarray:
    """float32 [channels, samples]."""
    return (0.1 * rng.normal(size=(channels, samples)).cumsum(1) + rng.normal(size=(channels, 1))).astype(np.float32)


def _write_video(path: Path, rng: np.random.Generator, seconds: float) -> None:
    frames, samples = round(seconds * FPS), round(seconds * RATE)
    blocks = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    tone = 0.3 * np.sin(2 * np.pi * rng.uniform(200, 2000) * np.arange(samples) / RATE)
    sound = (tone + 0.05 * rng.normal(size=samples)).astype(np.float32)
    with av.open(str(path), "w") as out:
        video: Any = out.add_stream("libx264", FPS, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio: Any = out.add_stream("aac", RATE, layout="mono")
        for number in range(frames):
            moved = np.ascontiguousarray(np.roll(blocks, 3 * number, 1))
            out.mux(video.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        out.mux(video.encode())
        frame = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), 0
        out.mux(audio.encode(frame))
        out.mux(audio.encode())

"""Clips of which every modality tells one bit of the class, and none tells another's.

A clip lasts a second. Its class is the word of its bits, as in ``0110``:

| modality | file | bit 0 or 1 | what differs besides |
|---|---|---|---|
| rgb | picture of the .mp4 | reddish or bluish | texture, brightness |
| audio | sound of the .mp4 | one steady tone or noise | pitch, loudness |
| flow | the same picture | drifts to the left or to the right | speed, texture |
| text | column | a calm or a loud word, and a place | which of two words, the place |
| accel | .npy | a slow or a fast swing | phase, strength, noise |
| gyro | .csv | the two channels move together or against each other | frequency, phase, noise |

One frame tells no motion, and a displacement tells no colour. So whoever knows k of n bits, and no more, is right
in one of 2^(n - k) cases: each further modality doubles the accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from media_files import write_media

from small import write_csv

FPS, FRAMES, SIDE, RATE, SENSOR_RATE = 8, 8, 32, 8000, 32
WORDS = (("calm", "mute"), ("loud", "shrill"))
PLACES = ("street", "room", "garden", "river", "market")


def make_clips(folder: Path, names: Sequence[str], train: int, test: int) -> Path:
    """Writes `train` and `test` clips of each class, and their manifest. Returns its path."""
    rows = []
    for split, count in {"train": train, "test": test}.items():
        for number, bits in enumerate(list(product((0, 1), repeat=len(names))) * count):
            rng = np.random.default_rng((split == "test", number))
            name = f"{split}-{number:04d}"
            files = _write(folder / name, dict(zip(names, bits, strict=True)), rng)
            rows.append({"id": name, **files, "label": "".join(map(str, bits)), "split": split})
    return write_csv(folder / "manifest.csv", rows)


def _write(stem: Path, bits: dict[str, int], rng: np.random.Generator) -> dict[str, Any]:
    """One clip's files; returns their columns. `bits` has at least those of the .mp4."""
    frames, wave = picture(bits["rgb"], bits["flow"], rng), sound(bits["audio"], rng)
    write_media(stem.with_suffix(".mp4"), frames, wave, fps=FPS, rate=RATE)
    row: dict[str, Any] = {"path": f"{stem.name}.mp4"}
    if "text" in bits:
        row["text"] = f"{rng.choice(WORDS[bits['text']])} {rng.choice(PLACES)}"
    if "accel" in bits:
        np.save(stem.with_suffix(".npy"), swing(bits["accel"], rng))
        row["accel"] = f"{stem.name}.npy"
    if "gyro" in bits:
        np.savetxt(stem.with_suffix(".csv"), turns(bits["gyro"], rng).T, "%.4f", ",", header="pitch,roll", comments="")
        row["gyro"] = f"{stem.name}.csv"
    return row


def picture(blue: int, right: int, rng: np.random.Generator) -> np.ndarray:
    """A smooth texture that drifts around: uint8 [T, H, W, 3]."""
    grid = 2 * np.pi * np.mgrid[:SIDE, :SIDE] / SIDE
    steepness = product((-2, 0, 2), (1, 2, 3, 4))
    grey = sum(rng.normal() * np.cos(j * grid[0] + i * grid[1] + rng.uniform(0, 7)) for j, i in steepness)
    grey = rng.uniform(0.6, 1) * (grey - grey.min()) / (grey.max() - grey.min())
    speed = int(rng.integers(1, 4)) * (1 if right else -1)
    moving = np.stack([np.roll(grey, speed * t, 1) for t in range(FRAMES)])
    tint = np.array([0.6, 0.75, 1.0] if blue else [1.0, 0.75, 0.6])
    return (255 * moving[..., None] * tint).round().astype(np.uint8)


def sound(noisy: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [1, S] of a second."""
    time = np.arange(RATE) / RATE
    tone = np.sin(2 * np.pi * rng.uniform(300, 2000) * time)
    x = rng.normal(size=RATE) + (0 if noisy else 20 * tone)
    return (rng.uniform(0.03, 0.2) * x[None] / x.std()).astype(np.float32)


def swing(fast: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [3, S] of a second."""
    time = np.arange(SENSOR_RATE) / SENSOR_RATE
    hertz = rng.uniform(5, 7) if fast else rng.uniform(1.5, 2.5)
    x = rng.uniform(0.7, 1.4) * np.sin(2 * np.pi * hertz * time + rng.uniform(0, 7, (3, 1)))
    return (x + 0.2 * rng.normal(size=x.shape)).astype(np.float32)


def turns(against: int, rng: np.random.Generator) -> np.ndarray:
    """[2, S] of a second."""
    time = np.arange(SENSOR_RATE) / SENSOR_RATE
    x = np.sin(2 * np.pi * rng.uniform(1, 4) * time + rng.uniform(0, 7))
    return np.stack((x, -x if against else x)) + 0.2 * rng.normal(size=(2, SENSOR_RATE))

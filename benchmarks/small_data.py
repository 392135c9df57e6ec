"""Small data sets of several kinds, to choose the defaults of the recipe `small` by.

    python benchmarks/small_data.py OUT [NAME ...]

Each is a folder with a manifest of train and test rows, real media files, and a difficulty at which neither modality is
perfect alone:

| name | modalities | what decides the class |
|---|---|---|
| events | rgb (videos of 1.2 s), audio (1.5 s) | the direction in which a blob drifts; a kind of sound; they agree |
| gaps | rgb (stills), audio, signal | a grating; a rhythm; a shape of curve; each is missing in 30 % of the rows |
| imbalanced | rgb (stills), audio | a handwritten digit of scikit-learn's; two tones; 240 rows a class down to 12 |
| regression | rgb (stills), audio | target 1000 + 80 z, where z adds a bar's angle and a tone's pitch |
"""

from __future__ import annotations

import argparse
import csv
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

RATE = 16_000
SIDE = 64
Row = dict[str, Any]


def save_sound(path: Path, samples: np.ndarray) -> None:
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())


def save_still(path: Path, grey: np.ndarray) -> None:
    Image.fromarray((grey.clip(0, 1) * 255).astype(np.uint8)).save(path)


def save_video(path: Path, grey: np.ndarray, fps: int = 10) -> None:
    """grey: [frames, height, width] in [0, 1]."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=fps, options={"crf": "18"})
        stream.height, stream.width, stream.pix_fmt = *grey.shape[1:], "yuv420p"
        for picture in (grey.clip(0, 1) * 255).astype(np.uint8):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="gray")))
        out.mux(stream.encode(None))


def grid() -> tuple[np.ndarray, np.ndarray]:
    return np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]


def noisy(clean: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    return clean + strength * rng.standard_normal(clean.shape)


def drifting_blob(label: int, rng: np.random.Generator) -> np.ndarray:
    """A blob of random size that drifts in one of 8 directions over a noisy ground: [12, 64, 64]."""
    rows, columns = grid()
    angle, speed, size = label * np.pi / 4 + rng.normal(0, 0.2), rng.uniform(0.06, 0.12), rng.uniform(0.12, 0.25)
    start = rng.uniform(-0.4, 0.4, 2)
    frames = []
    for t in range(12):
        r, c = start + (t - 6) * speed * np.array([np.sin(angle), np.cos(angle)])
        frames.append(0.2 + 0.6 * np.exp(-((rows - r) ** 2 + (columns - c) ** 2) / size**2))
    return noisy(np.array(frames), 0.25, rng)


def sound_event(label: int, rng: np.random.Generator) -> np.ndarray:
    """One of 8 kinds of sound, somewhere in 1.5 s of noise."""
    length = rng.uniform(0.5, 0.9)
    t = np.arange(round(length * RATE)) / RATE
    low, rate = rng.uniform(300, 900), rng.uniform(0.85, 1.15)
    phase = 2 * np.pi * low * t
    kinds = [
        lambda: np.sin(phase * (1 + 0.8 * t / length)),  # rising
        lambda: np.sin(phase * (1.8 - 0.8 * t / length)),  # falling
        lambda: np.sin(phase + 3 * np.sin(2 * np.pi * 6 * rate * t)),  # vibrato
        lambda: np.sin(phase) * (np.sin(2 * np.pi * 5 * rate * t) > 0),  # slow pulses
        lambda: np.sin(phase) * (np.sin(2 * np.pi * 14 * rate * t) > 0),  # fast pulses
        lambda: sum(np.sin(k * phase) / k for k in range(1, 6)),  # a buzz
        lambda: rng.standard_normal(len(t)) * (np.sin(2 * np.pi * 8 * rate * t) > 0),  # a rattle
        lambda: np.sin(phase) * np.exp(-6 * t / length),  # a bell
    ]
    event = kinds[label]() * np.hanning(len(t)) ** 0.3 * rng.uniform(0.08, 0.25)
    sound = 0.08 * rng.standard_normal(round(1.5 * RATE))
    first = rng.integers(0, len(sound) - len(event))
    sound[first : first + len(event)] += event
    return sound


def grating(label: int, rng: np.random.Generator) -> np.ndarray:
    """One of 6 gratings: 3 orientations, 2 frequencies."""
    rows, columns = grid()
    angle, frequency = label % 3 * np.pi / 3 + rng.normal(0, 0.15), (9, 14)[label // 3] * rng.uniform(0.9, 1.1)
    wave_ = np.sin(frequency * (rows * np.sin(angle) + columns * np.cos(angle)) + rng.uniform(0, 6.3))
    return noisy(0.5 + 0.15 * wave_, 0.3, rng)


def rhythm(label: int, rng: np.random.Generator) -> np.ndarray:
    """One of 6 rhythms of beats in a second of noise."""
    beats = [(0, 4), (0, 2, 4, 6), (0, 3, 6), (0, 1, 4, 5), (0, 2, 3, 6), (0, 1, 2, 3)][label]
    sound, step = 0.05 * rng.standard_normal(RATE), 0.12 * rng.uniform(0.92, 1.08)
    tone = np.sin(2 * np.pi * rng.uniform(500, 1500) * np.arange(800) / RATE) * np.hanning(800)
    for beat in beats:
        first = round((beat * step + 0.02) * RATE)
        sound[first : first + 800] += rng.uniform(0.1, 0.3) * tone[: len(sound) - first]
    return sound


def curve(label: int, rng: np.random.Generator) -> np.ndarray:
    """One of 6 shapes over three channels of 100 samples."""
    t = np.arange(100) / 100 * rng.uniform(3, 4) + rng.uniform(0, 1)
    base = [np.sin, lambda x: np.sign(np.sin(x)), lambda x: (x / 6.3 % 1) * 2 - 1][label % 3](2 * np.pi * t)
    lag = (0.0, 0.25)[label // 3]
    other = np.roll(base, round(25 * lag))
    return noisy(np.stack([base, other, 0.3 * base * other]), 0.9, rng).astype(np.float32)


def tones(label: int, rng: np.random.Generator) -> np.ndarray:
    """Two of five tones at a time: ten pairs, in 0.5 s of noise."""
    pairs = [(i, j) for i in range(5) for j in range(i)]
    t = np.arange(RATE // 2) / RATE
    pitch = [400 * 1.4**k * rng.uniform(0.97, 1.03) for k in pairs[label]]
    return noisy(sum(rng.uniform(0.03, 0.08) * np.sin(2 * np.pi * p * t) for p in pitch), 0.2, rng)


def events(folder: Path, rng: np.random.Generator) -> list[Row]:
    rows = []
    for i in range(1000):
        label = i % 8
        save_video(folder / f"{i}.mp4", drifting_blob(label, rng))
        save_sound(folder / f"{i}.wav", sound_event(label, rng))
        rows.append({"rgb": f"{i}.mp4", "audio": f"{i}.wav", "label": f"c{label}", "split": split(i, 600)})
    return rows


def gaps(folder: Path, rng: np.random.Generator) -> list[Row]:
    rows = []
    for i in range(1000):
        label, missing = i % 6, rng.random(3) < 0.3
        missing[rng.integers(3)] = False
        save_still(folder / f"{i}.png", grating(label, rng))
        save_sound(folder / f"{i}.wav", rhythm(label, rng))
        np.save(folder / f"{i}.npy", curve(label, rng))
        names = zip(("rgb", "audio", "signal"), (f"{i}.png", f"{i}.wav", f"{i}.npy"), missing, strict=True)
        rows.append(
            {name: "" if gone else file for name, file, gone in names} | {"label": f"c{label}", "split": split(i, 600)}
        )
    return rows


def imbalanced(folder: Path, rng: np.random.Generator) -> list[Row]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows, number = [], 0
    for label in range(10):
        pictures = digits.images[digits.target == label] / 16
        pictures = pictures[rng.permutation(len(pictures))]
        trained = round(240 * (12 / 240) ** (label / 9))
        for i in range(trained + 30):
            # the pictures of the test rows are never in train
            picture = pictures[30 + i % (len(pictures) - 30)] if i < trained else pictures[i - trained]
            save_still(folder / f"{number}.png", noisy(np.kron(picture, np.ones((8, 8))) * 0.6 + 0.2, 0.35, rng))
            save_sound(folder / f"{number}.wav", tones(label, rng))
            rows.append({"rgb": f"{number}.png", "audio": f"{number}.wav", "label": f"c{label}",
                         "split": "train" if i < trained else "test"})  # fmt: skip
            number += 1
    return rows


def regression(folder: Path, rng: np.random.Generator) -> list[Row]:
    rows, columns = grid()
    made = []
    for i in range(1000):
        a, b = rng.uniform(-1, 1, 2)
        distance = rows * np.cos(a) - columns * np.sin(a)
        save_still(folder / f"{i}.png", noisy(0.2 + 0.6 * (np.abs(distance) < 0.15), 0.2, rng))
        t = np.arange(RATE // 2) / RATE
        save_sound(folder / f"{i}.wav", noisy(0.1 * np.sin(2 * np.pi * 800 * 2.0**b * t), 0.1, rng))
        made.append(
            {
                "rgb": f"{i}.png",
                "audio": f"{i}.wav",
                "label": f"{1000 + 80 * (a + b) * 1.22:.2f}",
                "split": split(i, 600),
            }
        )
    return made


def split(number: int, trained: int) -> str:
    return "train" if number < trained else "test"


SETS: dict[str, Callable[[Path, np.random.Generator], list[Row]]] = {
    "events": events, "gaps": gaps, "imbalanced": imbalanced, "regression": regression,
}  # fmt: skip


def make(name: str, out: Path) -> Path:
    """The manifest of a set, made if it is not there."""
    folder = out / name
    manifest = folder / "manifest.csv"
    if not manifest.exists():
        folder.mkdir(parents=True, exist_ok=True)
        rows = SETS[name](folder, np.random.default_rng(0))
        part = folder / "part.csv"
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["id", *rows[0]])
            writer.writeheader()
            writer.writerows({"id": str(number), **row} for number, row in enumerate(rows))
        part.rename(manifest)
    return manifest


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", default=[])
    args = parser.parse_args()
    for name in args.names or SETS:
        print(make(name, args.out))

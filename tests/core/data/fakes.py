"""Small anonymous modalities, one for everything that can be read, and a data set of real files for them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import media_files
import numpy as np
import torch
from torch import Tensor, nn

from mbt_core import Modality, ModalityCard, Tokenizer, Window
from mbt_core.config import DataConfig
from mbt_core.config.schema import Auto, ModalityConfig
from mbt_core.data.manifest import Manifest

CARD = ModalityCard("a fake", "", "", "none")


class FakeConfig(ModalityConfig):
    kind: str = "fake"
    seconds: float | None = None
    side: int | None = 16
    level: float | Auto = 0.0


class Fake(Modality):
    """A sample says which window was read and what the generator drew, beside a little of the content."""

    kind, card = "fake", CARD

    def __init__(self, name: str, **settings: Any) -> None:
        super().__init__(name, FakeConfig(**settings))

    def content(self, clip: Any, window: Window) -> Tensor:
        raise NotImplementedError

    def read(self, clip: Any, window: Window, rng: np.random.Generator | None) -> dict[str, Tensor]:
        drawn = torch.zeros(()) if rng is None else torch.tensor(rng.random())
        return {"x": self.content(clip, window), "window": torch.tensor(window), "drawn": drawn.double()}

    def blank(self) -> dict[str, Tensor]:
        return {"x": self.empty, "window": torch.zeros(2), "drawn": torch.zeros((), dtype=torch.float64)}

    def preprocessor(self) -> nn.Module:
        return TakeX()

    def tokenizer(self, dim: int) -> Tokenizer:
        raise NotImplementedError


class TakeX(nn.Module):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["x"].float()


class Pictures(Fake):
    """Two frames of a window."""

    reads = "frames"
    empty = torch.zeros(2, 12, 12, 3, dtype=torch.uint8)

    def decode_settings(self) -> dict[str, Any]:
        return {"short_side": self.config.side}

    def content(self, clip: Any, window: Window) -> Tensor:
        frames = clip.frames([window.start, (window.start + window.stop) / 2], short_side=self.config.side)
        return torch.from_numpy(frames[:, :12, :12].copy())


class Sound(Fake):
    """The first 1000 samples of a window."""

    reads = "waveform"
    empty = torch.zeros(1000)

    def decode_settings(self) -> dict[str, Any]:
        return {"rate": 8000}

    def content(self, clip: Any, window: Window) -> Tensor:
        return torch.from_numpy(clip.waveform(window.start, window.start + 1000 / 8000, 8000))


class Series(Fake):
    """The first four values."""

    reads = "array"
    empty = torch.zeros(4)

    def content(self, clip: Any, window: Window) -> Tensor:
        return torch.from_numpy(clip.array()[0, :4].copy())


class Words(Fake):
    """Character codes."""

    reads = "text"
    empty = torch.zeros(8)

    def content(self, clip: Any, window: Window) -> Tensor:
        codes = [ord(character) for character in clip.text()[:8]]
        return torch.tensor(codes + [0] * (8 - len(codes)), dtype=torch.float32)


def four(**seconds: float) -> dict[str, Modality]:
    """One of each: ``p`` pictures, ``s`` sound, ``a`` array, ``w`` words."""
    kinds = {"p": Pictures, "s": Sound, "a": Series, "w": Words}
    return {name: kind(name, seconds=seconds.get(name)) for name, kind in kinds.items()}


def reads_of(modalities: Mapping[str, Modality]) -> dict[str, str]:
    return {name: modality.reads for name, modality in modalities.items()}


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None) -> Path:
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns or rows[0]), restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_movie(path: Path, seconds: float = 1.0, sound: bool = True) -> Path:
    """25 frames a second, 64 x 48, frame i of one grey (`media_files.grey`), with a tone."""
    tone = media_files.sine(seconds, 16000) if sound else None
    return media_files.write_media(path, media_files.counting(round(25 * seconds)), tone)


def write_data(folder: Path, count: int = 6) -> Path:
    """`count` rows with a movie, an array and a text each; row 1 is silent; row 2's array cell is empty."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        write_movie(folder / f"{i}.mp4", 0.6 + 0.2 * (i % 3), sound=i != 1)
        np.save(folder / f"{i}.npy", np.arange(5, dtype=np.float32)[None] + i)
        rows.append(
            {
                "id": f"row{i}",
                "path": f"{i}.mp4",
                "a": "" if i == 2 else f"{i}.npy",
                "w": f"word {i}",
                "label": "odd" if i % 2 else "even",
            }
        )
    return write_csv(folder / "manifest.csv", rows)


def read(path: Path, modalities: Mapping[str, Modality], **config: Any) -> Manifest:
    """As `Manifest.read`; without splits, all rows are train."""
    return Manifest.read(path, reads_of(modalities), DataConfig(**{"test_fraction": 0.0, **config}))

"""The goldens of the reference that come with the tests, and how their names and layouts become ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mbt_core.pretrained import load_scenic_params

DEV = Path(__file__).parents[1] / "data" / "goldens" / "dev"
OURS = {"rgb": "rgb", "spectrogram": "audio"}
CONFIGS = ("a", "b", "b_vanilla", "c", "d", "f", "h", "i")


class Golden(NamedTuple):
    """One configuration: arrays, the reference's configuration and input shapes, its parameters."""

    arrays: dict[str, np.ndarray]
    config: dict[str, Any]
    shapes: dict[str, list[int]]

    @property
    def params(self) -> dict[str, np.ndarray]:
        return {key.removeprefix("params/"): v for key, v in self.arrays.items() if key.startswith("params/")}

    @property
    def order(self) -> list[str]:
        return self.config["modality_fusion"]

    def model(self):
        return load_scenic_params(self.params, self.config, self.shapes)

    def inputs(self) -> dict[str, Tensor]:
        return to_inputs({name: self.arrays[name] for name in self.shapes})


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays}


def golden(name: str) -> Golden:
    content = json.loads((DEV / f"{name}.json").read_text())
    return Golden(arrays_of(DEV / f"{name}.npz"), content["config"], content["inputs"])


def to_inputs(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """The reference's inputs, channels last, as ours."""
    return {OURS[name]: torch.from_numpy(np.moveaxis(x, -1, 1).copy()) for name, x in arrays.items()}


def concatenated(tokens: dict[str, Tensor], order: list[str]) -> np.ndarray:
    return torch.cat([tokens[OURS[name]] for name in order], 1).detach().numpy()


def assert_near(ours: Tensor | np.ndarray, theirs: np.ndarray, tolerance: float = 1e-5) -> None:
    ours = ours.detach().numpy() if isinstance(ours, Tensor) else ours
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


def weighted_mean(loss_B: Tensor, weight_B: Tensor) -> Tensor:
    """As the trainer weighs the examples of a batch."""
    return (loss_B * weight_B).sum() / (weight_B.sum() + 1e-8)

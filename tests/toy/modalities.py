"""The anonymous modalities: a series in 1-D patches, a picture in 2-D patches, a padded sequence of any length.

Shapes: B batch, C channels, S samples, N elements, F features, D width.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mbt_core import Clip, Modality, ModalityCard, Tokenizer, Tokens, Window, make_tokenizer


class Alpha(Modality):
    kind = "alpha"
    reads = "array"
    card = ModalityCard("a series", "", "[B, C, S]", "none")

    @classmethod
    def fit(cls, config: Any, clips: Any) -> Any:
        if config.channels != "auto":
            return config
        return config.model_copy(update={"channels": next(iter(clips))[0].array().shape[0]})

    def read(self, clip: Clip, window: Window, rng: np.random.Generator | None) -> Tensor:
        values = torch.zeros(self.config.channels, self.config.samples)
        array = torch.from_numpy(clip.array().copy())[:, : self.config.samples]
        values[:, : array.shape[1]] = array
        return values if rng is None else values + float(rng.normal())

    def blank(self) -> Tensor:
        return torch.zeros(self.config.channels, self.config.samples)

    def preprocessor(self) -> nn.Module:
        return nn.Identity()

    def tokenizer(self, dim: int) -> Tokenizer:
        config = self.config
        return make_tokenizer(config.stem, config.channels, (config.samples,), (config.patch,), dim)


class Beta(Modality):
    kind = "beta"
    reads = "array"
    card = ModalityCard("a picture", "", "[B, 1, rows, columns]", "none")

    def read(self, clip: Clip, window: Window, rng: np.random.Generator | None) -> Tensor:
        rows, columns = self.config.size
        return torch.from_numpy(clip.array()[:rows, :columns].copy())[None]

    def blank(self) -> Tensor:
        return torch.zeros(1, *self.config.size)

    def preprocessor(self) -> nn.Module:
        return nn.Identity()

    def tokenizer(self, dim: int) -> Tokenizer:
        return make_tokenizer(self.config.stem, 1, self.config.size, self.config.patch, dim)


class Gamma(Modality):
    """`read` gives [N, F]; a batch is {"x": [B, N, F], "mask": [B, N]}."""

    kind = "gamma"
    reads = "array"
    card = ModalityCard("a sequence", "", "[B, N, F] + mask", "none")

    def read(self, clip: Clip, window: Window, rng: np.random.Generator | None) -> Tensor:
        return torch.from_numpy(clip.array()[: self.config.features, : self.config.longest].T.copy())

    def blank(self) -> Tensor:
        return torch.zeros(0, self.config.features)

    def collate(self, samples: Sequence[Any]) -> dict[str, Tensor]:
        longest = max(1, *(len(s) for s in samples))
        x = torch.stack([nn.functional.pad(s, (0, 0, 0, longest - len(s))) for s in samples])
        lengths = torch.tensor([len(s) for s in samples])
        return {"x": x, "mask": torch.arange(longest) < lengths[:, None]}

    def preprocessor(self) -> nn.Module:
        return Unpack()

    def tokenizer(self, dim: int) -> Tokenizer:
        return Elements(self.config.features, self.config.longest, dim)


class Unpack(nn.Module):
    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return batch["x"], batch["mask"]


class Elements(Tokenizer):
    """[B, N, F], mask [B, N] -> Tokens."""

    def __init__(self, features: int, longest: int, dim: int) -> None:
        super().__init__()
        self.grid, self.dim = (longest,), dim
        self.embed = nn.Linear(features, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tokens:
        return Tokens(self.embed(x), mask)

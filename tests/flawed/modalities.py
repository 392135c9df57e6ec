"""A sound modality of series in patches, a sound one of sequences of any length, and flawed ones.

Shapes: B batch, C channels, S samples, N elements.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mbt_core import Clip, DataError, Modality, ModalityCard, PatchTokenizer, Picture, Tokenizer, Tokens, Window


class Sound(Modality):
    kind = "sound"
    reads = "array"
    card = ModalityCard("a series", "metres", "[B, C, S]", "none")

    def __init_subclass__(cls) -> None:
        cls.kind = cls.__name__.lower()

    @classmethod
    def fit(cls, config: Any, clips: Any) -> Any:
        arrays = []
        for clip, _ in clips:
            with suppress(DataError):
                arrays.append(clip.array())
        return config.model_copy(update={"channels": len(arrays[0])})

    def read(self, clip: Clip, window: Window, rng: np.random.Generator | None) -> Any:
        x = torch.zeros(self.config.channels, self.config.samples)
        array = torch.from_numpy(clip.array()[:, : self.config.samples].copy())
        x[:, : array.shape[1]] = array
        return x if rng is None else x + float(rng.normal())

    def blank(self) -> Any:
        return torch.zeros(self.config.channels, self.config.samples)

    def preprocessor(self) -> nn.Module:
        return nn.Identity()

    def tokenizer(self, dim: int) -> Tokenizer:
        return PatchTokenizer(self.config.channels, (self.config.samples,), (self.config.patch,), dim)

    def draw(self, sample: Any, relevance: np.ndarray | None) -> Picture:
        return Picture(stills=[np.zeros((4, 4, 3), np.uint8)])


class Elements(Tokenizer):
    """[B, N, 1] -> Tokens."""

    def __init__(self, longest: int, dim: int) -> None:
        super().__init__()
        self.grid, self.dim = (longest,), dim
        self.embed = nn.Linear(1, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tokens:
        return Tokens(self.embed(x), mask)


class Unpack(nn.Module):
    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return batch["x"], batch["mask"]


class SoundSequence(Sound):
    """A sample is [N]: every tenth value of the first channel."""

    def read(self, clip: Clip, window: Window, rng: np.random.Generator | None) -> Tensor:
        return torch.from_numpy(clip.array()[0, ::10].copy())

    def blank(self) -> Tensor:
        return torch.zeros(1)

    def collate(self, samples: Sequence[Any]) -> dict[str, Tensor]:
        lengths = torch.tensor([len(sample) for sample in samples])
        x = nn.utils.rnn.pad_sequence(list(samples), batch_first=True)
        return {"x": x[..., None], "mask": torch.arange(x.shape[1]) < lengths[:, None]}

    def preprocessor(self) -> nn.Module:
        return Unpack()

    def tokenizer(self, dim: int) -> Tokenizer:
        return Elements(100, dim)


class WrongKind(Sound):
    pass


WrongKind.kind = "soundly"


class HeavyConfig(Sound):
    pass


class NoHelp(Sound):
    pass


class EmptyCard(Sound):
    card = ModalityCard("a series", "", "[B, C, S]", "")


class ForgetfulFit(Sound):
    @classmethod
    def fit(cls, config: Any, clips: Any) -> Any:
        return config


class FragileFit(Sound):
    @classmethod
    def fit(cls, config: Any, clips: Any) -> Any:
        return config.model_copy(update={"channels": max(len(clip.array()) for clip, _ in clips)})


class TrainingShape(Sound):
    def read(self, clip: Clip, window: Window, rng: np.random.Generator | None) -> Tensor:
        x = super().read(clip, window, rng)
        return x if rng is None else x[:, : rng.integers(100, 300)]


class BlankType(Sound):
    def blank(self) -> Tensor:
        return super().blank().short()


class RaggedBatch(Sound):
    def collate(self, samples: Sequence[Any]) -> Tensor:
        return torch.cat(list(samples))


class GlobalRandom(Sound):
    def read(self, clip: Clip, window: Window, rng: np.random.Generator | None) -> Tensor:
        x = super().read(clip, window, None)
        return x if rng is None else x + torch.randn(())


class GlobalCoin(Sound):
    def read(self, clip: Clip, window: Window, rng: np.random.Generator | None) -> Tensor:
        x = super().read(clip, window, None)
        return x if rng is None or np.random.random() < 0.5 else x + 1


class ChangesClip(Sound):
    def read(self, clip: Clip, window: Window, rng: np.random.Generator | None) -> Tensor:
        x = super().read(clip, window, rng)
        if rng is not None:
            clip.array()[:] += 1
        return x


class NotPicklable(Sound):
    def __init__(self, name: str, config: Any) -> None:
        super().__init__(name, config)
        self.scale = lambda x: x


class RandomEvaluation(Sound):
    def read(self, clip: Clip, window: Window, rng: np.random.Generator | None) -> Tensor:
        return super().read(clip, window, rng or np.random.default_rng())


class Noise(nn.Module):
    def forward(self, batch: Tensor) -> Tensor:
        return batch + torch.randn_like(batch)


class RandomPreprocessor(Sound):
    def preprocessor(self) -> nn.Module:
        return Noise()


class TrainedPreprocessor(Sound):
    def preprocessor(self) -> nn.Module:
        return nn.Linear(self.config.samples, self.config.samples)


class Standardise(nn.Module):
    def forward(self, batch: Tensor) -> Tensor:
        return (batch - batch.mean()) / batch.std()


class BatchStatistics(Sound):
    def preprocessor(self) -> nn.Module:
        return Standardise()


class WithoutFirst(PatchTokenizer):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tokens:
        return Tokens(super().forward(x).x[:, 1:])


class WrongGrid(Sound):
    def tokenizer(self, dim: int) -> Tokenizer:
        return WithoutFirst(self.config.channels, (self.config.samples,), (self.config.patch,), dim)


class Forgetful(Elements):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tokens:
        return Tokens(self.embed(x), torch.ones(x.shape[:2], dtype=torch.bool))


class MaskForgotten(SoundSequence):
    def tokenizer(self, dim: int) -> Tokenizer:
        return Forgetful(100, dim)


class MaskInverted(SoundSequence):
    def collate(self, samples: Sequence[Any]) -> dict[str, Tensor]:
        batch = super().collate(samples)
        return batch | {"mask": ~batch["mask"]}


class Detached(PatchTokenizer):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tokens:
        return Tokens(super().forward(x).x.detach() + self.bias)


class NoGradient(Sound):
    def tokenizer(self, dim: int) -> Tokenizer:
        return Detached(self.config.channels, (self.config.samples,), (self.config.patch,), dim)


class WrongAdapt(Sound):
    def adapt(self, vit: Any) -> dict[str, Tensor]:
        return {"weight": vit.kernel, "bias": vit.bias}


class FloatPicture(Sound):
    def draw(self, sample: Any, relevance: np.ndarray | None) -> Picture:
        return Picture(stills=[sample.numpy()])


class NothingToSee(Sound):
    draw = Modality.draw


class RaisesInRead(Sound):
    def read(self, clip: Clip, window: Window, rng: np.random.Generator | None) -> Tensor:
        raise RuntimeError("no such sensor")

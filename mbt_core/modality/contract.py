"""The contract a modality plugin implements.

Way of the data: manifest row -> `Clip` -> `Modality.read` (worker process; compact uint8 / int16 / float16) ->
`collate` -> device -> `preprocessor` (batched) -> `tokenizer` -> `Tokens`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from mbt_core.config.schema import ModalityConfig, PictureConfig, validate
from mbt_core.modality.patch_tokenizer import PatchTokenizer
from mbt_core.modality.patch_weights import VitWeights, adapt_kernel
from mbt_core.modality.tokens import Tokenizer

if TYPE_CHECKING:
    from mbt_core.media import Clip

Sample = Tensor | dict[str, Tensor]
Batch = Tensor | dict[str, Tensor]


class Window(NamedTuple):
    """A span of a clip in seconds from the clip's start."""

    start: float
    stop: float


@dataclass(frozen=True)
class ModalityCard:
    """The facts a user wants to know of a modality's input.

    Args:
        title: one line.
        units: of the values that `read` returns.
        shape: at the tokenizer, e.g. ``[B, 3, T, H, W]``.
        normalisation: what the preprocessor does to the values.
        citation: where this input comes from.
        foreign_keys: names of this modality in other projects' checkpoints: project -> name. For ``scenic``,
            ``scenic_suffix`` is what its parameters' names end in, if it is not ``_`` and the name.
    """

    title: str
    units: str
    shape: str
    normalisation: str
    citation: str = ""
    foreign_keys: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """An input with relevance drawn over it.

    Args:
        stills: uint8 [H, W, 3] each.
        frames: an optional animation, uint8 [H, W, 3] each.
        html: optional markup for inputs that are no picture (text), already escaped.
    """

    stills: Sequence[np.ndarray] = ()
    frames: Sequence[np.ndarray] = ()
    html: str | None = None


class Modality(ABC):
    """One named instance of a kind of modality: reads, collates, preprocesses and tokenises its input.

    Args:
        name: ``[a-z][a-z0-9_]*``; the key in batches, metrics and ``--set`` paths.
        config: the kind's configuration, without ``"auto"`` left in what the methods used need.
    """

    kind: ClassVar[str]
    reads: str
    """What it reads of a clip: "frames" | "waveform" | "array" | "text". An instance may set its own."""
    card: ClassVar[ModalityCard]

    def __init__(self, name: str, config: Any) -> None:
        self.name, self.config = name, config

    @classmethod
    def fit(cls, config: Any, clips: Iterable[tuple[Clip, Window | None]]) -> Any:
        """Fills fields left at ``"auto"`` from a sample of the training data; returns a new configuration.

        Args:
            config: the configuration as given.
            clips: opened clips that offer what the kind reads, each with its row's start and end if it has any. Those
                of which reading raises `DataError` are to be left out; raise it only if none is left.
        """
        return config

    @classmethod
    def fit_weights(cls, config: Any, weights: VitWeights) -> Any:
        """Fills fields left at ``"auto"`` that follow from the weights a stream starts from; `fit` fills the rest.

        Of a run's stream of this kind these are the fields of `ModalityConfig.of_weights`, statistics of the inputs
        only if all other settings are the same; of an image ViT a picture's patch.
        """
        filled: dict[str, Any] = {}
        if weights.settings is not None and weights.kind == config.kind:
            own = {name: getattr(weights.settings, name) for name in config.of_weights if name in config.auto_fields()}
            filled = {name: value for name, value in own.items() if value != "auto"}
            if not _alike(config, weights.settings):  # statistics are those of inputs made in the same way
                filled = {name: value for name, value in filled.items() if name not in config.of_preprocessor}
        elif isinstance(config, PictureConfig) and config.patch == "auto" and weights.patch is not None:
            filled = {"patch": weights.patch}
        return validate(type(config), config.model_dump() | filled) if filled else config

    @classmethod
    def example(cls, config: Any, path: Path, rng: np.random.Generator) -> Path | None:
        """Writes a small real file of what this kind reads, for the conformance suite (`mbt_core.testing.conformance`).

        Args:
            config: the configuration as given, possibly with ``"auto"``.
            path: where to write it, without a suffix.
            rng: draws its content; no two examples may be alike.

        Returns:
            The path with its suffix; None: the suite writes a usual file of what `reads` says.
        """
        return None

    @classmethod
    def from_scenic(cls, config: Mapping[str, Any], input_shape: Sequence[int] | None) -> dict[str, Any] | None:
        """Settings that give the input of a model of the reference implementation (Scenic).

        Args:
            config: the reference's model configuration (``patches``, ``temporal_encoding_config`` ...).
            input_shape: of the reference's input, batch first and channels last; None: that of the released models.

        Returns:
            Settings of this kind; None: the reference has no such modality.
        """
        return None

    @property
    def seconds(self) -> float | None:
        """Length of the window to read; None: the whole clip."""
        value = getattr(self.config, "seconds", None)
        return float(value) if isinstance(value, (int, float)) else None

    def duration(self, clip: Clip) -> float | None:
        """Seconds of the clip in which windows are placed; None: it has no length in time, and is read as a whole.

        To be overridden where the file does not say it and the configuration does (an array's rate).
        """
        return clip.duration_of(self.reads)

    def channels_of(self, names: Sequence[str], count: int) -> Sequence[int] | None:
        """Which channels of an array it reads, for reports on the data; None: all.

        To be overridden where the configuration chooses some.

        Args:
            names: of the channels of a .csv or .parquet file; empty of other arrays.
            count: number of the channels.

        Raises:
            DataError: for one that there is not.
        """
        return None

    def without_augmentation(self) -> Self:
        """The same modality with samples that hold nothing drawn: what an exported model takes.

        To be overridden where a sample carries drawn augmentation that the configuration can turn off.
        """
        return self

    def decode_settings(self) -> dict[str, Any]:
        """How a cache may keep this modality's clips decoded, so that `read` gets from them what the file would give.

        Keys: ``short_side``, the length in pixels to which frames' shorter side is scaled (None: as in the file; not
        given: frames are not kept); ``rate``, samples a second of the waveform (not given: sound is not kept).
        """
        return {}

    @abstractmethod
    def read(self, clip: Clip, window: Window, rng: np.random.Generator | None) -> Sample:
        """Reads one sample in a worker process.

        Args:
            clip: offers what `reads` says.
            window: the span to read; it may pass the end of the clip.
            rng: draws the augmentation, which is returned with the sample for the preprocessor to apply;
                None: evaluation, deterministic, with the same keys and the identity as augmentation.

        Returns:
            A tensor or a dictionary of tensors; their shapes depend on the configuration only, unless `collate` pads.
        """

    @abstractmethod
    def blank(self) -> Sample:
        """The stand-in for an absent sample, with the keys, shapes and types of `read`'s; its values never matter."""

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Stacks samples. A variable-length kind pads here and returns a mask among the tensors."""
        first = samples[0]
        if isinstance(first, dict):
            return {key: torch.stack([s[key] for s in samples if isinstance(s, dict)]) for key in first}
        return torch.stack([s for s in samples if isinstance(s, Tensor)])

    @abstractmethod
    def preprocessor(self) -> nn.Module:
        """A module on the device: Batch -> the tokenizer's float input, or (input, mask)."""

    @abstractmethod
    def tokenizer(self, dim: int) -> Tokenizer:
        """A fresh tokenizer of width `dim`."""

    def adapt(self, vit: VitWeights) -> dict[str, Tensor]:
        """A ViT's patch kernel and bias made to fit this tokenizer: its new state, by key.

        The default serves any `PatchTokenizer`: the kernel is resized, inflated and folded
        (`mbt_core.modality.patch_weights`). Another kind of tokenizer stays fresh; a
        `ConvTokenizer` is refused before (`mbt_core.pretrained`).
        """
        with torch.device("meta"):
            tokenizer = self.tokenizer(vit.dim)
        if not isinstance(tokenizer, PatchTokenizer):
            return {}
        return adapt_kernel(vit, tokenizer.channels, tokenizer.patch, self.image_statistics)

    @property
    def image_statistics(self) -> tuple[Sequence[float], Sequence[float]] | None:
        """(mean, std) per channel by which pixels in [0, 1] were normalised, if the input is pixels; else None.

        With it `adapt` folds the source's own normalisation into the kernel exactly.
        """
        return None

    def draw(self, sample: Sample, relevance: np.ndarray | None) -> Picture:
        """The input (as `read` returned it) with relevance [*grid], non-negative, over it; None: the input alone."""
        return Picture()


def _alike(config: ModalityConfig, other: ModalityConfig) -> bool:
    """Whether two configurations of a kind agree in all that is set, but for statistics of their inputs."""
    names = type(config).model_fields.keys() - set(config.of_preprocessor)
    return all(getattr(config, name) in ("auto", getattr(other, name)) for name in names)

"""The modality ``rgb``.

Shapes: B batch, T frames, H, W height and width of the input, h, w of what is read (larger with scale jitter).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mbt_core import Clip, Modality, ModalityCard, Picture, Tokenizer, Window, make_tokenizer
from mbt_core.config.schema import validate
from mbt_core.errors import DataError
from mbt_core.media import MediaError
from mbt_core.modality.drawing import overlay, spread
from mbt_core.modality.patch_weights import VitWeights, adapt_kernel
from mbt_rgb.config import RgbConfig
from mbt_rgb.tokenizer import SampledFramesTokenizer, sampled_frames
from mbt_rgb.transforms import drop_colours, jitter_colours, resample

AUTO_FRAMES = 8
AUTO_SECONDS = 8.0
FIT_CLIPS = 256
STRIP = 8
"""Most frames in the strip that `draw` makes."""

UNCHANGED = (0.0, 1.0, 1.0, 0.0)
"""Brightness, saturation, contrast and hue that change nothing."""


class Rgb(Modality):
    """Frames of a video, or a still: [B, 3, T, H, W] at the tokenizer.

    A sample is a dictionary of

    - ``frames``: uint8 [T, h, w, 3], already cropped and flipped;
    - ``box`` (with scale jitter): float [4], the part of the frames to be scaled to [H, W], as top, left, height and
      width in pixels;
    - ``colour`` (with colour jitter): float [4], brightness, saturation, contrast and hue;
    - ``grey`` (with colour drop): bool.

    All frames of a sample are changed alike.
    """

    kind = "rgb"
    reads = "frames"
    card = ModalityCard(
        title="Frames of a video, or a still",
        units="uint8 RGB, 0 to 255",
        shape="[B, 3, T, H, W]",
        normalisation="(value / 255 - mean) / std, by default to [-1, 1]",
        citation="Nagrani et al., Attention Bottlenecks for Multimodal Fusion, arXiv 2107.00135",
        foreign_keys={"scenic": "rgb", "scenic_suffix": ""},
    )
    config: RgbConfig

    @classmethod
    def fit(cls, config: RgbConfig, clips: Iterable[tuple[Clip, Window | None]]) -> RgbConfig:
        """Fills `frames` (1 if all are stills, with `tubelet` 1; else 8), `seconds` (0.9 quantile, at most 8), `patch`
        (16) and `size` (as large as the pictures).

        Raises:
            DataError: if there is something to fill and no readable clip.
        """
        if not config.auto_fields():
            return config
        durations: list[float | None] = []
        sizes: list[tuple[int, int] | None] = []
        failed: MediaError | None = None
        for clip, window in islice(clips, FIT_CLIPS):
            try:
                duration = clip.duration_of("frames")  # None for a still
                size = clip.size if config.size == "auto" else None
            except MediaError as error:
                failed = failed or error
                continue  # counted where the data is checked
            durations.append(window.stop - window.start if window and duration is not None else duration)
            sizes.append(size)
        if not durations:
            why = f"; the first: {failed}" if failed else ""
            raise DataError(f"{config.kind}: no readable clip to fill {', '.join(config.auto_fields())} from{why}")
        known = [d for d in durations if d is not None]
        filled: dict[str, Any] = {}
        if config.frames == "auto":
            filled |= {"frames": AUTO_FRAMES} if known else {"frames": 1, "tubelet": 1}
        if config.seconds == "auto":
            longest = float(np.quantile(known or [AUTO_SECONDS], 0.9, method="inverted_cdf"))
            filled["seconds"] = round(min(max(longest, 0.04), AUTO_SECONDS), 2)
        config = config.model_copy(update=filled)
        filled |= config.fitted(sizes, config.length // config.tubelet)
        return validate(type(config), config.model_dump() | filled)

    @classmethod
    def from_scenic(cls, config: Mapping[str, Any], input_shape: Sequence[int] | None) -> dict[str, Any]:
        """See `Modality.from_scenic`; values in [-1, 1], every second frame of 25 a second."""
        frames, height, width = (32, 224, 224) if input_shape is None else input_shape[1:4]
        patch_height, patch_width, *tubelet = config["patches"]["size"]
        encoding = config["temporal_encoding_config"]
        sampled = encoding["n_sampled_frames"] if encoding["method"] == "temporal_sampling" else None
        averaged = encoding.get("kernel_init_method") == "average_frame_initializer"
        return {
            "frames": frames,
            "stride": 2,
            "size": height if height == width else [height, width],
            "patch": patch_height if patch_height == patch_width else [patch_height, patch_width],
            "tubelet": tubelet[0] if sampled is None else 1,
            "sample_frames": sampled,
            "mean": 0.5,
            "std": 0.5,
            "inflate": "average" if averaged else "central",
        }

    @property
    def seconds(self) -> float | None:
        """Length of the window to read; None: the whole clip."""
        return self.config.span

    def without_augmentation(self) -> Rgb:
        """Samples are frames of the input's size alone; see `Modality.without_augmentation`."""
        off = {"scale_jitter": None, "colour_jitter": 0.0, "colour_drop": 0.0}
        return Rgb(self.name, self.config.model_copy(update=off))

    def decode_settings(self) -> dict[str, Any]:
        """How clips are decoded: what a cache of decoded clips has to know."""
        return {"short_side": self.config.scaled_side}

    def times(self, window: Window) -> np.ndarray:
        """Seconds at which frames are taken, [T]: the middle of each of T equal parts of the window (the paper), or of
        every `stride`-th frame from its start (the released models)."""
        index = np.arange(self.config.length)
        if self.config.stride is not None:
            return window.start + (index * self.config.stride + 0.5) / self.config.rate
        return window.start + (index + 0.5) / len(index) * (window.stop - window.start)

    def read(self, clip: Clip, window: Window, rng: np.random.Generator | None) -> dict[str, Tensor]:
        """Decodes, crops and flips; see `Modality.read`."""
        config = self.config
        frames = _cover(clip.frames(self.times(window).tolist(), short_side=config.scaled_side), config.read_sides)
        # always as many numbers, so that one setting does not change what others draw
        draws = None if rng is None else rng.random(11)
        box = self._box(frames.shape[1:3], draws)
        height, width = config.read_sides
        # with scale jitter more is cut out than the box
        top, left = np.minimum(np.floor(box[:2]), np.subtract(frames.shape[1:3], config.read_sides)).astype(int)
        cut = torch.from_numpy(frames[:, top : top + height, left : left + width].copy())
        box[:2] -= top, left
        if draws is not None and draws[4] < config.flip:
            cut = cut.flip(2)
            box[1] = width - box[1] - box[3]
        return {"frames": cut, **self._augmentation(box, draws)}

    def _box(self, extent: Sequence[int], draws: np.ndarray | None) -> np.ndarray:
        """Top, left, height and width of the part of a frame that becomes the input, in pixels."""
        config = self.config
        extent_2, side_2 = np.array(extent, float), np.array(config.sides, float)
        if draws is None:
            return np.concatenate((np.floor((extent_2 - side_2) / 2), side_2))
        if config.scale_jitter is not None:
            low, high = config.scale_jitter
            side_2 = side_2 / (low + draws[:2] * (high - low))
            start_2 = draws[2:4] * (extent_2 - side_2)
        else:
            start_2 = np.floor(draws[2:4] * (extent_2 - side_2 + 1))
        if not config.random_crop:
            start_2 = np.floor((extent_2 - side_2) / 2)
        return np.concatenate((start_2, side_2))

    def _augmentation(self, box: np.ndarray, draws: np.ndarray | None) -> dict[str, Tensor]:
        config, found = self.config, {}
        if config.scale_jitter is not None:
            found["box"] = torch.tensor(box, dtype=torch.float32)
        if config.colour_jitter > 0:
            colour = UNCHANGED
            if draws is not None and draws[5] < config.colour_jitter:
                ranges = (
                    (-config.brightness, config.brightness),
                    config.saturation,
                    config.contrast,
                    (-config.hue, config.hue),
                )
                colour = tuple(low + u * (high - low) for u, (low, high) in zip(draws[6:10], ranges, strict=True))
            found["colour"] = torch.tensor(colour, dtype=torch.float32)
        if config.colour_drop > 0:
            found["grey"] = torch.tensor(draws is not None and bool(draws[10] < config.colour_drop))
        return found

    def blank(self) -> dict[str, Tensor]:
        """Black frames; see `Modality.blank`."""
        height, width = self.config.read_sides
        frames = torch.zeros(self.config.length, height, width, 3, dtype=torch.uint8)
        return {"frames": frames, **self._augmentation(np.array([0, 0, *self.config.sides], float), None)}

    def preprocessor(self) -> RgbPreprocessor:
        return RgbPreprocessor(self.config)

    def tokenizer(self, dim: int) -> Tokenizer:
        config = self.config
        size = (config.length, *config.sides)
        if config.sample_frames is not None:
            return SampledFramesTokenizer(size, config.patch_sides, config.sample_frames, dim)
        return make_tokenizer(config.stem, 3, size, (config.tubelet, *config.patch_sides), dim)

    def adapt(self, vit: VitWeights) -> dict[str, Tensor]:
        """See `Modality.adapt`; a tubelet's kernel is inflated as `inflate` says."""
        config = self.config
        if config.stem != "patch":
            return super().adapt(vit)
        patch = config.patch_sides if config.sample_frames is not None else (config.tubelet, *config.patch_sides)
        return adapt_kernel(vit, 3, patch, self.image_statistics, config.inflate)

    @property
    def image_statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        mean, std = (
            (value,) * 3 if isinstance(value, float) else value for value in (self.config.mean, self.config.std)
        )
        return mean, std

    def draw(self, sample: Any, relevance: np.ndarray | None) -> Picture:
        """A strip of at most 8 frames, and all frames as an animation, as the model gets them."""
        mean_3111, std_3111 = (torch.tensor(v)[:, None, None, None] for v in self.image_statistics)
        x_3THW = self.preprocessor()(self.collate([sample]))[0] * std_3111 + mean_3111
        frames = (x_3THW.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 3, 0).numpy()
        if self.config.sample_frames is not None:
            frames = frames[sampled_frames(len(frames), self.config.sample_frames)]
        if relevance is not None and relevance.max() > 0:
            frames = overlay(frames, self._per_pixel(relevance / relevance.max(), frames.shape))
        shown = np.linspace(0, len(frames) - 1, min(len(frames), STRIP)).round().astype(int)
        return Picture(stills=[np.concatenate(frames[shown], 1)], frames=list(frames) if len(frames) > 1 else ())

    def _per_pixel(self, relevance: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """Relevance of the tokenizer's grid as [T, H, W], for frames of `shape` [T, H, W, 3]."""
        T, H, W, _ = shape
        if relevance.ndim == 2:  # patches cross the borders of stacked frames
            return spread(relevance, self.config.patch_sides, (T * H, W)).reshape(T, H, W)
        per_frame = np.repeat(spread(relevance, self.config.patch_sides, (H, W)), self.config.tubelet, 0)
        return np.pad(per_frame, ((0, T - len(per_frame)), (0, 0), (0, 0)))  # frames past the last whole tubelet


class RgbPreprocessor(nn.Module):
    """Applies the drawn augmentation to a batch and normalises it: float32 [B, 3, T, H, W]."""

    scale: Tensor
    shift: Tensor
    unchanged: Tensor

    def __init__(self, config: RgbConfig) -> None:
        super().__init__()
        self.sides = config.sides
        mean, std = (torch.tensor(v).expand(3).reshape(3, 1, 1, 1) for v in (config.mean, config.std))
        self.register_buffer("scale", 1 / std, persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)
        self.register_buffer("unchanged", torch.tensor(UNCHANGED), persistent=False)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        frames = batch["frames"].permute(0, 4, 1, 2, 3)
        x = frames.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        if "box" in batch:
            x = resample(x, batch["box"], self.sides)
        if "colour" in batch:
            changed = batch["colour"].ne(self.unchanged).any(1)
            if x.device.type != "cpu" or changed.any():  # asking an accelerator would wait for it
                x = torch.where(changed[:, None, None, None, None], jitter_colours(x, batch["colour"]), x)
        if "grey" in batch:
            x = torch.where(batch["grey"][:, None, None, None, None], drop_colours(x), x)
        return x.mul_(self.scale).add_(self.shift)


def _cover(frames: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
    """Enlarges frames [T, H, W, 3] that are smaller than `sides` in one direction (a tall crop of a wide video)."""
    height, width = frames.shape[1:3]
    factor = max(sides[0] / height, sides[1] / width)
    if factor <= 1:
        return frames
    size = (max(sides[0], round(height * factor)), max(sides[1], round(width * factor)))
    enlarged = F.interpolate(torch.tensor(frames).permute(0, 3, 1, 2), size=size, mode="bilinear", antialias=True)
    return enlarged.permute(0, 2, 3, 1).numpy()

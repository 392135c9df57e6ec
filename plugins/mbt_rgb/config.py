"""Settings of the modality ``rgb``. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from mbt_core.config.schema import Auto, Count, PictureConfig, Seconds, check_sample
from mbt_core.errors import ConfigError

Probability = Annotated[float, Field(ge=0, le=1)]
Range = tuple[PositiveFloat, PositiveFloat]
Statistic = float | tuple[float, float, float]


class RgbConfig(PictureConfig):
    """Frames of a video, or a still; the defaults are the paper's input.

    Of the augmentation, what the paper names is on: random crop, flip, colour jitter. Colour drop and scale jitter,
    which only the released models were trained with, are off.
    """

    kind: str = "rgb"
    """The kind of modality."""
    frames: Count | Auto = 8
    """Frames of a sample; ``auto``: 1 for stills (with `tubelet` 1), 8 for videos."""
    seconds: Seconds | Auto | None = 8.0
    """Span over which the frames are spread evenly; null: the whole clip; ``auto``: what nine of ten clips fit into,
    at most 8. Not to be given with `stride`."""
    stride: Count | None = None
    """Take every n-th frame of a video of `rate`, instead of spreading frames over `seconds` (released models: 2)."""
    rate: PositiveFloat = 25.0
    """Frames a second that `stride` counts in, whatever the file's own."""
    tubelet: PositiveInt = 1
    """Frames of a patch (released models: 2)."""
    sample_frames: Count | None = None
    """The tokenizer chooses this many of the frames by the reference's ``temporal_sampling`` and stacks them to one
    tall picture before it is cut into patches."""
    mean: Statistic = 0.5
    """Subtracted from values in [0, 1]; a number or one per channel. 0.5 gives [-1, 1], as in the released models."""
    std: Statistic = 0.5
    """The values are divided by it; a number or one per channel."""
    random_crop: bool = True
    """Crop at a random place in training, else in the centre."""
    scale_jitter: Range | None = None
    """Range of independent factors by which height and width are scaled in training (released models: [0.9, 1.33])."""
    flip: Probability = 0.5
    """Probability of a horizontal flip in training. Set 0 where left and right matter."""
    colour_jitter: Probability = 0.8
    """Probability of changed colours in training."""
    brightness: Annotated[float, Field(ge=0)] = 32 / 255
    """Colour jitter: largest value added or subtracted (values in [0, 1])."""
    saturation: Range = (0.6, 1.4)
    """Colour jitter: range of the factor on the saturation (HSV)."""
    contrast: Range = (0.6, 1.4)
    """Colour jitter: range of the factor on the distance from a frame's mean, per channel."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.2
    """Colour jitter: largest shift of the hue; 1 is the whole circle."""
    colour_drop: Probability = 0.0
    """Probability of grey frames in training (released models: 0.1)."""
    inflate: Literal["central", "average"] = "central"
    """How an image's patch kernel fills a tubelet: all in the central frame, or a share in each."""

    @model_validator(mode="before")
    @classmethod
    def _stride_or_seconds(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("stride") is None:
            return data
        if data.get("seconds") is not None:
            raise ValueError("stride and seconds are both given; stride decides the span: set seconds to null")
        return {**data, "seconds": None}

    @model_validator(mode="after")
    def _consistent(self) -> RgbConfig:
        if self.frames != "auto" and self.tubelet > self.frames:
            raise ValueError(f"tubelet {self.tubelet} is longer than frames {self.frames}")
        if self.sample_frames is not None and self.tubelet != 1:
            raise ValueError(f"sample_frames embeds single frames: set tubelet to 1 (got: {self.tubelet})")
        if self.sample_frames is not None and self.stem != "patch":
            raise ValueError("sample_frames is the reference's linear embedding of patches: set stem to 'patch'")
        ranges = {"scale_jitter": self.scale_jitter, "saturation": self.saturation, "contrast": self.contrast}
        for name, span in ranges.items():
            if span is not None and span[0] > span[1]:
                raise ValueError(f"{name} is a range [low, high], got {list(span)}")
        if self.size == "auto":
            return self
        if self.frames != "auto":
            pixels = max(self.scaled_side**2, math.prod(self.read_sides))
            check_sample(3 * self.frames * pixels, "frames and size (or short_side, scale_jitter)")
        if self.scaled_side < min(self.read_sides):
            raise ValueError(
                f"short_side {self.scaled_side} is less than the {min(self.read_sides)} pixels that a crop of size "
                f"{self.size} {'with scale_jitter ' if self.scale_jitter else ''}takes"
            )
        return self

    @property
    def read_sides(self) -> tuple[int, int]:
        """(height, width) of what `read` cuts out: with scale jitter enough for the smallest factor."""
        if self.scale_jitter is None:
            return self.sides
        height, width = (math.ceil(side / self.scale_jitter[0]) + 1 for side in self.sides)
        return height, width

    @property
    def length(self) -> int:
        """Frames of a sample. Raises `ConfigError` while `frames` is ``auto``."""
        if self.frames == "auto":
            raise ConfigError(f"{self.kind}: frames is still 'auto'; give a number, or fit it to training data")
        return self.frames

    @property
    def span(self) -> float | None:
        """Seconds that the frames cover; None: the whole clip. Raises `ConfigError` while it is ``auto``."""
        if self.stride is not None:
            return self.length * self.stride / self.rate
        if self.seconds == "auto":
            raise ConfigError(f"{self.kind}: seconds is still 'auto'; give a number, or fit it to training data")
        return self.seconds

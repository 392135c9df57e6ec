"""Settings of the modality ``flow``. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from mbt_core.config.schema import Auto, Count, PictureConfig, Seconds, check_sample
from mbt_core.errors import ConfigError

LARGEST_INTERVAL = 0.5


class FlowConfig(PictureConfig):
    """Optical flow: by how many pixels each point moves to the right and down, computed from a video or stored.

    A displacement is in pixels of the picture scaled to `short_side`.
    """

    kind: str = "flow"
    """The kind of modality."""
    source: Literal["video", "npy", "jpeg"] = "video"
    """``video``: computed from the clip's frames by DIS; ``npy``: an array [2, fields, height, width] of displacements
    in its own pixels; ``jpeg``: a folder with the sub-folders ``u`` and ``v`` of numbered pictures (Epic-Kitchens)."""
    frames: Count = 8
    """Fields of a sample."""
    seconds: Seconds | Auto | None = 8.0
    """Span over which the fields are spread evenly; null: the whole clip; ``auto``: what nine of ten clips fit into, at
    most 8."""
    interval: Annotated[float, Field(gt=0, le=LARGEST_INTERVAL)] = 0.04
    """Source video: seconds that a displacement is over. A frame is compared with the one nearest to this time later,
    at least with the next, and the displacement is scaled to this time: videos of all frame rates give the same."""
    preset: Literal["ultrafast", "fast", "medium"] = "medium"
    """Source video: DIS's preset, from fast and coarse to slow and exact."""
    rate: PositiveFloat = 25.0
    """Sources npy and jpeg: stored fields a second, of clips of which the manifest's column ``fps`` does not say it."""
    bound: PositiveFloat = 20.0
    """Displacements are clipped to this many pixels in both directions. Source jpeg: what the grey levels 0 and 255
    stand for."""
    tubelet: PositiveInt = 1
    """Fields of a patch."""
    std: PositiveFloat | Auto = "auto"
    """Displacements are divided by it; ``auto``: their root mean square in the training data."""
    random_crop: bool = True
    """Crop at a random place in training, else in the centre."""
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability of a horizontal flip in training, which also negates the displacement to the right. Set 0 where left
    and right matter."""

    @model_validator(mode="after")
    def _consistent(self) -> FlowConfig:
        if self.tubelet > self.frames:
            raise ValueError(f"tubelet {self.tubelet} is longer than frames {self.frames}")
        if self.size == "auto":
            return self
        check_sample(2 * self.frames * self.scaled_side**2, "frames and size (or short_side)")
        if self.scaled_side < min(self.sides):
            raise ValueError(f"short_side {self.short_side} is less than the {min(self.sides)} pixels of the crop")
        return self

    @property
    def span(self) -> float | None:
        """Seconds that the fields cover; None: the whole clip. Raises `ConfigError` while it is ``auto``."""
        if self.seconds == "auto":
            raise ConfigError(f"{self.kind}: seconds is still 'auto'; give a number, or fit it to training data")
        return self.seconds

    @property
    def deviation(self) -> float:
        """`std`. Raises `ConfigError` while it is ``auto``."""
        if self.std == "auto":
            raise ConfigError(f"{self.kind}: std is still 'auto'; give a number, or fit it to training data")
        return self.std

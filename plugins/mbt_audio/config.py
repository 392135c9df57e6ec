"""Settings of the modality ``audio``. Imports no torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from mbt_core.config.schema import Auto, PatchedConfig, check_sample
from mbt_core.errors import ConfigError

FRAME_RATE = 100
"""Spectrogram frames a second."""


class AudioConfig(PatchedConfig):
    """Sound as a log-mel spectrogram; the defaults are the paper's input. Masks are off unless asked for."""

    kind: str = "audio"
    """The kind of modality."""
    seconds: Annotated[PositiveFloat, Field(le=86_400)] | Auto = 8.0
    """Length of the window, rounded to 10 ms; ``auto``: what nine of ten clips fit into, at most 8."""
    rate: Annotated[PositiveInt, Field(multiple_of=FRAME_RATE, le=10_000_000)] = 16_000
    """Samples a second to which the sound is resampled; a multiple of 100."""
    mel_bins: Annotated[PositiveInt, Field(le=4096)] = 128
    """Mel bins (HTK) from 0 to 8000 Hz, or to half of `rate` if that is less."""
    patch: tuple[PositiveInt, PositiveInt] | Auto = (16, 16)
    """Patch as [time, mel], in frames of 10 ms and mel bins; ``auto``: [16, 16], but [8, 16] of sounds shorter than
    2 s, which would be few patches."""
    channels: Annotated[PositiveInt, Field(le=1024)] = 1
    """Channels the spectrogram is repeated to; the released models have 3."""
    mean: float | Auto = "auto"
    """Subtracted from the log-mel values; ``auto``: the training data's mean (released models: 1.102)."""
    std: PositiveFloat | Auto = "auto"
    """The log-mel values are divided by it; ``auto``: the training data's deviation (released models: 2.762)."""
    time_masks: Annotated[int, Field(ge=0, le=1000)] = 0
    """Number of time masks in training (SpecAugment, arXiv 1904.08779); 0: off."""
    time_mask_frames: PositiveInt = 192
    """Bound on the length of a time mask, in frames of 10 ms; lengths are drawn below it (the paper: 192)."""
    freq_masks: Annotated[int, Field(ge=0, le=1000)] = 0
    """Number of frequency masks in training; 0: off."""
    freq_mask_bins: PositiveInt = 48
    """Bound on the width of a frequency mask, in mel bins; widths are drawn below it (the paper: 48)."""

    @model_validator(mode="after")
    def _holds_a_patch(self) -> AudioConfig:
        if self.patch != "auto" and self.patch[1] > self.mel_bins:
            raise ValueError(f"patch {list(self.patch)} spans more mel bins than mel_bins {self.mel_bins}")
        if self.patch != "auto" and self.seconds != "auto" and self.patch[0] > self.frames:
            raise ValueError(
                f"patch {list(self.patch)} spans more frames than the {self.frames} of {self.seconds} s; "
                f"give at least {self.patch[0] / FRAME_RATE} seconds or a shorter patch"
            )
        if self.seconds != "auto":
            # each frame is transformed with the samples around it
            check_sample(self.frames * max(4 * self.hop, self.mel_bins * self.channels), "seconds, rate and mel_bins")
        return self

    @property
    def frames(self) -> int:
        """Length of the spectrogram. Raises `ConfigError` while `seconds` is ``auto``."""
        if self.seconds == "auto":
            raise ConfigError(f"{self.kind}: seconds is still 'auto'; give a number, or fit it to training data")
        return round(self.seconds * FRAME_RATE)

    @property
    def patches(self) -> tuple[int, int]:
        """`patch`. Raises `ConfigError` while it is ``auto``."""
        if self.patch == "auto":
            raise ConfigError(f"{self.kind}: patch is still 'auto'; give [time, mel], or fit it to training data")
        return self.patch

    @property
    def statistics(self) -> tuple[float, float]:
        """(mean, std). Raises `ConfigError` while one of them is ``auto``."""
        if self.mean == "auto" or self.std == "auto":
            raise ConfigError(
                f"{self.kind}: mean and std are still 'auto'; give numbers (the released models: mean 1.102, "
                "std 2.762), or fit them to training data"
            )
        return self.mean, self.std

    @property
    def samples(self) -> int:
        """Length of the waveform. Raises `ConfigError` while `seconds` is ``auto``."""
        return self.frames * self.hop

    @property
    def hop(self) -> int:
        """Samples from one spectrogram frame to the next."""
        return self.rate // FRAME_RATE

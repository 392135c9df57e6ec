"""Settings of the modality ``signal``. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from mbt_core.config.schema import Auto, PatchedConfig, check_sample
from mbt_core.errors import ConfigError

Statistic = float | list[float]
SPECTROGRAM_FIELDS = ("fft", "hop", "log_mean", "log_std")


class SignalConfig(PatchedConfig):
    """A multichannel time series (IMU, ECG, EEG, radar, any sensor), as patches in time or as a log-spectrogram.

    What is ``auto`` is filled from the training data, so that no setting is needed. Augmentation is off unless asked
    for.
    """

    of_weights: ClassVar[tuple[str, ...]] = ("stem", "patch", "rate", "fft", "hop", "log_mean", "log_std")
    of_preprocessor: ClassVar[tuple[str, ...]] = ("mean", "std", "log_mean", "log_std")
    kind: str = "signal"
    """The kind of modality."""
    channels: Annotated[PositiveInt, Field(le=65_536)] | Auto = "auto"
    """Channels of the input; ``auto``: those of the files."""
    select: Annotated[list[NonNegativeInt], Field(min_length=1)] | None = None
    """Which channels of a file to take, in this order, counted from 0; not given: all."""
    columns: Annotated[list[str], Field(min_length=1)] | None = None
    """The same by name, of .csv and .parquet files; channels without a name are called by their number."""
    source_rate: PositiveFloat | None = None
    """Samples a second in files that do not say it themselves (all but .wav); not given: `rate`."""
    rate: Annotated[PositiveFloat, Field(le=1e10)] | Auto = "auto"
    """Samples a second to which the signal is resampled; ``auto``: that of the files, and 1 where it is not known, so
    that seconds count samples."""
    seconds: Annotated[PositiveFloat, Field(le=1e9)] | Auto = "auto"
    """Length of the window; ``auto``: what nine of ten recordings fit into, at most about 128 patches."""
    mean: Statistic | Auto = "auto"
    """Subtracted from the values; a number or one per channel; ``auto``: the training data's, per channel."""
    std: Statistic | Auto = "auto"
    """The values are divided by it; a number or one per channel; ``auto``: the training data's, per channel."""
    gaps: Literal["refuse", "interpolate"] = "refuse"
    """What becomes of missing values (NaN, empty cells): the file counts as unreadable, or they are interpolated."""
    view: Literal["patches", "spectrogram"] = "patches"
    """Patches in time, or a log-spectrogram cut into patches like an image, which suits image-trained weights."""
    patch: PositiveInt | tuple[PositiveInt, PositiveInt] | Auto = "auto"
    """Samples of a patch, or with a spectrogram [time, frequency]; ``auto``: 4 to 64 samples, for at most about 128
    patches (with `stem` conv 32), or [16, 16]."""
    fft: Annotated[int, Field(ge=4, le=1_048_576)] | Auto = "auto"
    """Spectrogram: samples of a Fourier transform, which gives fft / 2 frequencies; ``auto``: four times `hop`, at
    least 64."""
    hop: PositiveInt | Auto = "auto"
    """Spectrogram: samples from one transform to the next; ``auto``: for at most 128 of them."""
    log_mean: float | Auto = "auto"
    """Spectrogram: subtracted from the log power; ``auto``: the training data's mean."""
    log_std: PositiveFloat | Auto = "auto"
    """Spectrogram: the log power is divided by it; ``auto``: the training data's deviation."""
    jitter: NonNegativeFloat = 0.0
    """Deviation of noise added in training, in standard deviations of a channel (usual: 0.05); 0: off."""
    scaling: NonNegativeFloat = 0.0
    """Deviation around 1 of a factor per channel in training (usual: 0.1); 0: off."""
    time_masks: Annotated[NonNegativeInt, Field(le=1000)] = 0
    """Number of spans set to the mean in training; 0: off."""
    time_mask_seconds: PositiveFloat | None = None
    """Bound on the length of such a span; lengths are drawn below it; not given: a tenth of the window."""

    @model_validator(mode="after")
    def _consistent(self) -> SignalConfig:
        if self.patch != "auto" and isinstance(self.patch, int) != (self.view == "patches"):
            expected = "a number of samples" if self.view == "patches" else "[time, frequency]"
            raise ValueError(f"patch {self.patch} does not fit view {self.view!r}: expected {expected}")
        if self.select is not None and self.columns is not None:
            raise ValueError("select and columns both say which channels to take: give one of them")
        for name, chosen in (("select", self.select), ("columns", self.columns)):
            if chosen is not None and self.channels not in ("auto", len(chosen)):
                raise ValueError(f"channels is {self.channels}, but {name} names {len(chosen)}")
        for name in ("mean", "std"):
            given = getattr(self, name)
            if isinstance(given, list) and self.channels not in ("auto", len(given)):
                raise ValueError(f"{name} has {len(given)} values for {self.channels} channels")
        if self.std != "auto" and min(self.std if isinstance(self.std, list) else [self.std]) <= 0:
            raise ValueError(f"std must be above 0, got {self.std}")
        if isinstance(self.fft, int) and (self.fft % 2 or (isinstance(self.hop, int) and self.fft < self.hop)):
            raise ValueError(f"fft {self.fft} must be even and not less than hop {self.hop}")
        self._check_sizes()
        shape_known = not {"rate", "seconds", "patch", "fft", "hop"} & set(self.auto_fields())
        if shape_known and any(size < patch for size, patch in zip(self.size, self.patches, strict=True)):
            raise ValueError(
                f"patch {self.patch} is larger than the input of {' x '.join(map(str, self.size))} that "
                f"{self.seconds} s at rate {self.rate} give"
            )
        return self

    def _check_sizes(self) -> None:
        channels = 1 if self.channels == "auto" else self.channels
        if "auto" in (self.rate, self.seconds):
            return
        check_sample(channels * self.samples, "channels, rate and seconds")
        if self.view == "spectrogram" and "auto" not in (self.hop, self.fft):
            check_sample(channels * self.size[0] * self.known("fft"), "channels, rate, seconds, hop and fft")

    def auto_fields(self) -> list[str]:
        """Names of the fields still at ``"auto"`` that the view uses."""
        unused = () if self.view == "spectrogram" else SPECTROGRAM_FIELDS
        return [name for name in super().auto_fields() if name not in unused]

    def known(self, name: str) -> Any:
        """The value of a field. Raises `ConfigError` while it is ``auto``."""
        value = getattr(self, name)
        if value == "auto":
            raise ConfigError(f"{self.kind}: {name} is still 'auto'; give a value, or fit it to training data")
        return value

    @property
    def samples(self) -> int:
        """Samples of the window. Raises `ConfigError` while `rate` or `seconds` is ``auto``."""
        return max(1, round(self.known("rate") * self.known("seconds")))

    @property
    def size(self) -> tuple[int, ...]:
        """(samples,), or (time, frequency) of the spectrogram. Raises `ConfigError` for a field that is ``auto``."""
        if self.view == "patches":
            return (self.samples,)
        return self.samples // self.known("hop"), self.known("fft") // 2

    @property
    def patches(self) -> tuple[int, ...]:
        """Size of a patch along each axis of `size`. Raises `ConfigError` while it is ``auto``."""
        patch = self.known("patch")
        return (patch,) if isinstance(patch, int) else patch

    @property
    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and deviation of each channel. Raises `ConfigError` for a field that is ``auto``."""
        mean, std = (self.known(name) for name in ("mean", "std"))
        each = self.known("channels")
        return (mean if isinstance(mean, list) else [mean] * each), (std if isinstance(std, list) else [std] * each)

    @property
    def file_rate(self) -> float:
        """Samples a second of a file that does not say it. Raises `ConfigError` while it is not known."""
        return self.known("rate") if self.source_rate is None else self.source_rate

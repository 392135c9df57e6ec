"""The modality ``signal``.

Shapes: B batch, C channels, N samples of a recording, S samples of a window, T frames and F frequencies of a
spectrogram.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mbt_core import Clip, Modality, ModalityCard, Picture, Tokenizer, Window, make_tokenizer
from mbt_core.config.schema import validate
from mbt_core.errors import DataError
from mbt_core.media import MediaError
from mbt_core.modality.drawing import colours, overlay, spread
from mbt_signal.config import SignalConfig
from mbt_signal.drawing import curves, stacked
from mbt_signal.transforms import LogSpectrogram, interpolated, window_of

AUTO_TOKENS = 128
AUTO_CONV_TOKENS = 32
"""With ``stem: conv``: convolutions learn more within a patch than blocks do between many, from few recordings."""
AUTO_PATCHES = (4, 64)
"""The smallest and the largest patch, in samples, that ``auto`` chooses."""
AUTO_IMAGE_PATCH = 16
AUTO_FFT = 64
FIT_CLIPS = 256


class Recording(NamedTuple):
    """A file's content.

    Args:
        name: of the file.
        shape: of the whole file, [channels, samples].
        x: float32 [C, N], the chosen channels in the file's units.
        rate: samples a second as the file says it, or None.
    """

    name: str
    shape: tuple[int, ...]
    x: np.ndarray
    rate: float | None


class Signal(Modality):
    """A multichannel time series: [B, C, S] at the tokenizer, or [B, C, T, F] as a spectrogram.

    A sample is float32 [C, S]: resampled, normalised and, in training, augmented (Um et al.: jitter, scaling, time
    masks). Past the ends of the recording it is 0, which is the mean of a channel.
    """

    kind = "signal"
    reads = "array"
    card = ModalityCard(
        title="Multichannel time series (IMU, ECG, EEG, radar, any sensor)",
        units="standard deviations of each channel, 0 being its mean",
        shape="[B, channels, samples]; with view spectrogram [B, channels, time, frequency]",
        normalisation="none for patches; a spectrogram is (ln(power + 1e-4) - log_mean) / log_std",
        citation="Um et al., Data Augmentation of Wearable Sensor Data, arXiv 1706.00527",
    )
    config: SignalConfig

    @classmethod
    def fit(cls, config: SignalConfig, clips: Iterable[tuple[Clip, Window | None]]) -> SignalConfig:
        """Fills what is ``auto`` from whole recordings, or from their rows' spans.

        - `channels`, which all clips must have; where it is given, clips with another number are left out;
        - `rate`: the commonest, or 1 if unknown;
        - `seconds`: the 0.9 quantile of the durations, at most 128 patches, up to a whole number of patches;
        - `patch`: the power of two from 4 to 64 that makes at most 128 patches; [16, 16] of a spectrogram (less if it
          is smaller);
        - `mean`, `std`: per channel (`std` 1 for a constant one); `log_mean`, `log_std`: of the log power.

        Raises:
            DataError: if there is no readable clip, if clips differ in their number of channels or none has the given
                one, if channels exceed samples, or if rows have a start or end in seconds and no rate is known.
        """
        if not config.auto_fields():
            return config
        found: list[tuple[Recording, Window | None]] = []
        failed: MediaError | None = None
        for clip, window in islice(clips, FIT_CLIPS):
            try:
                found.append((read_recording(clip, config), window))
            except MediaError as error:
                failed = failed or error  # counted where the data is checked
        if not found:
            why = f"; the first: {failed}" if failed else ""
            raise DataError(f"{config.kind}: no readable clip to fill {', '.join(config.auto_fields())} from{why}")
        channels = _channels(config, [recording for recording, _ in found])
        found = [(recording, window) for recording, window in found if len(recording.x) == channels]
        config = _fill(config, rate=_rate(config, found))
        config = _fill(config, channels=channels)
        spans = [_span(config, recording, window) for recording, window in found]
        config = _fill(config, **_shape(config, [x.shape[1] * config.rate / rate for x, rate in spans]))
        config = _fill(config, **_statistics([x for x, _ in spans]))
        if "log_mean" in config.auto_fields() or "log_std" in config.auto_fields():
            windows = [_window(config, x, rate, 0.0) for x, rate in spans]
            config = _fill(config, **_log_statistics(config, np.stack(windows)))
        return config

    def channels_of(self, names: Sequence[str], count: int) -> list[int] | None:
        """See `Modality.channels_of`."""
        return chosen_channels(self.config, names, count)

    def duration(self, clip: Clip) -> float | None:
        """Seconds of the recording at the rate that the file or the configuration gives."""
        seconds = clip.duration_of("array")
        return clip.shape[-1] / self.config.file_rate if seconds is None else seconds

    def read(self, clip: Clip, window: Window, rng: np.random.Generator | None) -> Tensor:
        """Cuts out, resamples, normalises and augments; see `Modality.read`."""
        config = self.config
        recording = read_recording(clip, config)
        if len(recording.x) != config.channels:
            raise MediaError(f"{clip.name}: it has {len(recording.x)} channels, expected {config.channels}")
        rate = recording.rate or config.file_rate
        x_CS = _window(config, recording.x, rate, window.start)
        return torch.from_numpy(x_CS if rng is None else self._augmented(x_CS, rng))

    def _augmented(self, x_CS: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Scaling, jitter and time masks; what was 0 (past the end) stays 0."""
        config = self.config
        channels, samples = x_CS.shape
        past_S = ~x_CS.any(0)
        if config.scaling:
            x_CS = x_CS * rng.normal(1, config.scaling, (channels, 1)).astype(np.float32)
        if config.jitter:
            x_CS = x_CS + rng.normal(0, config.jitter, x_CS.shape).astype(np.float32)
            x_CS[:, past_S] = 0
        bound = samples / 10 if config.time_mask_seconds is None else config.time_mask_seconds * config.known("rate")
        for length, place in rng.random((config.time_masks, 2)):
            masked = min(int(length * bound), samples)
            start = int(place * (samples - masked + 1))
            x_CS[:, start : start + masked] = 0
        return x_CS

    def blank(self) -> Tensor:
        """Every channel at its mean; see `Modality.blank`."""
        return torch.zeros(self.config.known("channels"), self.config.samples)

    def preprocessor(self) -> nn.Module:
        return _log_spectrogram(self.config) if self.config.view == "spectrogram" else nn.Identity()

    def tokenizer(self, dim: int) -> Tokenizer:
        config = self.config
        return make_tokenizer(config.stem, config.known("channels"), config.size, config.patches, dim)

    def draw(self, sample: Any, relevance: np.ndarray | None) -> Picture:
        """A curve per channel over a shaded ground, or a spectrogram per channel; time to the right."""
        heat = relevance / relevance.max() if relevance is not None and relevance.max() > 0 else None
        if self.config.view == "patches":
            (patch,), (samples,) = self.config.patches, self.config.size
            shade_S = None if heat is None else spread(heat[None], (1, patch), (1, samples))[0]
            return Picture(stills=[curves(sample.numpy(), shade_S)])
        x_CTF = self.preprocessor()(sample[None])[0].numpy()
        low, high = np.quantile(x_CTF, (0.01, 0.995))
        picture = colours((x_CTF - low) / max(high - low, 1e-6))
        if heat is not None:
            picture = overlay(picture, spread(heat, self.config.patches, x_CTF.shape[1:]))
        return Picture(stills=[stacked(picture)])


def read_recording(clip: Clip, config: SignalConfig) -> Recording:
    """The chosen channels of a file.

    Raises:
        MediaError: if it cannot be read, is not [channels, samples], lacks a channel, or has missing values that are
            to be refused (or a channel without any other).
    """
    x = clip.array()
    seconds = clip.duration_of("array")
    if x.ndim != 2 or not x.size:
        raise MediaError(f"{clip.name}: an array of {list(x.shape)}, expected [channels, samples]")
    shape, rate = x.shape, x.shape[1] / seconds if seconds else None
    try:
        chosen = chosen_channels(config, clip.columns if config.columns else (), len(x))
    except DataError as error:
        raise MediaError(f"{clip.name}: {error}") from None
    if chosen is not None:
        x = x[chosen]
    if not np.isfinite(x).all():
        if config.gaps == "interpolate":
            x = interpolated(x)
        missing = np.argwhere(~np.isfinite(x))
        if len(missing):
            raise MediaError(
                f"{clip.name}: {len(missing)} values are missing or infinite, the first in channel {missing[0][0]} at "
                f"sample {missing[0][1]}; repair the file, or set gaps=interpolate"
            )
    return Recording(clip.name, shape, x, rate)


def chosen_channels(config: SignalConfig, names: Sequence[str], count: int) -> list[int] | None:
    """Which of a file's `count` channels of these names to take; None: all. Raises `DataError` if it lacks one."""
    if config.select is not None and max(config.select) >= count:
        raise DataError(f"select asks for channel {max(config.select)}, it has 0 to {count - 1}")
    if config.columns is None:
        return config.select
    missing = [name for name in config.columns if name not in names]
    if missing:
        raise DataError(f"columns asks for {missing[0]!r}, its channels are {', '.join(map(repr, names)) or 'unnamed'}")
    return [list(names).index(name) for name in config.columns]


def _fill(config: SignalConfig, **found: Any) -> SignalConfig:
    """The configuration with those of `found` that are still ``auto``."""
    auto = config.auto_fields()
    return validate(type(config), config.model_dump() | {name: v for name, v in found.items() if name in auto})


def _rate(config: SignalConfig, found: Sequence[tuple[Recording, Window | None]]) -> float:
    """The commonest rate of the files."""
    rates = Counter(recording.rate or config.source_rate for recording, _ in found)
    rate = rates.most_common(1)[0][0]
    if rate is None and config.rate == "auto" and any(window is not None for _, window in found):
        raise DataError(
            f"{config.kind}: rows start or end at given seconds, but the files do not say how many samples a second "
            "they have; give source_rate"
        )
    return 1.0 if rate is None else float(f"{rate:.9g}")


def _channels(config: SignalConfig, recordings: Sequence[Recording]) -> int:
    """The number of channels that is given, or that all recordings have."""
    counts = Counter(len(recording.x) for recording in recordings)
    common = counts.most_common(1)[0][0] if config.channels == "auto" else config.channels
    odd = next((recording for recording in recordings if len(recording.x) != common), None)
    if (config.channels == "auto" or common not in counts) and all(shape[0] > shape[1] for _, shape, *_ in recordings):
        raise DataError(
            f"{config.kind}: arrays of {list(recordings[0].shape)}: expected [channels, samples]; transpose them, or "
            "give channels if they really are so short"
        )
    if odd is not None and config.channels == "auto":
        shown = ", ".join(f"{count} in {files}" for count, files in counts.most_common(3))
        raise DataError(
            f"{config.kind}: the files differ in their channels: {shown} ({odd.name} has {len(odd.x)}); choose some by "
            "select, or give channels, and files with another number count as unreadable"
        )
    if odd is not None and common not in counts:
        raise DataError(f"{config.kind}: no file has {common} channels; {odd.name} has {len(odd.x)}; correct channels")
    return common


def _span(config: SignalConfig, recording: Recording, window: Window | None) -> tuple[np.ndarray, float]:
    """The part of a recording that its row is about, and its samples a second."""
    rate = recording.rate or config.file_rate
    if window is None:
        return recording.x, rate
    stop = round(window.stop * rate) if window.stop > window.start else None  # the row has no end
    part = recording.x[:, round(window.start * rate) : stop]
    return (part if part.size else recording.x), rate


def _shape(config: SignalConfig, lengths: Sequence[float]) -> dict[str, Any]:
    """Seconds, patch, hop and fft for spans of `lengths` samples at the configured rate."""
    given = config.patch if isinstance(config.patch, int) else None
    smallest, largest = AUTO_PATCHES
    wanted = max(1, round(float(np.quantile(lengths, 0.9, method="inverted_cdf"))))
    samples = min(wanted, AUTO_TOKENS * (given or largest)) if config.seconds == "auto" else config.samples
    if config.view == "patches":
        tokens = AUTO_CONV_TOKENS if config.stem != "patch" else AUTO_TOKENS
        patch = given or min(largest, max(smallest, _power_of_two(samples / tokens)), samples)
        samples = -(-samples // patch) * patch
        return {"seconds": samples / config.known("rate"), "patch": patch}
    hop = -(-samples // AUTO_TOKENS) if config.hop == "auto" else config.hop
    fft = max(AUTO_FFT, 4 * _power_of_two(hop)) if config.fft == "auto" else config.fft
    time, frequency = (min(AUTO_IMAGE_PATCH, size) for size in (max(1, samples // hop), fft // 2))
    return {"seconds": samples / config.known("rate"), "patch": [time, frequency], "hop": hop, "fft": fft}


def _power_of_two(value: float) -> int:
    """The smallest one that is not less."""
    return 1 << max(0, int(np.ceil(np.log2(value))))


def _statistics(arrays: Sequence[np.ndarray]) -> dict[str, list[float]]:
    """Mean and deviation of each channel over all samples."""
    count = sum(x.shape[1] for x in arrays)
    mean_C = sum(x.sum(1, dtype=np.float64) for x in arrays) / count
    square_C = sum(np.square(x - mean_C[:, None], dtype=np.float64).sum(1) for x in arrays) / count
    return {"mean": _rounded(mean_C), "std": [value or 1.0 for value in _rounded(np.sqrt(square_C))]}


def _log_statistics(config: SignalConfig, x_BCS: np.ndarray) -> dict[str, float]:
    values = _log_spectrogram(_fill(config, log_mean=0.0, log_std=1.0))(torch.from_numpy(x_BCS))
    return {"log_mean": round(values.mean().item(), 4), "log_std": round(values.std().item(), 4) or 1.0}


def _log_spectrogram(config: SignalConfig) -> LogSpectrogram:
    return LogSpectrogram(*(config.known(name) for name in ("fft", "hop", "log_mean", "log_std")))


def _rounded(values: Iterable[float]) -> list[float]:
    """Six digits, for configurations that people read."""
    return [float(f"{value:.6g}") for value in values]


def _window(config: SignalConfig, x_CN: np.ndarray, rate: float, start: float) -> np.ndarray:
    """float32 [C, S] from `start` seconds on, in deviations from the mean; 0 outside of the recording."""
    return window_of(x_CN, rate, config.statistics, config.known("rate"), start, config.samples)

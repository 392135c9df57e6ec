"""From a recording to a window of it: channels, gaps, resampling, spectrogram.

Shapes: C channels, N samples of a recording, S samples of a window, B batch, T frames and F frequencies of a
spectrogram.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchaudio.transforms import Resample

from mbt_core.errors import DataError

Scale = tuple[Sequence[float], Sequence[float]]
"""Mean and deviation of each channel."""
LARGEST_FACTOR = 1000
"""Rates are resampled by a fraction whose denominator is at most this."""
FLOOR = 1e-4
"""Added to the power before the logarithm; white noise of deviation 1 has power 1."""


def window_of(x_CN: np.ndarray, own_rate: float, scale: Scale, rate: float, start: float, count: int) -> np.ndarray:
    """The recording from `start` seconds on, normalised and resampled; 0 outside of it: float32 [C, count].

    The recording at `rate` is one signal on the grid k / rate seconds, and a window is its slice from
    round(start * rate) on: windows agree where they overlap. Resampled by `torchaudio.functional.resample`, by a
    fraction of the rates with a denominator of at most 1000: where that is not exact, a window is right to half a
    sample of the recording at its start, and what the fraction lacks grows from there only.

    Args:
        x_CN: the recording.
        own_rate: its samples a second.
        scale: mean and deviation of the channels.
        rate: wanted samples a second.
        start: seconds.
        count: samples of the window.

    Raises:
        DataError: if `rate` is more than 1000 times `own_rate`.
    """
    first = round(start * rate)
    ratio = Fraction(own_rate / rate).limit_denominator(LARGEST_FACTOR)
    if ratio == 1:
        return normalised(x_CN, scale, round(first / rate * own_rate), count)
    if ratio == 0:
        raise DataError(f"{own_rate:g} samples a second cannot be resampled to {rate:g}, more than 1000 times as many")
    old, new = ratio.numerator, ratio.denominator
    resampler = _resampler(old, new)
    margin = resampler.width * new // old + 1
    origin = (first - margin) // new * new  # here both grids meet if the fraction is exact
    length = -(-(first + count + margin - origin) * old // new)
    source = torch.from_numpy(normalised(x_CN, scale, round(origin / rate * own_rate), length))
    window = resampler(source)[:, first - origin :][:, :count].numpy()
    inside = np.round(np.arange(first, first + count) / rate * own_rate, 6)  # whole samples to the last digit
    return np.where((inside >= 0) & (inside < x_CN.shape[1]), window, np.float32(0))


@lru_cache(maxsize=8)
def _resampler(old: int, new: int) -> Resample:
    return Resample(old, new)


def normalised(x_CN: np.ndarray, scale: Scale, first: int, count: int) -> np.ndarray:
    """x[:, first : first + count] in deviations from the mean, 0 outside of x: float32 [C, count]."""
    mean_C1, std_C1 = (np.asarray(values)[:, None] for values in scale)
    out = np.zeros((len(x_CN), count), np.float32)
    low, high = max(first, 0), min(first + count, x_CN.shape[1])
    if low < high:
        out[:, low - first : high - first] = (x_CN[:, low:high] - mean_C1) / std_C1
    return out


def interpolated(x_CN: np.ndarray) -> np.ndarray:
    """Missing values (NaN) on a straight line between their neighbours; before the first one, and past the last, held.

    A channel without any value stays as it is.
    """
    filled = x_CN.copy()
    for channel in filled:
        known = np.isfinite(channel)
        if known.any() and not known.all():
            channel[~known] = np.interp(np.flatnonzero(~known), np.flatnonzero(known), channel[known])
    return filled


class LogSpectrogram(nn.Module):
    """ln(power + 1e-4) of Hann windows, each centred on its hop (zeros outside), normalised: float32 [B, C, T, F].

    Power is that per sample: white noise of deviation 1 has power 1 at all frequencies. Frequencies are k / fft of the
    rate for k = 0 .. fft / 2 - 1; T = samples // hop. Always in float32.
    """

    window: Tensor

    def __init__(self, fft: int, hop: int, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        self.fft, self.hop, self.mean, self.std = fft, hop, mean, std
        window = torch.hann_window(fft)
        self.register_buffer("window", window / window.square().sum().sqrt(), persistent=False)

    def forward(self, x_BCS: Tensor) -> Tensor:
        B, C, _ = x_BCS.shape
        margin = self.fft - self.hop
        with torch.autocast(x_BCS.device.type, enabled=False):
            x = functional.pad(x_BCS.float().flatten(0, 1), (margin // 2, margin - margin // 2))
            spectrum = torch.stft(
                x, self.fft, self.hop, self.fft, self.window, center=False, onesided=True, return_complex=True
            )
            power = spectrum.real.square() + spectrum.imag.square()
            log_power = (power[:, :-1] + FLOOR).log_().transpose(1, 2)
            return ((log_power - self.mean) / self.std).unflatten(0, (B, C))

"""The modality ``audio``.

Shapes: B batch, C channels, T spectrogram frames (10 ms each), F mel bins, N samples of a waveform, K masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchaudio.functional import melscale_fbanks

from mbt_audio.config import FRAME_RATE, AudioConfig
from mbt_core import Clip, Modality, ModalityCard, Picture, Tokenizer, Window, make_tokenizer
from mbt_core.config.schema import validate
from mbt_core.errors import DataError
from mbt_core.media import MediaError
from mbt_core.modality.drawing import colours, overlay, spread

AUTO_SECONDS = 8.0
SHORT_SECONDS = 2.0
"""Sounds below it get patches of half the length."""
FIT_CLIPS = 256
FULL_SCALE = 32768
"""int16 steps from 0 to an amplitude of 1."""
FLOOR = 1e-6
"""Added to the power before the logarithm."""
AT_ONCE, AT_ONCE_ON_CPU = 2**20, 2**16
"""Samples transformed at once: larger intermediate results would leave a CPU's cache, which doubles its time."""


class Audio(Modality):
    """Sound as a log-mel spectrogram: [B, C, T, F] at the tokenizer.

    A sample is a dictionary of

    - ``waveform``: int16 [N]. 16 bits are what most files hold. Rounding to them adds a power of 1e-8 to 1e-7 in a mel
      bin, far below the 1e-6 that is added before the logarithm, however loud the sound is; the error of float16 grows
      with the signal and would cover quiet bins beside loud ones;
    - ``time_masks``, ``freq_masks``: int32 [K, 2], start and length of each mask, in frames and in mel bins.
    """

    kind = "audio"
    reads = "waveform"
    card = ModalityCard(
        title="Sound as a log-mel spectrogram",
        units="int16 samples of a mono waveform, 32768 being an amplitude of 1",
        shape="[B, C, time, mel]",
        normalisation="(ln(mel power + 1e-6) - mean) / std, mean and std of the training data",
        citation="Nagrani et al., Attention Bottlenecks for Multimodal Fusion, arXiv 2107.00135; "
        "Park et al., SpecAugment, arXiv 1904.08779",
        foreign_keys={"scenic": "spectrogram"},
    )
    config: AudioConfig

    @classmethod
    def fit(cls, config: AudioConfig, clips: Iterable[tuple[Clip, Window | None]]) -> AudioConfig:
        """Fills `seconds`, `mean` and `std` from the middle of each clip, and `patch`.

        `seconds` is the 0.9 quantile of the durations, at most 8, then up to a whole number of patches, so that no
        sound falls into the remainder. Mean and deviation are those of the log-mel values that the model would get.

        Raises:
            DataError: if there is something to fill and no readable clip.
        """
        if not config.auto_fields():
            return config
        longest = AUTO_SECONDS if config.seconds == "auto" else config.seconds
        spans, waveforms = [], []
        failed: MediaError | None = None
        for clip, window in islice(clips, FIT_CLIPS):
            try:
                start, stop = window or (0.0, clip.duration_of("waveform") or 0.0)
                middle = start + max(0.0, stop - start - longest) / 2
                waveforms.append(_to_int16(clip.waveform(middle, middle + longest, config.rate)))
            except MediaError as error:
                failed = failed or error
                continue  # counted where the data is checked
            spans.append(stop - start)
        if not waveforms:
            why = f"; the first: {failed}" if failed else ""
            raise DataError(f"{config.kind}: no readable clip to fill {', '.join(config.auto_fields())} from{why}")
        common = min(float(np.quantile(spans, 0.9, method="inverted_cdf")), longest)
        if config.patch == "auto":
            patch = (8 if common < SHORT_SECONDS else 16, min(16, config.mel_bins))
            config = validate(type(config), config.model_dump() | {"patch": patch})
        if config.seconds == "auto":
            step = config.patches[0] / FRAME_RATE
            seconds = round(max(1, int(np.ceil(common / step - 1e-6))) * step, 2)
            config = validate(type(config), config.model_dump() | {"seconds": seconds})
        return validate(type(config), config.model_dump() | _statistics(config, waveforms))

    @classmethod
    def from_scenic(cls, config: Mapping[str, Any], input_shape: Sequence[int] | None) -> dict[str, Any]:
        """See `Modality.from_scenic`; AudioSet's statistics, and one channel, which the reference tiles to three."""
        time, mel_bins, channels = (800, 128, 1) if input_shape is None else input_shape[1:4]
        return {
            "seconds": time / FRAME_RATE,
            "mel_bins": mel_bins,
            "patch": list(config["patches"]["size"][:2]),
            "channels": channels,
            "mean": 1.102,
            "std": 2.762,
        }

    @property
    def seconds(self) -> float:
        """Length of the window to read, in whole spectrogram frames."""
        return self.config.frames / FRAME_RATE

    def without_augmentation(self) -> Audio:
        """Samples hold no masks; see `Modality.without_augmentation`."""
        return Audio(self.name, self.config.model_copy(update={"time_masks": 0, "freq_masks": 0}))

    def decode_settings(self) -> dict[str, Any]:
        """How clips are decoded: what a cache of decoded clips has to know."""
        return {"rate": self.config.rate}

    def read(self, clip: Clip, window: Window, rng: np.random.Generator | None) -> dict[str, Tensor]:
        """Reads the waveform and draws the masks; see `Modality.read`."""
        config = self.config
        waveform = _to_int16(clip.waveform(window.start, window.start + self.seconds, config.rate))
        return {
            "waveform": torch.from_numpy(waveform),
            "time_masks": draw_masks(rng, config.time_masks, config.time_mask_frames, config.frames),
            "freq_masks": draw_masks(rng, config.freq_masks, config.freq_mask_bins, config.mel_bins),
        }

    def blank(self) -> dict[str, Tensor]:
        """Silence; see `Modality.blank`."""
        config = self.config
        return {
            "waveform": torch.zeros(config.samples, dtype=torch.int16),
            "time_masks": torch.zeros(config.time_masks, 2, dtype=torch.int32),
            "freq_masks": torch.zeros(config.freq_masks, 2, dtype=torch.int32),
        }

    def preprocessor(self) -> AudioPreprocessor:
        return AudioPreprocessor(self.config)

    def tokenizer(self, dim: int) -> Tokenizer:
        config = self.config
        return make_tokenizer(config.stem, config.channels, (config.frames, config.mel_bins), config.patches, dim)

    def draw(self, sample: Any, relevance: np.ndarray | None) -> Picture:
        """The spectrogram as the model gets it: time to the right, low frequencies at the bottom."""
        x_TF = self.preprocessor()(self.collate([sample]))[0, 0].numpy()
        low, high = np.quantile(x_TF, (0.01, 0.995))
        picture = colours((x_TF - low) / max(high - low, 1e-6))
        if relevance is not None and relevance.max() > 0:
            picture = overlay(picture, spread(relevance / relevance.max(), self.config.patches, x_TF.shape))
        return Picture(stills=[np.ascontiguousarray(picture.transpose(1, 0, 2)[::-1])])


class LogMel(nn.Module):
    """Waveforms to log-mel spectrograms with exactly 100 frames a second.

    Periodic Hamming windows of 25 ms every 10 ms, each centred on its 10 ms (zeros before the start and past the end);
    power of the Fourier transform over 1024 points at 16 kHz; `mel_bins` HTK mel filters from 0 to 8000 Hz, not
    normalised; ln(x + 1e-6). Always in float32.

    Args:
        rate: samples a second, a multiple of 100. Other rates keep the times and have a transform of the next power of
            two above twice the window.
        mel_bins: F.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, rate: int, mel_bins: int) -> None:
        super().__init__()
        self.hop, self.length = rate // FRAME_RATE, round(rate * 0.025)
        self.points = 2 ** (2 * self.length - 1).bit_length()
        window = torch.hamming_window(self.length) / FULL_SCALE
        filters = melscale_fbanks(self.points // 2 + 1, 0.0, min(8000.0, rate / 2), mel_bins, rate, None, "htk")
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filters", filters.repeat_interleave(2, 0), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """int16 [B, N] -> [B, T, F], T = N / hop."""
        # an exported graph serves any batch size: it cannot depend on their number
        whole, at_once = torch.compiler.is_exporting(), AT_ONCE_ON_CPU if waveform.is_cpu else AT_ONCE
        parts = [waveform] if whole else waveform.split(max(1, at_once // waveform.shape[1]))
        with torch.autocast(waveform.device.type, enabled=False):
            return torch.cat([self._transform(part) for part in parts])

    def _transform(self, waveform: Tensor) -> Tensor:
        margin = self.points - self.hop
        padded = functional.pad(waveform.float(), (margin // 2, margin - margin // 2))
        spectrum = torch.stft(
            padded, self.points, self.hop, self.length, self.window, center=False, return_complex=True
        )
        # real and imaginary parts lie side by side, and each has its row of the filters: their squares need no sum
        squares = torch.view_as_real(spectrum.transpose(1, 2)).flatten(2).square_()
        return torch.matmul(squares, self.filters).add_(FLOOR).log_()


class AudioPreprocessor(nn.Module):
    """Log-mel spectrograms of a batch, normalised, masked with 0 and repeated to C channels: float32 [B, C, T, F]."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.log_mel = LogMel(config.rate, config.mel_bins)
        self.mean, self.std = config.statistics
        self.channels = config.channels

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        x_BTF = self.log_mel(batch["waveform"]).sub_(self.mean).div_(self.std)
        for key, axis in (("time_masks", 1), ("freq_masks", 2)):
            if batch[key].shape[1]:
                covered = covered_by(batch[key], x_BTF.shape[axis])
                x_BTF.masked_fill_(covered.unsqueeze(3 - axis), 0)
        return x_BTF.unsqueeze(1).expand(-1, self.channels, -1, -1)


def draw_masks(rng: np.random.Generator | None, count: int, longest: int, size: int) -> Tensor:
    """Start and length of `count` masks on an axis of `size`, by the reference's rule; int32 [count, 2].

    With u and v uniform in [0, 1): length = floor(u * longest), at most `size`; start = floor(v * (size - length + 1)).
    Without a generator all lengths are 0.
    """
    if rng is None or not count:
        return torch.zeros(count, 2, dtype=torch.int32)
    u, v = rng.random((count, 2)).T
    length = np.minimum(np.floor(u * longest), size)
    start = np.floor(v * (size - length + 1))
    return torch.from_numpy(np.stack((start, length), 1).astype(np.int32))


def covered_by(masks_BK2: Tensor, size: int) -> Tensor:
    """bool [B, size]: which places of an axis lie in a mask."""
    start, length = masks_BK2.unsqueeze(-1).unbind(2)
    place = torch.arange(size, device=masks_BK2.device)
    return ((place >= start) & (place < start + length)).any(1)


def _to_int16(waveform: np.ndarray) -> np.ndarray:
    """Amplitudes in [-1, 1] (others are clipped) as int16."""
    scaled = waveform * FULL_SCALE
    np.rint(scaled, out=scaled)
    return np.minimum(np.maximum(scaled, -FULL_SCALE, out=scaled), FULL_SCALE - 1, out=scaled).astype(np.int16)


def _statistics(config: AudioConfig, waveforms: list[np.ndarray]) -> dict[str, float]:
    """Those of `mean` and `std` that are ``auto``, over the log-mel values of the first `seconds` of each waveform."""
    log_mel = LogMel(config.rate, config.mel_bins)
    count, total, squares = 0, 0.0, 0.0
    for waveform in waveforms:
        values = log_mel(torch.from_numpy(waveform[None, : config.samples])).double()
        count += values.numel()
        total += values.sum().item()
        squares += values.square().sum().item()
    mean = total / count
    deviation = max(squares / count - mean**2, 0.0) ** 0.5
    found = {"mean": round(mean, 4), "std": round(deviation, 4) or 1.0}
    return {name: value for name, value in found.items() if getattr(config, name) == "auto"}

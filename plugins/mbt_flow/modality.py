"""The modality ``flow``.

Shapes: B batch, T fields, H, W height and width of the input, h, w of a scaled picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mbt_core import Clip, Modality, ModalityCard, Picture, Tokenizer, Window, make_tokenizer
from mbt_core.config.schema import validate
from mbt_core.errors import DataError
from mbt_core.media import MediaError
from mbt_core.modality.drawing import overlay, spread
from mbt_flow.config import FlowConfig
from mbt_flow.fields import dense_flow, flow_colours, scaled, write_fields

AUTO_SECONDS = 8.0
FIT_CLIPS = 64
STRIP = 8
"""Most fields in the strip that `draw` makes."""
LEVELS = 255
"""Grey level of `bound` in a JPEG; that of 0 is 128, as the tools that write them round it."""
NO_MOTION = 128


class Flow(Modality):
    """Optical flow: [B, 2, T, H, W] at the tokenizer, displacement to the right and down.

    A sample is float16 [2, T, H, W]: pixels of the scaled picture, clipped to +-`bound`, already cropped and flipped.
    """

    kind = "flow"
    reads = "frames"
    card = ModalityCard(
        title="Optical flow, computed from a video or stored",
        units="pixels of the scaled picture per interval, to the right and down",
        shape="[B, 2, T, H, W]",
        normalisation="displacement / std",
        citation="Simonyan & Zisserman, Two-Stream Convolutional Networks, arXiv 1406.2199; "
        "Kroeger et al., Fast Optical Flow using Dense Inverse Search, arXiv 1603.03590",
    )
    config: FlowConfig

    def __init__(self, name: str, config: FlowConfig) -> None:
        super().__init__(name, config)
        self.reads = "frames" if config.source == "video" else "array"

    @classmethod
    def fit(cls, config: FlowConfig, clips: Iterable[tuple[Clip, Window | None]]) -> FlowConfig:
        """Fills `seconds` (0.9 quantile of the durations, at most 8), `std` (root mean square of displacements),
        `patch` (16) and `size` (as large as a video's pictures).

        Raises:
            DataError: if there is something to fill and no readable clip.
        """
        if not config.auto_fields():
            return config
        opened = list(islice(clips, FIT_CLIPS))
        if "auto" in (config.patch, config.size):
            filled = config.fitted(_sizes(config, opened), config.frames // config.tubelet)
            config = validate(type(config), config.model_dump() | filled)
        probe = cls(config.kind, config.model_copy(update={"seconds": None}))
        spans, squares = [], []
        failed: MediaError | None = None
        for clip, window in opened:
            try:
                span = window or Window(0.0, probe.duration(clip) or 0.0)
                field = probe.read(clip, span, None) if config.std == "auto" else torch.zeros(1)
            except MediaError as error:
                failed = failed or error
                continue  # counted where the data is checked
            spans.append(span.stop - span.start)
            squares.append(field.double().square().mean().item())
        if not spans:
            why = f"; the first: {failed}" if failed else ""
            raise DataError(f"{config.kind}: no readable clip to fill {', '.join(config.auto_fields())} from{why}")
        found = {
            "seconds": round(min(float(np.quantile(spans, 0.9, method="inverted_cdf")), AUTO_SECONDS), 2),
            "std": float(f"{np.mean(squares) ** 0.5:.4g}") or 1.0,
        }
        filled = {name: found[name] for name in config.auto_fields()}
        return validate(type(config), config.model_dump() | filled)

    @classmethod
    def example(cls, config: FlowConfig, path: Path, rng: np.random.Generator) -> Path | None:
        """Stored fields, see `Modality.example`."""
        if config.source == "video":
            return None
        low, high = (0, LEVELS) if config.source == "jpeg" else (-config.bound, config.bound)
        fields = rng.uniform(low, high, (2, int(rng.integers(20, 40)), 48, 64))
        return write_fields(path, fields.astype(np.float32), config.source)

    @property
    def seconds(self) -> float | None:
        """Length of the window to read; None: the whole clip."""
        return self.config.span

    def duration(self, clip: Clip) -> float | None:
        """Seconds of the video, or of the stored fields."""
        return super().duration(clip) if self.config.source == "video" else clip.shape[1] / self._rate(clip)

    def decode_settings(self) -> dict[str, Any]:
        """See `Modality.decode_settings`."""
        return {"short_side": self.config.scaled_side} if self.config.source == "video" else {}

    def read(self, clip: Clip, window: Window, rng: np.random.Generator | None) -> Tensor:
        """Computes or loads the fields, scales, crops and flips them; see `Modality.read`."""
        config = self.config
        steps = (np.arange(config.frames) + 0.5) / config.frames
        times = window.start + steps * (window.stop - window.start)
        field = self._computed(clip, times) if config.source == "video" else self._stored(clip, times)
        field = scaled(field, config.scaled_side, config.sides)
        draws = None if rng is None else rng.random(3)
        rest = np.subtract(field.shape[1:3], config.sides)
        corner = rest // 2
        if draws is not None and config.random_crop:
            corner = np.floor(draws[:2] * (rest + 1)).astype(int)
        (top, left), (height, width) = corner, config.sides
        field = field[:, top : top + height, left : left + width].clip(-config.bound, config.bound)
        if draws is not None and draws[2] < config.flip:
            field = field[:, :, ::-1] * np.array([-1, 1], np.float32)
        return torch.from_numpy(np.ascontiguousarray(field.transpose(3, 0, 1, 2), np.float16))

    def _computed(self, clip: Clip, times: np.ndarray) -> np.ndarray:
        """[T, h, w, 2] from pairs of frames."""
        config = self.config
        rate = clip.frame_rate
        if rate is None:
            raise MediaError(f"{clip.name}: a still, in which nothing moves; expected a video")
        apart = max(1, round(config.interval * rate)) / rate
        pairs = np.stack((times, times + apart), 1)
        frames = clip.frames(pairs.ravel().tolist(), short_side=config.scaled_side)
        return dense_flow(frames[::2], frames[1::2], config.preset) * np.float32(config.interval / apart)

    def _stored(self, clip: Clip, times: np.ndarray) -> np.ndarray:
        """[T, h, w, 2] out of an array or a folder, in pixels of the stored pictures."""
        config = self.config
        if len(clip.shape) != 4 or clip.shape[0] != 2 or 0 in clip.shape:
            raise MediaError(
                f"{clip.name}: an array of {list(clip.shape)}, expected [2, fields, height, width], or u and v of each"
            )
        index = np.clip(np.floor(times * self._rate(clip) + 1e-6), 0, clip.shape[1] - 1).astype(int)
        field = clip.array(index.tolist())
        if config.source == "jpeg":
            if field.max() > LEVELS:
                raise MediaError(
                    f"{clip.name}: levels up to {field.max():g}, expected 0 to {LEVELS}: pictures of 8 bits"
                )
            field = (field - NO_MOTION) * np.float32(2 * config.bound / LEVELS)
        if not np.isfinite(field).all():
            raise MediaError(f"{clip.name}: some displacements are missing or infinite; repair the file")
        return field.transpose(1, 2, 3, 0)

    def _rate(self, clip: Clip) -> float:
        """Stored fields a second."""
        return clip.frame_rate or self.config.rate

    def blank(self) -> Tensor:
        """No motion; see `Modality.blank`."""
        return torch.zeros(2, self.config.frames, *self.config.sides, dtype=torch.float16)

    def preprocessor(self) -> nn.Module:
        return FlowPreprocessor(self.config.deviation)

    def tokenizer(self, dim: int) -> Tokenizer:
        config = self.config
        size, patch = (config.frames, *config.sides), (config.tubelet, *config.patch_sides)
        return make_tokenizer(config.stem, 2, size, patch, dim)

    def draw(self, sample: Any, relevance: np.ndarray | None) -> Picture:
        """A strip of at most 8 fields, and all as an animation: hue is direction, saturation length."""
        field = sample.float().permute(1, 2, 3, 0).numpy()
        frames = flow_colours(field, float(np.quantile(np.hypot(field[..., 0], field[..., 1]), 0.99)))
        T, H, W, _ = frames.shape
        if relevance is not None and relevance.max() > 0:
            heat = spread(relevance / relevance.max(), self.config.patch_sides, (H, W))
            heat = np.repeat(heat, self.config.tubelet, 0)
            frames = overlay(frames, np.pad(heat, ((0, T - len(heat)), (0, 0), (0, 0))))
        shown = np.linspace(0, T - 1, min(T, STRIP)).round().astype(int)
        return Picture(stills=[np.concatenate(frames[shown], 1)], frames=list(frames) if T > 1 else ())


def _sizes(config: FlowConfig, clips: Iterable[tuple[Clip, Window | None]]) -> Iterator[tuple[int, int] | None]:
    """(height, width) of videos that can be read."""
    for clip, _ in clips if config.source == "video" else ():
        with suppress(MediaError):
            yield clip.size


class FlowPreprocessor(nn.Module):
    """Displacements in deviations: float32 [B, 2, T, H, W]."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def forward(self, batch: Tensor) -> Tensor:
        return batch.float() / self.std

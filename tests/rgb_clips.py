"""Clips and files for the tests of the rgb plugin."""

from pathlib import Path

import av
import numpy as np
import torch
from torch.nn import functional as F

from mbt_core.config import parse_modalities
from mbt_core.media import MediaError
from mbt_rgb.modality import Rgb

RELEASED = {"frames": 32, "stride": 2, "tubelet": 2, "scale_jitter": (0.9, 1.33), "colour_drop": 0.1}
SMALL = {"frames": 4, "seconds": 2.0, "size": 32, "patch": 16, "short_side": 40}
ALL_ON = SMALL | {"scale_jitter": (0.9, 1.33), "colour_drop": 0.5}


class Pattern:
    """A stand-in for a clip: shows the same smooth picture at all times, and remembers what it was asked for."""

    def __init__(self, height: int = 40, width: int = 60, duration: float | None = 10.0) -> None:
        rng = np.random.default_rng(1)
        coarse = torch.from_numpy(rng.random((1, 3, 6, 8), np.float32))
        picture = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True).clamp(0, 1)[0]
        self.picture = (picture.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        self.duration, self.size = duration, (height, width)
        self.asked: list[float] = []

    def duration_of(self, reads: str) -> float | None:
        return self.duration

    def frames(self, times, short_side=None, size=None) -> np.ndarray:
        self.asked, self.short_side = list(times), short_side
        return np.stack([self.picture] * len(times))


class Broken:
    def duration_of(self, reads: str) -> float:
        raise MediaError("gone")


def rgb(**settings) -> Rgb:
    return Rgb("rgb", parse_modalities({"rgb": settings})["rgb"])


def inputs(modality: Rgb, *samples) -> torch.Tensor:
    return modality.preprocessor()(modality.collate(samples))


def write_video(path: Path, frames: np.ndarray, fps: int = 25) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", fps, options={"qp": "0", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv444p"
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    return path


def write_png(path: Path, picture: np.ndarray) -> Path:
    with av.open(str(path), "w", format="image2") as out:
        stream = out.add_stream("png", 1)
        stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "rgb24"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    return path

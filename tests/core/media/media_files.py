"""Small real media files for the tests, written with PyAV: what each frame and sample holds is known."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

LOSSLESS = {"qp": "0", "preset": "ultrafast"}


def grey(index: int) -> int:
    """The grey level (0-255) of frame `index` of `counting`."""
    return 16 + 4 * (index % 56)


def counting(frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    """[frames, height, width, 3] uint8: frame i is filled with `grey(i)`."""
    levels = np.array([grey(i) for i in range(frames)], np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3)).copy()


def shown(frames: np.ndarray, count: int = 56) -> list[int]:
    """Which frame of `counting` each of [T, H, W, 3] `frames` is, by its mean grey level."""
    levels = np.array([grey(i) for i in range(count)])
    return [int(np.abs(levels - frame.mean()).argmin()) for frame in frames]


def sine(seconds: float, rate: int, hertz: float = 440.0, channels: int = 1) -> np.ndarray:
    """[channels, samples] float32 sine of amplitude 0.5 that starts at phase 0."""
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    return np.tile(wave.astype(np.float32), (channels, 1))


def clicks(seconds: float, rate: int, at: Sequence[float], channels: int = 1) -> np.ndarray:
    """[channels, samples] float32: silence with short Gaussian pulses centred on the times `at`."""
    time = np.arange(round(seconds * rate)) / rate
    wave = sum(0.8 * np.exp(-(((time - t) / 4e-4) ** 2) / 2) for t in at)
    return np.tile(np.asarray(wave, np.float32), (channels, 1))


def write_media(
    path: Path,
    frames: np.ndarray | None = None,
    audio: np.ndarray | None = None,
    *,
    fps: Fraction | int = 25,
    times: Sequence[float] | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    video_options: dict[str, str] | None = None,
    rotation: tuple[float, bool, bool] | None = None,
    time_base: Fraction | None = None,
    rate: int = 16000,
    audio_codec: str = "aac",
    audio_start: float = 0.0,
    video_first: bool = True,
    format: str | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Write [T, H, W, 3] uint8 RGB `frames` and/or [channels, samples] float32 `audio`; `times` makes the frame
    rate variable, `rotation` is (degrees counter-clockwise, hflip, vflip)."""
    with av.open(str(path), "w", format=format, options=options or {}) as out:
        streams: dict[str, Any] = {}
        for what in ("video", "audio") if video_first else ("audio", "video"):
            if what == "video" and frames is not None:
                streams[what] = video_stream(out, frames, fps, codec, pix_fmt, video_options, time_base)
                if rotation is not None:
                    streams[what].set_display_rotation(rotation[0], hflip=rotation[1], vflip=rotation[2])
            if what == "audio" and audio is not None:
                layout = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}[len(audio)]
                streams[what] = out.add_stream(audio_codec, rate=rate, layout=layout)
        if frames is not None:
            encode_video(out, streams["video"], frames, times, fps)
        if audio is not None:
            encode_audio(out, streams["audio"], audio, rate, audio_start)
    return path


def video_stream(
    out: Any, frames: np.ndarray, fps: Fraction | int, codec: str, pix_fmt: str,
    options: dict[str, str] | None, time_base: Fraction | None,
) -> Any:  # fmt: skip
    """A video stream for [T, H, W, 3] frames, lossless in H.264 unless `options` say otherwise."""
    stream = out.add_stream(codec, rate=fps)
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = pix_fmt
    stream.options = options if options is not None else (LOSSLESS if codec == "libx264" else {})
    stream.codec_context.time_base = time_base or 1 / Fraction(fps)
    return stream


def encode_video(out: Any, stream: Any, frames: np.ndarray, times: Sequence[float] | None, fps: Fraction | int) -> None:
    """Encode and mux all frames; frame i at i / fps seconds or at `times[i]`."""
    base = stream.codec_context.time_base
    for i, picture in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        if stream.pix_fmt != "rgb24":
            frame = frame.reformat(format=stream.pix_fmt)
        frame.pts = round(Fraction(i) / fps / base) if times is None else round(times[i] / base)
        frame.time_base = base
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def encode_audio(out: Any, stream: Any, audio: np.ndarray, rate: int, start: float = 0.0) -> None:
    """Encode and mux [channels, samples] float32 audio that starts at `start` seconds."""
    layout = stream.codec_context.layout.name
    target = stream.codec_context.format.name
    resampler = av.AudioResampler(format=target, layout=layout, rate=rate, frame_size=1024)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(audio.T).reshape(1, -1), format="flt", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, round(start * rate), Fraction(1, rate)
    for part in [*resampler.resample(frame), *resampler.resample(None)]:
        out.mux(stream.encode(part))
    out.mux(stream.encode(None))


def write_image(path: Path, picture: np.ndarray, pix_fmt: str = "rgb24") -> Path:
    """Write one [H, W, 3] uint8 RGB picture as .png, .jpg or .tiff."""
    codec = {".png": "png", ".jpg": "mjpeg", ".tiff": "tiff"}[path.suffix]
    context = av.CodecContext.create(codec, "w")
    context.height, context.width = picture.shape[:2]
    context.pix_fmt, context.time_base = pix_fmt, Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)
    path.write_bytes(b"".join(bytes(p) for p in [*context.encode(frame), *context.encode(None)]))
    return path


def numbered(frames: int, height: int = 48, width: int = 96) -> np.ndarray:
    """[frames, height, width, 3] uint8: frame i shows its number in binary, as six dark and bright columns."""
    bits = np.arange(frames)[:, None] >> np.arange(6) & 1
    columns = np.where(bits, 220, 30).astype(np.uint8).repeat(width // 6, 1)
    return np.broadcast_to(columns[:, None, :, None], (frames, height, width, 3)).copy()


def numbers(frames: np.ndarray) -> list[int]:
    """Which frame of `numbered` each of [T, H, W, 3] `frames` is, also of coarsely encoded ones."""
    columns = frames[:, 8:-8].reshape(len(frames), -1, 6, frames.shape[2] // 6, 3)[:, :, :, 4:-4]
    return ((columns.mean((1, 3, 4)) > 125) << np.arange(6)).sum(1).tolist()

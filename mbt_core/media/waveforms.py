"""The sound of a stream in a window, as mono at a given rate."""

from __future__ import annotations

import math
from typing import Any

import av
import numpy as np

from mbt_core.media.container import Container
from mbt_core.media.errors import MediaError

# Decoders need some packets (overlapping blocks, bit reservoirs) before what they give is right: Opus asks for 80 ms.
PRE_ROLL = 0.25  # seconds
FILTER_MARGIN = 64  # samples of the lower rate: more than half the length of swresample's filter
JITTER = 0.01  # seconds by which timestamps may differ from counting samples; beyond, there is a gap
SHORT = 0.5  # seconds by which sound may end before the file says it does
WITHOUT_GAPS = ("flac", "ogg", "mpegts", "mpeg")
ESTIMATED = ("mp3", "aac", "ac3", "eac3", "amr")  # formats whose length is guessed from the rate of their first bytes
MAX_RATE = 1_000_000


def waveform_in(container: Container, start: float, stop: float, rate: int) -> np.ndarray:
    """[round((stop - start) rate)] float32: see `Clip.waveform`.

    The sound at `rate` is one signal on the grid k / rate of the clip's time, and a window is a slice of it that
    starts at round(start rate). So windows agree where they overlap (up to what AAC fills with noise).

    libswresample resamples: from 44.1 to 16 kHz it damps a tone of 10 kHz, which would alias, by 97 dB, and
    torchaudio's default by 45 dB. It begins at a time where both grids have a sample.
    """
    first, count = round(start * rate), round((stop - start) * rate)
    margin = FILTER_MARGIN / min(rate, container.audio.sample_rate or rate)
    runs, own_rate = decoded_runs(container, first / rate - margin, (first + count) / rate + margin)
    check_whole(container, runs, own_rate, stop)
    return window_of(runs, own_rate, start, stop, rate, container.name)


def check_whole(container: Container, runs: list[tuple[int, np.ndarray]], rate: int, stop: float) -> None:
    """Raises `MediaError` if sound is missing that the file says it has: it would be taken for silence.

    Gaps in timestamps are gaps of the recording, but not in formats that are written as they come: what a damaged
    file's reader skips leaves them there.
    """
    form = container.input.format.name
    if len(runs) > 1 and form in WITHOUT_GAPS:
        end, next_begin = runs[0][0] + len(runs[0][1]), runs[1][0]
        raise MediaError(
            f"{container.name}: damaged: its sound from {end / rate:.2f} to {next_begin / rate:.2f} s is missing; if "
            "it was recorded so, write it as .mkv"
        )
    stated = None if form in ESTIMATED else container.end_of(container.audio, of_all=False)
    if stated is None:
        return
    found = max((at + len(samples) for at, samples in runs), default=0) / rate
    if min(stop, stated) - found > SHORT:
        raise MediaError(
            f"{container.name}: truncated or damaged: its sound ends at {found:.2f} s, and it says {stated:.2f} s"
        )


def window_of(
    runs: list[tuple[int, np.ndarray]], own_rate: int, start: float, stop: float, rate: int, name: str
) -> np.ndarray:
    """`waveform_in` for sound that is decoded.

    Args:
        runs: index of the first sample and the samples, float32, of unbroken runs; zeros between them. They reach past
            the window by more than `FILTER_MARGIN` samples of the lower rate, as far as there is sound.
        own_rate: of the runs.
        start, stop: seconds.
        rate: of the window.
        name: of the clip, for errors.
    """
    first, count = round(start * rate), round((stop - start) * rate)
    step = rate // math.gcd(rate, own_rate)
    filtered = math.ceil(FILTER_MARGIN * max(1.0, rate / own_rate))
    origin = (first - filtered) // step * step  # here both grids meet
    begin, end = origin * own_rate // rate, math.ceil((first + count + filtered) * own_rate / rate)
    source = np.zeros(end - begin, np.float32)
    for at, samples in runs:
        low, high = max(at, begin), min(at + len(samples), end)
        if low < high:
            source[low - begin : high - begin] = samples[low - at : high - at]
    window = resample(source, own_rate, rate)[first - origin :][:count]
    if not np.isfinite(window).all():
        raise MediaError(f"{name}: its sound has samples that are no numbers")
    return np.clip(window, -1.0, 1.0)


def decoded_runs(container: Container, start: float, stop: float) -> tuple[list[tuple[int, np.ndarray]], int]:
    """The sound from `start` to `stop` at its own rate: unbroken runs as (index of the first sample, [samples]
    float32 mono), and that rate. Index 0 is the clip's start."""
    chunks: list[tuple[float, np.ndarray]] = []
    rate = 0
    for at, frame in container.decode(container.audio, max(start - PRE_ROLL, 0.0)):
        if rate not in (0, frame.sample_rate) or not 0 < frame.sample_rate <= MAX_RATE:
            raise MediaError(f"{container.name}: unusable sample rate {frame.sample_rate} Hz")
        rate = frame.sample_rate
        chunks.append((at * rate, mono(frame)))
        if at >= stop:
            break
    return join(chunks, JITTER * rate), rate


def join(chunks: list[tuple[float, np.ndarray]], jitter: float) -> list[tuple[int, np.ndarray]]:
    """Put (position, [samples]) chunks that follow each other together.

    Positions may be rounded (Matroska: to milliseconds). The middle of their deviations from counting samples is
    what fits them all best, so it hardly depends on where decoding started.
    """
    groups: list[list[tuple[float, np.ndarray]]] = []
    counted = 0.0
    for at, samples in chunks:
        if not groups or abs(at - counted) > jitter:
            groups.append([])
            counted = at
        groups[-1].append((at, samples))
        counted += len(samples)
    runs = []
    for group in groups:
        lengths = [len(samples) for _, samples in group]
        deviations = np.array([at for at, _ in group]) - np.cumsum([0, *lengths[:-1]])
        origin = round(float(deviations.min() + deviations.max()) / 2)
        runs.append((origin, np.concatenate([samples for _, samples in group])))
    return runs


def all_channels(container: Container) -> np.ndarray:
    """[channels, samples] float32: the whole sound at its own rate, full scale being 1."""
    return np.concatenate([channels(frame) for _, frame in container.decode(container.audio, 0.0)], 1)


def mono(frame: Any) -> np.ndarray:
    """[samples] float32: the mean of the channels of a decoded frame, full scale being 1."""
    return channels(frame).mean(0)


def channels(frame: Any) -> np.ndarray:
    """[channels, samples] float32 of a decoded frame, full scale being 1."""
    data = frame.to_ndarray()
    if not frame.format.is_planar:
        data = data.reshape(frame.samples, -1).T
    if data.dtype.kind == "u":
        data = data.astype(np.float32) - 128
        scale = 128.0
    else:
        scale = 2.0 ** (8 * data.itemsize - 1) if data.dtype.kind == "i" else 1.0
    return data.astype(np.float32) / np.float32(scale)


def resample(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """[n] float32 at `rate` -> [about n new_rate / rate] float32; sample 0 stays at time 0."""
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=new_rate)
    frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
    frame.sample_rate = rate
    parts = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([part.to_ndarray()[0] for part in parts if part is not None])

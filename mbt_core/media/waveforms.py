"""The sound of a stream in a window, as mono at a given rate."""

from __future__ import annotations

import math
from typing import Any

import av
import numpy as np

from mbt_core.media.container import Container
from mbt_core.media.errors import MediaError
from mbt_core.media.placing import COARSE, JITTER, LEAD, STEADY, Chunk, Clock, Run, grid_of, place

# Decoders need some packets (overlapping blocks, bit reservoirs) before what they give is right: Opus asks for 80 ms.
PRE_ROLL = 0.25  # seconds
PRE_ROLL_SAMPLES = 6000  # at low rates MP3 reaches back for longer
OGG_TIMED = ("vorbis", "opus")  # codecs whose timestamps in Ogg are right from the first page after a seek
FILTER_MARGIN = 64  # samples of the lower rate: more than half the length of swresample's filter
SHORT = 0.5  # seconds by which sound may end before the file says it does
WITHOUT_GAPS = ("flac", "ogg", "mpegts", "mpeg")
# Formats whose length is guessed from the rate of their first bytes, or that count it in units of their own.
ESTIMATED = ("mp3", "aac", "ac3", "eac3", "amr", "avi")
DRIFTING = ("ac3", "eac3")  # formats whose timestamps are sums of lengths that were rounded
MAX_RATE = 1_000_000
AV_NUM_DATA_POINTERS = 8
VORBIS, BLOCK_SIZES = b"\x01vorbis", 21  # the identification header, and where in it the lengths of blocks are


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
    check_whole(container, runs, own_rate, start, stop)
    return window_of(runs, own_rate, start, stop, rate, container.name)


def check_whole(container: Container, runs: list[Run], rate: int, start: float, stop: float) -> None:
    """Raises `MediaError` if sound is missing that the file says it has: it would be taken for silence.

    Gaps in timestamps are gaps of the recording, but not in formats that are written as they come: what a damaged
    file's reader skips leaves them there.
    """
    form = container.input.format.name
    ends = [(at + len(samples)) / rate for at, samples in runs]
    if form in WITHOUT_GAPS:
        for end, (at, _) in zip(ends[:-1], runs[1:], strict=True):
            if max(end, at / rate) > start and min(end, at / rate) < stop:
                raise MediaError(
                    f"{container.name}: damaged: its sound from {end:.2f} to {at / rate:.2f} s is missing; if it was "
                    "recorded so, write it as .mkv"
                )
    if max(ends) >= stop - SHORT or form in ESTIMATED:
        return
    stated = container.end_of(container.audio, of_all=False)
    if stated is not None and min(stop, stated) - max(ends) > SHORT:
        raise MediaError(
            f"{container.name}: truncated or damaged: its sound ends at {max(ends):.2f} s, and it says {stated:.2f} s"
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


def decoded_runs(container: Container, start: float, stop: float) -> tuple[list[Run], int]:
    """The sound from `start` to `stop` at its own rate: unbroken runs as (index of the first sample, [samples]
    float32 mono), and that rate. Index 0 is the clip's start."""
    audio, form = container.audio, container.input.format.name
    codec, stated_rate, tick = audio.codec_context.name, audio.sample_rate or 0, float(audio.time_base)
    begin = start - pre_roll(form, codec, stated_rate)
    from_start = begin <= container.begin_of(audio)
    key, lead = ("grid", audio.index), None
    if key not in container.memo and (tick * stated_rate > COARSE or (form == "ogg" and codec not in OGG_TIMED)):
        lead = leading_chunks(container, stop if from_start else None)
        container.memo[key] = None
    if lead is not None and from_start:
        chunks, rate = lead
    else:
        chunks, rate = decoded_chunks(container, -math.inf if from_start else begin, stop)
    clock = Clock(rate, tick * rate, form in WITHOUT_GAPS, late=form == "mpeg" and codec.startswith("pcm"))
    if lead is not None:
        container.memo[key] = grid_of(lead[0], clock, vorbis_step(container.audio.codec_context))
    return place(chunks, clock, container.memo.get(key), from_start), rate


def leading_chunks(container: Container, stop: float | None) -> tuple[list[Chunk], int] | None:
    """`decoded_chunks` from the start to `stop`; without it just those that tell where frames are, None if damaged.

    Only after opening do decoders skip what an encoder has put before the start.
    """
    container.restart()
    try:
        return decoded_chunks(container, -math.inf, -math.inf if stop is None else stop, LEAD)
    except MediaError:
        if stop is not None:
            raise
        return None


def pre_roll(form: str, codec: str, rate: int) -> float:
    """Seconds before a window from which decoding it, and timing it, come out right.

    After a seek, some demuxers guess timestamps until a page or a packet has its own; what they make of compressed
    sound in .wav stays wrong.
    """
    if form == "ogg" and codec not in OGG_TIMED:
        return 16.0  # a page has 64 KB at most
    if form == "mpeg":
        return 60.0 if codec.startswith("pcm") else 2.0
    if form == "wav" and not codec.startswith("pcm"):
        return math.inf
    return max(PRE_ROLL, PRE_ROLL_SAMPLES / rate) if rate else PRE_ROLL


def decoded_chunks(container: Container, start: float, stop: float, least: int = 0) -> tuple[list[Chunk], int]:
    """(position, [samples] float32 mono) of decoded frames, the first at or before `start`, and their rate.

    They go on after `stop` until their timestamps are steady, and are at least so many, if there are.
    """
    chunks: list[Chunk] = []
    rate, steady, expected = 0, 0, 0.0
    drifting = container.input.format.name in DRIFTING
    for at, frame in container.decode(container.audio, start):
        if rate not in (0, frame.sample_rate) or not 0 < frame.sample_rate <= MAX_RATE:
            raise MediaError(f"{container.name}: unusable sample rate {frame.sample_rate} Hz")
        rate = frame.sample_rate
        stretch = frame.samples / rate / float(frame.duration * frame.time_base) if drifting and frame.duration else 1.0
        chunks.append((at * stretch * rate, mono(frame)))
        steady = steady + 1 if abs(at - expected) <= JITTER else 0
        expected = at + frame.samples / rate
        if at >= stop and steady > STEADY // 2 and len(chunks) >= least:
            break
    return chunks, rate


def vorbis_step(context: Any) -> int:
    """Of how many samples all lengths of Vorbis' frames are multiples; 0 for other codecs.

    Blocks overlap by a quarter of the shorter one; its identification header states their lengths (Vorbis I, 4.2.2).
    """
    header = (context.extradata or b"").partition(VORBIS)[2]
    return (1 << (header[BLOCK_SIZES] & 15)) // 4 if len(header) > BLOCK_SIZES else 0


def all_channels(container: Container) -> np.ndarray:
    """[channels, samples] float32: the whole sound at its own rate, full scale being 1."""
    return np.concatenate([channels(frame) for _, frame in container.decode(container.audio, 0.0)], 1)


def mono(frame: Any) -> np.ndarray:
    """[samples] float32: the mean of the channels of a decoded frame, full scale being 1."""
    samples = channels(frame)
    # for these few samples, the same by ndarray.mean takes as long as decoding them
    return samples[0] if len(samples) == 1 else np.add.reduce(samples) / np.float32(len(samples))


def channels(frame: Any) -> np.ndarray:
    """[channels, samples] float32 of a decoded frame, full scale being 1."""
    count = frame.layout.nb_channels
    if frame.format.is_planar and count >= AV_NUM_DATA_POINTERS:
        # PyAV counts a plane too many, and reads memory that is not its own
        frame = packed(frame)
    data = frame.to_ndarray()
    if not frame.format.is_planar:
        data = data.reshape(frame.samples, -1).T
    if data.dtype.kind == "f":
        return data.astype(np.float32, copy=False)
    if data.dtype.kind == "u":
        return (data.astype(np.float32) - 128) / np.float32(128)
    return data.astype(np.float32) / np.float32(2.0 ** (8 * data.itemsize - 1))


def packed(frame: Any) -> Any:
    """The same frame with the samples of all channels in one plane."""
    resampler = av.AudioResampler(frame.format.packed, frame.layout, frame.sample_rate)
    return resampler.resample(frame)[0]


def resample(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """[n] float32 at `rate` -> [about n new_rate / rate] float32; sample 0 stays at time 0."""
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=new_rate)
    frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
    frame.sample_rate = rate
    parts = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([part.to_ndarray()[0] for part in parts if part is not None])

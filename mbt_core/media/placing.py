"""Where decoded sound lies in time: samples are counted, and timestamps say where counting starts.

A timestamp can be rounded (Matroska: to milliseconds), and that of a single frame can be wrong: demuxers guess some of
them (Vorbis and FLAC in Ogg, program streams). So a run of frames is placed by the median of what its timestamps say,
and only a deviation that persists is a gap.

Positions and lengths are samples at the stream's own rate; 0 is the clip's start.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

JITTER = 0.01  # seconds by which timestamps may differ from counting samples; beyond, there is a gap
STEADY = 5  # frames of the running median: what lasts for less than three of them does not persist
LEAD = 12  # frames at a stream's start that tell where it begins
COARSE = 2  # samples of a tick from which on a timestamp does not tell a sample
ROUNDING = 0.501  # of a tick: by how much a rounded timestamp is wrong at most
LOST = 0.9  # of a frame: where a format keeps no gaps, what is lost is at least one packet
LATE = 3  # frames by which sound may be late where timestamps are rough, without a loss

Chunk = tuple[float, np.ndarray]
Run = tuple[int, np.ndarray]


@dataclass(frozen=True)
class Clock:
    """How a stream tells the time.

    Args:
        rate: samples a second.
        tick: samples of one step of its timestamps.
        gapless: the format is written as it comes, so that a gap is a loss.
        late: timestamps are rough: late by up to some frames, and right now and then.
    """

    rate: int
    tick: float
    gapless: bool
    late: bool = False

    @property
    def jitter(self) -> float:
        """Samples by which a timestamp may differ from counting."""
        return JITTER * self.rate

    @property
    def is_coarse(self) -> bool:
        """Whether timestamps are too coarse to tell a sample."""
        return self.tick > COARSE


@dataclass(frozen=True)
class Grid:
    """The positions at which frames of a stream begin, as its first frames tell.

    Args:
        origin: position of the first frame.
        phase: position of the second one, as the first may be cut.
        step: common divisor of the lengths of frames; 0: unknown.
    """

    origin: int
    phase: int
    step: int


def grid_of(chunks: Sequence[Chunk], clock: Clock, step: int = 0) -> Grid:
    """The grid of a stream that starts with `chunks`; `step` where it is known."""
    lead = chunks[:LEAD]
    deviations = deviations_of(lead)
    origin = float(deviations[0])
    near = near_median(deviations, clock)
    # each rounded timestamp bounds the origin: within the bounds of all, the first one is as good as any
    rounding = ROUNDING * clock.tick
    low, high = near.max() - rounding, near.min() + rounding
    if low <= high:
        origin = min(max(origin, float(low)), float(high))
    elif abs(origin - median(near)) > 2 * clock.tick:
        origin = median(near)
    first = round(origin)
    return Grid(first, first + len(lead[0][1]), step or common_step(lead))


def common_step(chunks: Sequence[Chunk]) -> int:
    """The greatest common divisor of the lengths of chunks but for the first and the last, which may be cut."""
    return math.gcd(*(len(samples) for _, samples in chunks[1:-1]))


def deviations_of(chunks: Sequence[Chunk]) -> np.ndarray:
    """[chunks] float64: by how many samples each timestamp is later than counting from 0."""
    lengths = [len(samples) for _, samples in chunks]
    return np.array([at for at, _ in chunks]) - np.cumsum([0, *lengths[:-1]])


def median(values: np.ndarray) -> float:
    """The lower one of the two middle values if there are two, so that it is one of them."""
    return float(np.partition(values, (len(values) - 1) // 2)[(len(values) - 1) // 2])


def near_median(deviations: np.ndarray, clock: Clock) -> np.ndarray:
    """Those that are within a tick of their median, as rounding leaves them."""
    return deviations[np.abs(deviations - median(deviations)) <= 2 * ROUNDING * clock.tick]


def place(chunks: Sequence[Chunk], clock: Clock, grid: Grid | None, from_start: bool) -> list[Run]:
    """Unbroken runs (index of the first sample, [samples]) of chunks that follow each other.

    Args:
        chunks: position as its timestamp tells, and samples, of each decoded frame.
        clock: of the stream.
        grid: of the stream, if it is known.
        from_start: the first chunk is the first of the stream.
    """
    deviations = deviations_of(chunks)
    bounds = stretches(deviations, clock.jitter)
    if clock.gapless:
        frame = median(np.array([len(samples) for _, samples in chunks])) * (LATE if clock.late else 1)
        bounds = losses(deviations, bounds, max(clock.jitter, LOST * frame), clock.rate if from_start else math.inf)
    runs = []
    if not (from_start or clock.gapless):
        # of frames from beyond a gap that are too few to persist it is not known when they end
        lead = deviations[: bounds[1]]
        bounds[0] = int((np.abs(lead - median(lead)) <= clock.jitter).argmax())
    for low, high in pairwise(bounds):
        samples = np.concatenate([samples for _, samples in chunks[low:high]])
        runs.append((origin_of(chunks[low:high], clock, grid, from_start and low == 0), samples))
    return runs


def stretches(deviations: np.ndarray, jitter: float) -> list[int]:
    """Bounds of the stretches in which deviations stay within `jitter`: indices from 0 to their number."""
    steady = deviations
    if len(deviations) > STEADY // 2:
        padded = np.pad(deviations, STEADY // 2, "reflect")
        steady = np.median(np.lib.stride_tricks.sliding_window_view(padded, STEADY), 1)
    bounds = [0]
    level = float(steady[0])
    for i, deviation in enumerate(steady.tolist()):
        if abs(deviation - level) > jitter:
            bounds.append(i)
            level = deviation
    return [*bounds, len(deviations)]


def losses(deviations: np.ndarray, bounds: list[int], lost: float, back: float) -> list[int]:
    """The bounds of `stretches` at which sound is missing, by at least `lost` samples, or timestamps start again.

    Sound that is written as it comes cannot overlap: a stretch that would overlap what follows it, by up to `back`
    samples, was given timestamps that are too late, as demuxers do that guess them.
    """
    levels = [median(deviations[low:high]) for low, high in pairwise(bounds)]
    level, cuts = levels[-1], [bounds[-1]]
    for bound, before in zip(bounds[-2:0:-1], levels[-2::-1], strict=True):
        if lost <= level - before or before - level > back:
            cuts.append(bound)
            level = before
        else:
            level = min(level, before)
    return [0, *reversed(cuts)]


def origin_of(chunks: Sequence[Chunk], clock: Clock, grid: Grid | None, is_first: bool) -> int:
    """The index of the first sample of a run; `is_first`: of the first one of the stream."""
    deviations = deviations_of(chunks)
    if clock.late:
        return round(float(deviations.min()))
    near = near_median(deviations, clock)
    origin = float(near.min() + near.max()) / 2 if clock.is_coarse else median(deviations)
    if grid is None:
        return round(origin)
    reach = 2 * clock.tick
    if is_first and abs(origin - grid.origin) <= reach:
        return grid.origin
    step = math.gcd(grid.step, common_step(chunks))
    if step > clock.tick:
        # the first chunk may be cut: the second one is on the grid
        second = origin + len(chunks[0][1])
        shift = grid.phase + round((second - grid.phase) / step) * step - second
        if abs(shift) <= (step / 2 if clock.gapless else reach):
            origin += shift
    return round(origin)

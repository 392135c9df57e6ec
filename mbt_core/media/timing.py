"""When the decoded frames of a stream are shown, also where the container does not say it.

AVI, MXF, ASF and raw streams hold no presentation times, and a stream with B-frames is not stored in the order in which
it is shown. Then a frame is shown when the packet after which the decoder gives it is due, as FFmpeg has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from enum import Enum
from itertools import islice, pairwise
from typing import Any

import av
from av.format import Flags

UNTIMED = ("avi",)  # formats without presentation times: FFmpeg guesses them
PACKING = ("mpeg4",)  # codecs of which a packet can hold two frames, and the next none: their times are then swapped
LOOK_AHEAD = 32  # packets within which B-frames show
SMALLEST_STEP = 1e-3  # seconds between frames whose times do not rise


class Timing(Enum):
    """What tells the time of a frame."""

    PRESENTATION = "its presentation time, or counting from the last one that has it"
    DECODING = "the decoding time of the packet after which it comes"
    COUNTING = "its number and the frame rate"


class FrameTimes:
    """From when on each frame is shown, called with the decoded frames in turn; those of video always rise.

    Args:
        stream: the PyAV stream.
        timing: what to go by.
        zero: the time of the clip's start on the container's clock, in seconds.
        from_start: whether the first frame is the first of the stream.
    """

    def __init__(self, stream: Any, timing: Timing, zero: float, from_start: bool) -> None:
        self.timing = timing
        self.zero = zero
        self.tick = float(stream.time_base)
        # seconds of a frame of video, 0 if unknown
        self.length = float(1 / stream.average_rate) if stream.type == "video" and stream.average_rate else 0.0
        self.step = min(self.tick, SMALLEST_STEP) if stream.type == "video" else -math.inf
        self.latest = -math.inf
        self.expected = 0.0 if from_start else None  # the time of the next frame; None if unknown

    def __call__(self, frame: Any) -> float | None:
        """Seconds of the clip; None before the first timestamp after a seek."""
        stamp = frame.pts if self.timing is Timing.PRESENTATION else None
        if self.timing is Timing.DECODING:
            stamp = frame.dts
        at = self.expected if stamp is None else stamp * self.tick - self.zero
        if at is None:
            return None
        self.latest = max(at, self.latest + self.step)
        length = frame.samples / frame.sample_rate if isinstance(frame, av.AudioFrame) else self.length
        self.expected = self.latest + length
        return self.latest


def timing_of(form: Any, stream: Any, first_packets: Callable[[], Iterator[Any]]) -> Timing:
    """What to go by for `stream` of a file of the PyAV format `form`. With B-frames its first packets are looked at.

    Presentation times go back and forth from packet to packet, in the order of decoding. Where they only rise, either
    there are no B-frames after all, or they are decoding times; then the order of the decoded frames tells.
    """
    if stream.type == "video" and form.flags & Flags.no_timestamps.value:
        return Timing.COUNTING
    if stream.type != "video" or not stream.codec_context.has_b_frames:
        return Timing.PRESENTATION
    if form.name in UNTIMED:
        return Timing.DECODING
    is_packing = stream.codec_context.name in PACKING  # looking at packets may open the file anew, without `stream`
    packets, latest = [], -math.inf
    for packet in islice(first_packets(), LOOK_AHEAD):
        if packet.pts is None and packet.dts is not None:
            return Timing.DECODING
        if packet.pts is not None and packet.pts < latest and not is_packing:
            return Timing.PRESENTATION
        latest = latest if packet.pts is None else packet.pts
        packets.append(packet)
    stamps = [frame.pts for frame in decoded(packets) if frame.pts is not None]
    return Timing.DECODING if any(b < a for a, b in pairwise(stamps)) else Timing.PRESENTATION


def decoded(packets: list[Any]) -> list[Any]:
    """The frames of packets up to one that does not decode."""
    frames = []
    try:
        for packet in packets:
            frames += packet.decode()
    except av.FFmpegError:
        pass
    return frames

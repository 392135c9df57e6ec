"""Streams that a file declares and that hold nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import av
from av.format import Flags
from av.stream import Discard

FIRST_BYTES = 64 << 20  # of packets, read from the start
BYTES_AT_PLACE = 4 << 20  # of packets, read at each of some times further on
PLACES = 8
WRITTEN = re.compile("[1-9]")  # in a length that a writer of Matroska adds at the end, having seen packets


def unsure(container: Any, streams: Sequence[Any]) -> list[Any]:
    """Those of `streams` of which the headers leave open whether there is a packet of them.

    In a file with a single stream that has a length, or of a format without timestamps, there is one.
    """
    if len(streams) == 1 and (streams[0].duration or container.format.flags & Flags.no_timestamps.value):
        return []
    return [
        stream for stream in streams if not stream.frames and not WRITTEN.search(stream.metadata.get("DURATION", ""))
    ]


def empty_streams(container: Any, streams: Sequence[Any], check_clock: Callable[[], None]) -> set[int]:
    """The indices of those of `streams` that have no packets.

    Reads on from the start until each has shown one, usually a few packets. Of a file of more than 64 MiB the rest is
    looked at in 7 places only; a stream that has packets nowhere there counts as empty.
    """
    missing = {stream.index for stream in streams}
    for stream in container.streams:
        stream.discard = Discard.default if stream.index in missing else Discard.all
    if not _read(container, streams, missing, FIRST_BYTES, check_clock):
        return missing
    for place in range(1, PLACES):
        try:
            container.seek((container.start_time or 0) + (container.duration or 0) * place // PLACES)
        except av.FFmpegError:
            continue
        _read(container, streams, missing, BYTES_AT_PLACE, check_clock)
        if not missing:
            break
    return missing


def _read(
    container: Any, streams: Sequence[Any], missing: set[int], most: int, check_clock: Callable[[], None]
) -> bool:
    """Take streams whose packets come out of `missing`, until it is empty or `most` bytes are read; whether so much
    was read in vain."""
    size = 0
    try:
        for packet in container.demux(*streams):
            check_clock()
            size += packet.size
            if packet.size:
                missing.discard(packet.stream_index)
            if not missing or size > most:
                break
    except av.InvalidDataError:  # damage further on is said when it is read
        pass
    return bool(missing) and size > most

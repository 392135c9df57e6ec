"""When a stream ends: what files state of it, and what their packets say where that is not to be relied on."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import av
from av.format import Flags

if TYPE_CHECKING:
    from mbt_core.media.container import Container

TAIL = (2.0, 20.0)  # seconds before the end, from which on the last packets are looked for, tried in turn
FILLING = 0.1  # seconds of it that the last packets of MP3 may hold
# Formats whose stated lengths are guessed from few packets, are understood in several ways, or depend on the writer.
DOUBTED = ("matroska", "mpeg", "avi", "flv", "asf", "mp3", "aac", "ac3", "eac3", "amr")


def stated_ends(container: Container, stream: Any) -> list[float]:
    """When `stream` may end by what the file states, in seconds: after its begin, and after the clip's."""
    begin = container.begin_of(stream)
    if stream.duration is not None:
        # what is to be skipped at the start of Opus counts as a part of the length, but not of the time
        length = (stream.duration - skipped_by_opus(stream)) * float(stream.time_base)
        # ASF states the length of the file, for each stream
        ends = [length if container.input.format.name == "asf" else begin + length]
    else:
        tag = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", ""))  # Matroska
        told = 3600 * int(tag[1]) + 60 * int(tag[2]) + float(tag[3]) if tag else 0.0
        # the end, as FFmpeg writes it, or the length, as mkvmerge does
        ends = [min(end, container.length or end) for end in (told - container.zero, begin + told) if told]
    return [end for end in ends if end > max(begin, 0.0)]


def skipped_by_opus(stream: Any) -> int:
    """Samples at the start of an Ogg Opus stream that are not played (RFC 7845, 5.1); 0 for other streams."""
    header = (stream.codec_context.extradata or b"") if stream.codec_context is not None else b""
    is_ogg = stream.container.format.name == "ogg" and header.startswith(b"OpusHead")
    return int.from_bytes(header[10:12], "little") if is_ogg else 0


def believed_end(container: Container, stream: Any) -> float:
    """When `stream` ends, in seconds: as the file states it, if that is within its last packet, or else there.

    Raises:
        MediaError: the time is over.
    """
    stated, form, key = stated_ends(container, stream), container.input.format.name, ("end", stream.index)
    if stated and not form.startswith(DOUBTED):
        return stated[0]
    if key not in container.memo:
        is_counted = stream.type == "video" and bool(container.input.format.flags & Flags.no_timestamps.value)
        last = None if is_counted else last_packet(container, stream, stated[0] if stated else container.length)
        if is_counted:
            container.memo[key] = container.last_time
        elif last is None:
            container.memo[key] = stated[0] if stated else container.last_time
        else:
            begin, end = last
            # the last frames of MP3 may be nothing but filling, and program streams state a guess
            slack = FILLING if form == "mp3" else 0.0
            within = [at for at in stated if begin - slack <= at <= end + slack and not form.startswith("mpeg")]
            container.memo[key] = within[0] if within else end
    return container.memo[key]


def last_packet(container: Container, stream: Any, about: float | None) -> tuple[float, float] | None:
    """When the last packet of `stream` begins and ends, in seconds; None if packets do not tell the time.

    One that does not tell its length is taken to be as long as the one before.

    Args:
        about: seconds from shortly before which on it is looked for; None: through the file.
    """
    index, begin = stream.index, container.begin_of(stream)
    origins = [] if about is None else [about - back for back in TAIL if about - back > begin]
    for origin in [*origins, None]:
        container.used.add(-1)  # no stream, but no longer the start
        container.select(container.input.streams[index])
        try:
            container._seek(index, origin)
        except av.FFmpegError:
            continue
        before = last = end = -math.inf
        tick = float(container.input.streams[index].time_base)
        for packet in container.input.demux(container.input.streams[index]):
            container._check_clock()
            if packet.pts is None:
                continue
            at = packet.pts * tick - container.zero
            before, last = (last, at) if at > last else (max(before, at), last)
            end = max(end, at + (packet.duration or 0) * tick)
        if math.isfinite(last) and (end > last or math.isfinite(before) or origin is None):
            return last, end if end > last or not math.isfinite(before) else last + last - before
    return None

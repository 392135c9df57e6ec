"""An opened video or sound file: its streams, its time axis, and decoded frames from any time on."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from functools import cached_property
from types import SimpleNamespace
from typing import Any, BinaryIO

import av
from av.format import Flags
from av.stream import Discard, Disposition

from mbt_core.media.ends import stated_ends
from mbt_core.media.errors import MediaError, reason
from mbt_core.media.lengths import is_truncated
from mbt_core.media.presence import empty_streams, unsure
from mbt_core.media.probing import probe_options
from mbt_core.media.timing import FrameTimes, Timing, timing_of
from mbt_core.media.trailing import MOST, Trailer

# Formats that hold their own media. Left out are playlists and scripts (hls, concat, ...), which name other files
# or hosts, and demuxers that take anything for media (text screens, raw samples).
FORMATS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,h264,hevc,m4v,ivf,obu,flv,asf,ogg,nut,mxf,dv,rm,mjpeg,gif,apng,"
    "yuv4mpegpipe,wav,w64,flac,mp3,aac,ac3,eac3,aiff,au,caf,amr,wv,tta,ape,"
    "png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,tiff_pipe,ppm_pipe,pgm_pipe,j2k_pipe"
)
OPEN_OPTIONS = {"format_whitelist": FORMATS}
# PyAV 19 takes tags that are not UTF-8 without being told to.
TOLERANT = {"metadata_errors": "surrogateescape"} if int(av.__version__.split(".")[0]) < 19 else {}
MAX_PIXELS = 1 << 27  # of one picture; a damaged header can claim any size
SMALL_PICTURE = 1 << 20  # pixels of a still that stays decoded while its file is open
# Damage is an error and not a concealed picture.
DECODER_OPTIONS = {"err_detect": "crccheck+explode", "max_pixels": str(MAX_PIXELS)}
LENIENT = {
    **DECODER_OPTIONS,
    "err_detect": "crccheck",
}  # the decoder of TIFF takes tags that it does not know for damage
SEEK_BACK = (0.0, 1.0, 4.0, 16.0, 64.0)  # seconds before the wanted time, tried in turn
# Formats that date some frames only: FFmpeg misdates what comes right after a seek. Small files are read through.
UNDATED = ("mpeg",)
READ_THROUGH = 64 << 20  # bytes of such a file
OPEN_GOP = 5.0  # seconds before a keyframe where another one is expected
WITHOUT_START = ("asf",)  # formats in which seeking does not lead to the start; nor if it need not be a keyframe
PADDING = 0.1  # seconds of sound in a stated length that encoders add and decoders take away
BEFORE_ALL = -(1 << 40)  # a timestamp before any first one


class Container:
    """One opened file.

    Times are seconds from the start of the container, which is the earliest timestamp of its streams: so these stay
    in step with each other.

    Args:
        file: a seekable binary file; it is left open.
        name: what errors call the file.
        suffix: of the file's name; a hint at its format.
        timeout: seconds of wall time until a call gives up, counted from `start_clock`.
    """

    def __init__(self, file: BinaryIO, name: str, suffix: str, timeout: float) -> None:
        self.file = file
        self.memo: dict[tuple[str, int], Any] = {}  # what is found out once of a stream: (what, its index)
        self.name = name
        # Not the file itself, as FFmpeg takes a "%" in its name for the pattern of a series.
        hint = suffix if suffix[1:].isalnum() else ""
        self.reader = SimpleNamespace(read=file.read, seek=file.seek, tell=file.tell, name=f"clip{hint}")
        self.timeout = timeout
        self.input: Any = None
        self._picture: tuple[float, Any] | None = None
        self.empty: set[int] | None = None  # indices of streams without packets; None: not known yet
        self.timings: dict[int, Timing] = {}  # of streams read from
        self.start_clock()
        self.size = file.seek(0, 2)
        if is_truncated(file, self._check_clock):
            raise MediaError(f"{name}: truncated: the file is shorter than it says")
        self.options = OPEN_OPTIONS | probe_options(file)
        self._open()
        if self.video is None and self.audio is None:
            empty = "; its streams are empty" if self.empty else ""
            raise MediaError(f"{name}: it holds neither video nor sound{empty}")

    def _open(self) -> None:
        """Open the file, also anew: then decoders start afresh, and streams taken before must not be touched."""
        self.close()
        self.file.seek(0)
        self.input = self._opened()
        self.used: set[int] = set()  # indices of streams read from; -1: of none in particular
        self.zero = (self.input.start_time or 0) / av.time_base
        self.is_still = self.input.format.name.endswith("_pipe")
        self.is_read_through = self.input.format.name in UNDATED and self.size <= READ_THROUGH
        pictures = [s for s in self.input.streams.video if not s.disposition & Disposition.attached_pic]
        sounds = sorted(self.input.streams.audio, key=lambda s: not s.disposition & Disposition.default)
        if self.empty is None:
            self.empty = self._empty_of([*pictures, *sounds])
        self.video: Any = next((s for s in pictures if s.index not in self.empty), None)
        self.audio: Any = next((s for s in sounds if s.index not in self.empty), None)
        # AAC fills bands with noise, and flushing the decoder does not take the noise back to its start.
        self.noisy: set[int] = set()
        for stream in (self.video, self.audio):
            if stream is not None and stream.codec_context is not None:
                if stream.codec_context.name.startswith("aac"):
                    self.noisy.add(stream.index)
                if stream.type != "video":
                    # PyAV frees the map of channels in an order of their own with each look at it: look once, then
                    # have none. Only how many there are matters here.
                    stream.codec_context.layout = f"{stream.codec_context.channels}C"
                # Loaders run one process per core, and threads inside the decoder only get in their way.
                stream.codec_context.thread_count = 1
                stream.codec_context.options = LENIENT if stream.codec_context.name == "tiff" else DECODER_OPTIONS

    def _opened(self) -> Any:
        """The file, opened by PyAV at its start."""
        options = {"container_options": self.options, "timeout": self.timeout, **TOLERANT}
        try:
            return av.open(self.reader, **options)
        except av.ArgumentError:  # by such a suffix FFmpeg takes a picture for one of a series of files
            self.reader.name = "clip"
            self.file.seek(0)
            return av.open(self.reader, **options)

    def _empty_of(self, streams: list[Any]) -> set[int]:
        """The indices of those of `streams` that have no packets."""
        doubtful = [] if self.is_still else unsure(self.input, streams)
        if not doubtful:
            return set()
        self.used.add(-1)
        return empty_streams(self.input, doubtful, self._check_clock)

    def close(self) -> None:
        """Free the decoders."""
        if self.input is not None:
            self.input.close()

    def start_clock(self) -> None:
        """From here on there are `timeout` seconds."""
        self.deadline = time.monotonic() + self.timeout

    def begin_of(self, stream: Any) -> float:
        """When `stream` begins, in seconds."""
        return 0.0 if stream.start_time is None else stream.start_time * float(stream.time_base) - self.zero

    def end_of(self, stream: Any, of_all: bool = True) -> float | None:
        """When `stream` ends, in seconds, as the file states it; None if it does not, or it cannot be.

        Without a statement of its own it ends, with `of_all`, when the file does. See `mbt_core.media.ends` for what
        packets say.
        """
        ends = stated_ends(self, stream)
        return ends[0] if ends else self.length if of_all else None

    @property
    def length(self) -> float | None:
        """Seconds from the start of the clip to the end of all streams, as the file states it; None if it does not."""
        return self.input.duration / av.time_base if (self.input.duration or 0) > 0 else None

    def select(self, stream: Any) -> None:
        """Read only packets of `stream`; seeking, too, looks for timestamps of such streams alone."""
        for other in self.input.streams:
            other.discard = Discard.default if other.index == stream.index else Discard.all

    def restart(self) -> None:
        """Open the file anew, unless nothing has been read of it."""
        if self.used:
            self._open()

    def decode(self, stream: Any, start: float) -> Iterator[tuple[float, Any]]:
        """Decoded frames of `stream` with their times, in the order in which they are shown.

        The first one is at or before `start`, unless the stream begins later. Usually this costs one seek to the
        keyframe before `start`.

        Raises:
            MediaError: there is nothing to decode, the data is corrupt, or the time is over.
        """
        if self.is_still and self._picture is not None:
            yield self._picture
            return
        # Seeking may open the file anew; PyAV would then read freed memory for `stream`.
        index, kind = stream.index, stream.type
        self._find_timing(index)
        origins = self._origins(self.input.streams[index], start)
        for origin in origins:
            frames = self._decode_from(index, origin)
            first = next(frames, None)
            if first is not None and (origin is None or first[0] <= start):
                yield first
                yield from self._only(first, frames) if self.is_still else frames
                return
        raise MediaError(f"{self.name}: cannot decode anything of its {kind} stream")

    def _only(self, first: tuple[float, Any], others: Iterator[tuple[float, Any]]) -> Iterator[tuple[float, Any]]:
        """The other pictures of a still's file. If there are none, and the first is small, it stays decoded."""
        is_alone = True
        for other in others:
            is_alone = False
            yield other
        if is_alone and first[1].width * first[1].height <= SMALL_PICTURE:
            self._picture = first

    def _origins(self, stream: Any, start: float) -> list[float | None]:
        """Times to seek to, in turn, until a decoded frame is at or before `start`; None is the very start."""
        begin, end = self.begin_of(stream), self.end_of(stream)
        if end is None or self.timings[stream.index] is Timing.COUNTING:
            return [None]
        backs = SEEK_BACK if self.input.format.name not in UNDATED or self.is_read_through else SEEK_BACK[2:]
        return [*(min(start, end) - back for back in backs if min(start, end) - back > begin), None]

    def _find_timing(self, index: int) -> None:
        """Find what tells the times of the frames of stream `index`, if that is not known yet."""
        if index not in self.timings:
            form, stream = self.input.format, self.input.streams[index]
            self.timings[index] = timing_of(form, stream, lambda: self._first_packets(index))

    def _first_packets(self, index: int) -> Iterator[Any]:
        self._seek(index, None)
        for packet in self.input.demux(self.input.streams[index]):
            self._check_clock()
            yield packet

    def _decode_from(
        self, index: int, origin: float | None, strict_from: int | None = None
    ) -> Iterator[tuple[float, Any]]:
        """Decode from the keyframe before `origin` on; nothing comes if that place cannot be sought.

        What is shown before that keyframe, or before the timestamp `strict_from`, may fail to decode: it can be made
        from pictures before the keyframe (open GOP).
        """
        try:
            self._seek(index, origin)
        except av.FFmpegError:
            if strict_from is None:
                return
            origin = None
            self._seek(index, None)
        stream = self.input.streams[index]
        timing = self.timings[index]
        times, trailer = FrameTimes(stream, timing, self.zero, origin is None), Trailer(self.input.format.name)
        begun, key = False, None
        packets = self._packets(stream)
        if origin is not None and self.is_read_through:
            packets = from_keyframe(packets, round((origin + self.zero) / times.tick))
        for packet in packets:
            stamp = None if packet is None else packet.dts if timing is Timing.DECODING else packet.pts
            if packet is not None and not begun and packet.is_keyframe:
                begun, key = True, stamp
            if not begun and origin is not None:
                continue
            try:
                frames = stream.codec_context.decode(packet)
            except av.FFmpegError as error:
                excused = not begun or is_before(stamp, key if strict_from is None else strict_from)
                if excused or trailer.takes(packet, error):
                    continue
                if origin is not None and strict_from is None:
                    # Later pictures, too, may expect that those before the keyframe are known.
                    again = self._decode_from(index, self._earlier(stream, key), strict_from=key)
                    yield from (found for found in again if found[0] > times.latest)
                    return
                raise self._damaged(stream, times, error) from error
            if frames and trailer.error is not None:
                raise self._damaged(stream, times, trailer.error) from trailer.error
            trailer.follows(packet)
            for frame in frames:
                frame.time_base = stream.time_base  # those that come at the end have none
                at = times(frame)
                if at is not None:
                    yield at, frame

    def _packets(self, stream: Any) -> Iterator[Any]:
        """The packets of `stream` from here on, then None, on which a decoder gives what it holds back.

        Empty packets are left out: they stand for no frame, and decoders take them for the end.
        """
        position, end, length, tick = 0, 0.0, 0.0, float(stream.time_base)
        try:
            for packet in self.input.demux(stream):
                self._check_clock()
                if packet.size:
                    yield packet
                    if packet.pos is not None and packet.pts is not None and packet.duration:
                        position, length = packet.pos + packet.size, packet.duration * tick
                        end = packet.pts * tick - self.zero + length
        except av.InvalidDataError:
            stated, spare = self.end_of(stream, of_all=False), length / 2 if stream.type == "video" else PADDING
            if self.size - position > MOST or stated is None or end < stated - spare:
                raise
        yield None

    def _earlier(self, stream: Any, key: int | None) -> float | None:
        """Where to decode from if what follows the keyframe at timestamp `key` needs what is before it."""
        origin = -math.inf if key is None else key * float(stream.time_base) - self.zero - OPEN_GOP
        return origin if origin > self.begin_of(stream) else None

    def _damaged(self, stream: Any, times: FrameTimes, error: Exception) -> MediaError:
        after = f"after {times.expected:.2f} s" if times.expected is not None else "from where it was sought"
        return MediaError(f"{self.name}: cannot decode its {stream.type} {after}: {reason(error)}")

    def _seek(self, index: int, origin: float | None) -> None:
        """Go to the keyframe before `origin`, or to the very start; read only packets of stream `index` from there.

        Of a file that is read through, it is always the start.
        """
        by_seeking = self.timings.get(index) is not Timing.COUNTING and self.input.format.name not in WITHOUT_START
        if index in self.used & self.noisy or (origin is None and self.used and not by_seeking):
            self._open()
        stream = self.input.streams[index]
        is_moved = bool(self.used)
        self.used.add(index)  # also if seeking fails: the file is elsewhere then
        is_start = origin is None or self.is_read_through
        if is_moved or not is_start:
            offset = BEFORE_ALL if is_start else int((origin + self.zero) / float(stream.time_base))
            try:
                self.input.seek(offset, stream=stream)
            except av.FFmpegError:
                if not is_start:
                    raise
                self._open()
                self.used.add(index)
        for stream in self.input.streams:
            stream.discard = Discard.default if stream.index == index else Discard.all

    @cached_property
    def last_time(self) -> float:
        """When the last packet of any stream ends, in seconds, found by reading through the file."""
        self._open()
        self.used.add(-1)  # no stream, but no longer the start
        end = 0.0
        for packet in self.input.demux():
            self._check_clock()
            length = float((packet.duration or 0) * packet.time_base)
            if packet.pts is not None and not self.input.format.flags & Flags.no_timestamps.value:
                end = max(end, float(packet.pts * packet.time_base) - self.zero + length)
            else:
                end += length
        return end

    def _check_clock(self) -> None:
        if time.monotonic() > self.deadline:
            raise MediaError(f"{self.name}: took longer than {self.timeout:g} s to read")


def from_keyframe(packets: Iterator[Any], limit: int) -> Iterator[Any]:
    """`packets` from the last keyframe on that comes before one whose timestamp is above `limit`."""
    held: list[Any] = []
    for packet in packets:
        stamp = packet and (packet.pts if packet.dts is None else packet.dts)
        if packet is not None and packet.is_keyframe and not is_before(limit, stamp):
            held = []
        held.append(packet)
        if packet is None or is_before(limit, stamp):
            break
    yield from held
    yield from packets


def is_before(pts: int | None, limit: int | None) -> bool:
    """Whether both timestamps are known and `pts` comes before `limit`."""
    return pts is not None and limit is not None and pts < limit

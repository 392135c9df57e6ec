"""An opened video or sound file: its streams, its time axis, and decoded frames from any time on."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from functools import cached_property
from types import SimpleNamespace
from typing import Any, BinaryIO

import av
from av.stream import Discard, Disposition

from mbt_core.media.ends import stated_ends
from mbt_core.media.errors import MediaError, reason
from mbt_core.media.lengths import is_truncated

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
# Damage is an error and not a concealed picture.
DECODER_OPTIONS = {"err_detect": "crccheck+explode", "max_pixels": str(MAX_PIXELS)}
SEEK_BACK = (0.0, 1.0, 4.0, 16.0, 64.0)  # seconds before the wanted time, tried in turn
OPEN_GOP = 5.0  # seconds before a keyframe where another one is expected
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
        self.start_clock()
        if is_truncated(file, self._check_clock):
            raise MediaError(f"{name}: truncated: the file is shorter than it says")
        self._open()
        if self.video is None and self.audio is None:
            raise MediaError(f"{name}: it holds neither video nor sound")

    def _open(self) -> None:
        """Open the file, also anew: then decoders start afresh, and streams taken before must not be touched."""
        self.close()
        self.file.seek(0)
        self.input = av.open(self.reader, container_options=OPEN_OPTIONS, timeout=self.timeout, **TOLERANT)
        self.zero = (self.input.start_time or 0) / av.time_base
        self.is_still = self.input.format.name.endswith("_pipe")
        pictures = [s for s in self.input.streams.video if not s.disposition & Disposition.attached_pic]
        sounds = sorted(self.input.streams.audio, key=lambda s: not s.disposition & Disposition.default)
        self.video: Any = pictures[0] if pictures else None
        self.audio: Any = sounds[0] if sounds else None
        # AAC fills bands with noise, and flushing the decoder does not take the noise back to its start.
        self.noisy: set[int] = set()
        for stream in (self.video, self.audio):
            if stream is not None and stream.codec_context is not None:
                if stream.codec_context.name.startswith("aac"):
                    self.noisy.add(stream.index)
                # Loaders run one process per core, and threads inside the decoder only get in their way.
                stream.codec_context.thread_count = 1
                stream.codec_context.options = DECODER_OPTIONS
        self.used: set[int] = set()  # indices of streams read from

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
        # Seeking may open the file anew; PyAV would then read freed memory for `stream`.
        index, kind, origins = stream.index, stream.type, self._origins(stream, start)
        for origin in origins:
            frames = self._decode_from(index, origin)
            first = next(frames, None)
            if first is not None and (origin is None or first[0] <= start):
                yield first
                yield from frames
                return
        raise MediaError(f"{self.name}: cannot decode anything of its {kind} stream")

    def _origins(self, stream: Any, start: float) -> list[float | None]:
        """Times to seek to, in turn, until a decoded frame is at or before `start`; None is the very start."""
        begin, end = self.begin_of(stream), self.end_of(stream)
        if end is None:
            return [None]
        return [*(min(start, end) - back for back in SEEK_BACK if min(start, end) - back > begin), None]

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
            return
        stream = self.input.streams[index]
        tick = float(stream.time_base)
        at, expected = -math.inf, 0.0
        begun, key = False, None
        for packet in self.input.demux(stream):
            self._check_clock()
            if not begun and packet.is_keyframe:
                begun, key = True, packet.pts
            if not begun and origin is not None:
                continue
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                if not begun or is_before(packet.pts, key if strict_from is None else strict_from):
                    continue
                if origin is not None and strict_from is None and key is not None:
                    # Later pictures, too, may expect that those before the keyframe are known.
                    again = self._decode_from(index, key * tick - self.zero - OPEN_GOP, strict_from=key)
                    yield from (found for found in again if found[0] > at)
                    return
                where = f"its {stream.type} after {expected:.2f} s"
                raise MediaError(f"{self.name}: cannot decode {where}: {reason(error)}") from error
            for frame in frames:
                if frame.pts is None and origin is not None:
                    return  # without timestamps only counting from the start tells the time
                at = expected if frame.pts is None else frame.pts * tick - self.zero
                expected = at + length_of(frame, stream)
                yield at, frame

    def _seek(self, index: int, origin: float | None) -> None:
        """Go to the keyframe before `origin`; read only packets of stream `index` from there on."""
        if index in self.used & self.noisy:
            self._open()
        if origin is not None or self.used:
            stream = self.input.streams[index]
            offset = BEFORE_ALL if origin is None else int((origin + self.zero) / float(stream.time_base))
            try:
                self.input.seek(offset, stream=stream)
            except av.FFmpegError:
                if origin is not None:
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
            if packet.pts is not None:
                end = max(end, float(packet.pts * packet.time_base) - self.zero + length)
            else:
                end += length
        return end

    def _check_clock(self) -> None:
        if time.monotonic() > self.deadline:
            raise MediaError(f"{self.name}: took longer than {self.timeout:g} s to read")


def is_before(pts: int | None, limit: int | None) -> bool:
    """Whether both timestamps are known and `pts` comes before `limit`."""
    return pts is not None and limit is not None and pts < limit


def length_of(frame: Any, stream: Any) -> float:
    """How long a decoded frame lasts, in seconds; 0 if unknown."""
    if isinstance(frame, av.AudioFrame):
        return frame.samples / frame.sample_rate
    return float(1 / stream.average_rate) if stream.average_rate else 0.0

"""`ShardClip`: a clip that was packed into a tar file, of which only what is asked for is read.

A shard is ``NAME.tar`` in the WebDataset layout and ``NAME.index.npy``, an array of `INDEX` with a record for every
member, in the order of the file. The members of one clip have names that begin with its key:

- ``KEY.json``: facts of the clip, in ``sources`` those of each column (`Facts`);
- ``KEY.COLUMN.NUMBER.jpg``: frames, each with the time from which it is shown in the index;
- ``KEY.COLUMN.flac``: sound at 16 kHz, mono;
- ``KEY.COLUMN.SUFFIX``: any other file as it was.

A clip's path is ``NAME.tar/KEY/COLUMN``. An index is not trusted: each member's own header must agree with it.

Shapes: N frames, T times, H height, W width, S samples.
"""

from __future__ import annotations

import io
import json
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from types import TracebackType
from typing import Any, Self, cast

import av
import numpy as np

from mbt_core.media.clip import Clip
from mbt_core.media.container import MAX_PIXELS
from mbt_core.media.errors import MediaError, reason
from mbt_core.media.pictures import Scaler
from mbt_core.media.reads import Reads

BLOCK = 512
"""Bytes of a member's header; its content begins at a multiple of them."""
INDEX = np.dtype([("key", "S16"), ("member", "S100"), ("offset", "<i8"), ("length", "<i8"), ("time", "<f8")])
"""Key of the clip, name of the member, where its content is in bytes, and for frames the second they are shown from."""
RATE = 16_000
"""Samples a second of packed sound."""
LARGEST = 1 << 30
"""Bytes of a member; more is refused."""
OPEN_SHARDS = 128
MARK = ".tar/"
SEEK_FROM, SEEK_BACK = 30 * RATE, 2 * RATE
"""Samples: where sound begins later it is sought, and so much before."""
TINY = 1e-6  # seconds; less is rounding


@dataclass
class Facts:
    """What ``KEY.json`` says of one column of a clip.

    Args:
        start, stop: seconds of the clip that are held.
        duration: the clip's; None: it has none.
        ends: what it offers, with what `Clip.duration_of` gives.
        frame_rate, sample_rate: the clip's.
        origin: the sample of the clip, at 16 kHz, that is the first of the packed sound.
        payload: suffix of the file that was packed as it was.
        errors: what it offers but cannot be read, with the reason.
    """

    start: float = 0.0
    stop: float = 0.0
    duration: float | None = None
    ends: dict[str, float | None] = field(default_factory=dict)
    frame_rate: float | None = None
    sample_rate: int | None = None
    origin: int = 0
    payload: str = ""
    errors: dict[str, str] = field(default_factory=dict)


def packed(path: str) -> tuple[str, str, str] | None:
    """(tar file, key, column) if `path` names a clip in a shard."""
    head, mark, tail = path.rpartition(MARK)
    if not mark:
        return None
    key, slash, column = tail.partition("/")
    tar = head + MARK[:-1]
    return (tar, key, column) if slash and "/" not in column and is_file(tar) else None


_there: set[str] = set()


def is_file(path: str) -> bool:
    """Whether there is a file; a shard that was there once is taken to stay, so that each is looked for once."""
    if path not in _there and os.path.isfile(path):
        _there.add(path)
    return path in _there


class Shard:
    """An opened shard. It may be read by several threads and processes at once.

    Args:
        path: the tar file.

    Raises:
        MediaError: if it, or its index, is missing, a link, damaged, or they do not belong together.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        index_path = path.removesuffix(".tar") + ".index.npy"
        try:
            self._file = _open_regular(path)
            self.size = os.fstat(self._file.fileno()).st_size
            with _open_regular(index_path):
                pass
            self.index = np.load(index_path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise MediaError(f"{path}: cannot open the shard: {reason(error)}") from error
        index = self.index
        if index.dtype != INDEX or index.ndim != 1:
            raise MediaError(f"{index_path}: no index of a shard")
        offset, length = index["offset"], index["length"]
        sane = (offset >= BLOCK) & (length >= 0) & (length <= LARGEST) & (offset <= self.size - length)
        if not sane.all():
            raise MediaError(f"{index_path}: member {int((~sane).argmax())} is not inside {path} ({self.size} bytes)")
        keys = np.ascontiguousarray(index["key"])
        begins = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.zeros(0, int)
        ends = [*begins[1:].tolist(), len(keys)]
        self._place = {bytes(keys[b]): (b, e) for b, e in zip(begins.tolist(), ends, strict=False)}

    def members(self, key: str) -> np.ndarray:
        """The records of a clip. Raises `MediaError` if there is none."""
        place = self._place.get(key.encode())
        if place is None:
            raise MediaError(f"{self.path}: holds no clip {key!r}")
        return self.index[slice(*place)]

    def check(self, record: Any) -> None:
        """Raises `MediaError` unless the member's header in the tar file says what the index does."""
        self._checked(record, os.pread(self._file.fileno(), BLOCK, int(record["offset"]) - BLOCK))

    def read(self, record: Any) -> bytes:
        """The content of a member. Raises `MediaError`."""
        offset, length = int(record["offset"]), int(record["length"])
        found = os.pread(self._file.fileno(), BLOCK + length, offset - BLOCK)
        self._checked(record, found[:BLOCK])
        if len(found) != BLOCK + length:
            raise MediaError(f"{self.path}: truncated")
        return found[BLOCK:]

    def read_at(self, offset: int, length: int) -> bytes:
        """Bytes of the file."""
        return os.pread(self._file.fileno(), length, offset)

    def _checked(self, record: Any, header: bytes) -> None:
        name = header[:100].rstrip(b"\0")
        length = header[124:136].rstrip(b"\0 ")
        regular = header[156:157] in (b"0", b"\0")
        if name != bytes(record["member"]) or length != b"%011o" % int(record["length"]) or not regular:
            raise MediaError(f"{self.path}: its index is not its own, at member {bytes(record['member'])!r}")


def _open_regular(path: str) -> io.FileIO:
    """Opens a file that is no link. Raises `OSError`."""
    file = io.FileIO(path, opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NOFOLLOW", 0)))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"{path}: not a file")
    return file


@lru_cache(maxsize=OPEN_SHARDS)
def open_shard(path: str) -> Shard:
    """The shard, opened once for all who read it."""
    return Shard(path)


class Part(io.RawIOBase):
    """A member of a shard as a file of its own."""

    def __init__(self, shard: Shard, record: Any) -> None:
        shard.check(record)
        self._shard, self._begin, self._length = shard, int(record["offset"]), int(record["length"])
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._length - self._at)
        found = self._shard.read_at(self._begin + self._at, left if size < 0 else min(size, left))
        self._at += len(found)
        return found


class ShardClip:
    """One column of a packed clip, with the reading methods of `Clip`.

    Within the seconds that are held it gives what the clip gives, but for what JPEG changes and frames that ``--fps``
    left out; outside of them it raises `MediaError`. Times are seconds from the start of the clip that was packed.

    Args:
        path: ``NAME.tar/KEY/COLUMN``.
        timeout: as of `Clip`.
    """

    def __init__(self, path: str, *, timeout: float = 60.0) -> None:
        place = packed(path)
        if place is None:
            raise MediaError(f"{path}: there is no such shard")
        self.name, self.timeout = path, timeout
        self._tar, self._key, self._column = place
        self._inner: dict[str, Clip] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Frees the decoders; the shard stays open."""
        for clip in self._inner.values():
            clip.close()
        self._inner.clear()

    @cached_property
    def _shard(self) -> Shard:
        return open_shard(self._tar)

    @cached_property
    def _members(self) -> np.ndarray:
        """The records of the clip."""
        return self._shard.members(self._key)

    @cached_property
    def facts(self) -> Facts:
        """What the shard says of this clip. Raises `MediaError`."""
        try:
            found = json.loads(self._shard.read(self._member("json")))["sources"][self._column]
            return Facts(**found)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise MediaError(f"{self.name}: the shard does not describe it: {reason(error)}") from error

    def _member(self, name: str) -> Any:
        places = np.flatnonzero(self._members["member"] == f"{self._key}.{name}".encode())
        if not len(places):
            raise MediaError(f"{self.name}: the shard holds no {name} of it")
        return self._members[places[0]]

    @cached_property
    def _frames(self) -> tuple[np.ndarray, np.ndarray]:
        """Times [N] from which the frames are shown, and their records [N]."""
        names = self._members["member"]
        prefix = f"{self._key}.{self._column}.".encode()
        records = self._members[np.char.startswith(names, prefix) & np.char.endswith(names, b".jpg")]
        since = np.ascontiguousarray(records["time"])
        if not len(records) or not np.isfinite(since).all() or (np.diff(since) <= 0).any():
            raise MediaError(f"{self.name}: the index does not tell the times of its frames")
        return since, records

    def has(self, reads: str) -> bool:
        """See `Clip.has`."""
        return reads in self.facts.ends or reads in self.facts.errors

    @property
    def duration(self) -> float | None:
        """See `Clip.duration`."""
        return self.facts.duration

    def duration_of(self, reads: str) -> float | None:
        """See `Clip.duration_of`."""
        self._require(reads)
        return self.facts.ends.get(reads)

    @property
    def frame_rate(self) -> float | None:
        """That of the packed video."""
        return self.facts.frame_rate

    @property
    def sample_rate(self) -> int | None:
        """That of the packed sound as it was stored."""
        return self.facts.sample_rate

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the packed frames."""
        if not self.has(Reads.FRAMES):
            return None
        self._require(Reads.FRAMES)
        height, width = self._decoded(self._frames[1][0]).shape[:2]
        return height, width

    def frames(
        self, times: Sequence[float], short_side: int | None = None, size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """[T, H, W, 3] uint8: see `Clip.frames`. Only these frames are read."""
        self._check_span(Reads.FRAMES, min(times), max(times))
        wanted = np.searchsorted(self._frames[0], times, side="right") - 1
        return self._pictures(np.maximum(wanted, 0), short_side, size)

    def frames_between(self, start: float, stop: float, short_side: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """[N] and [N, H, W, 3]: see `Clip.frames_between`."""
        self._check_span(Reads.FRAMES, start, stop)
        since = self._frames[0]
        low, high = np.maximum(np.searchsorted(since, [start, stop], side="right") - 1, 0)
        wanted = np.arange(low, high + 1)
        return since[wanted], self._pictures(wanted, short_side, None)

    def waveform(self, start: float, stop: float, rate: int) -> np.ndarray:
        """[round((stop - start) rate)] float32: see `Clip.waveform`. At 16 kHz it is the packed sound itself."""
        self._check_span(Reads.WAVEFORM, start, stop)
        first, count = round(start * rate), round((stop - start) * rate)
        begin = first - round(self.facts.origin * rate / RATE)
        if rate != RATE:
            return self._inside("flac").waveform(begin / rate, (begin + count) / rate, rate)
        part = Part(self._shard, self._member(f"{self._column}.flac"))
        try:
            return read_flac(part, begin, count)
        except (av.FFmpegError, ValueError, OverflowError) as error:
            raise MediaError(f"{self.name}: cannot decode its sound: {reason(error)}") from error

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Clip.shape`."""
        return self.array().shape

    def array(self, index: Sequence[int] | None = None) -> np.ndarray:
        """See `Clip.array`."""
        self._require(Reads.ARRAY)
        return self._inside(self.facts.payload).array(index)

    def text(self, start: float | None = None, stop: float | None = None) -> str:
        """See `Clip.text`."""
        self._require(Reads.TEXT)
        return self._inside(self.facts.payload).text(start, stop)

    def source_text(self) -> str:
        """See `Clip.source_text`."""
        self._require(Reads.TEXT)
        return self._inside(self.facts.payload).source_text()

    def _inside(self, suffix: str) -> Clip:
        """The member with this suffix as a clip."""
        if suffix not in self._inner:
            part: Any = Part(self._shard, self._member(f"{self._column}.{suffix}"))
            self._inner[suffix] = Clip(part, f"{self.name}.{suffix}", timeout=self.timeout)
        return self._inner[suffix]

    def _pictures(self, wanted: np.ndarray, short_side: int | None, size: tuple[int, int] | None) -> np.ndarray:
        records = self._frames[1]
        scaler = Scaler(self.name, short_side, size)
        pictures = {i: _scaled(self._decoded(records[i]), scaler) for i in np.unique(wanted).tolist()}
        return np.stack([pictures[i] for i in wanted.tolist()])

    def _decoded(self, record: Any) -> np.ndarray:
        """[H, W, 3] uint8."""
        return decode_jpeg(self._shard.read(record), f"{self.name}: {bytes(record['member']).decode()}")

    def _require(self, reads: str) -> None:
        if reads in self.facts.errors:
            raise MediaError(self.facts.errors[reads])

    def _check_span(self, reads: str, start: float, stop: float) -> None:
        """Times inside the clip must be inside what is held."""
        self._require(reads)
        facts = self.facts
        if reads not in facts.ends:
            raise MediaError(f"{self.name}: it has no {reads}, only {', '.join(facts.ends)}")
        end = facts.ends[reads]
        before = start < facts.start - TINY and facts.start > 0
        behind = stop > facts.stop + TINY and end is not None and end > facts.stop + TINY
        if before or behind:
            raise MediaError(
                f"{self.name}: {facts.start:g} to {facts.stop:g} s were packed, asked for {start:g} to {stop:g} s; "
                "pack again with a longer --window"
            )


def _scaled(picture: np.ndarray, scaler: Scaler) -> np.ndarray:
    """The picture in the size that the scaler is for."""
    height, width = picture.shape[:2]
    if scaler.size in (None, (height, width)) and scaler.short_side in (None, min(height, width)):
        return picture
    return scaler(av.VideoFrame.from_ndarray(picture, format="rgb24"))


def read_flac(part: Part, first: int, count: int) -> np.ndarray:
    """[count] float32 of a mono FLAC file from sample `first` on; zeros before its start and past its end.

    Raises:
        ValueError: if it is no mono sound of 16 bits at 16 kHz.
    """
    sound = np.zeros(count, np.float32)
    with av.open(cast(Any, part), format="flac") as container:
        stream = container.streams.audio[0]
        if (stream.rate, stream.channels, stream.format.name) != (RATE, 1, "s16"):
            raise ValueError(f"expected one channel of 16 bits at {RATE} Hz")
        stream.codec_context.thread_count = 1
        if first > SEEK_FROM:
            container.seek(first - SEEK_BACK, stream=stream)
        for frame in container.decode(stream):
            at = frame.pts - first
            if at >= count:
                break
            low, high = max(at, 0), min(at + frame.samples, count)
            if low < high:
                sound[low:high] = np.frombuffer(frame.planes[0], np.int16)[low - at : high - at]
    sound /= 32768
    return sound


def decode_jpeg(data: bytes, name: str) -> np.ndarray:
    """[H, W, 3] uint8 RGB, by libjpeg-turbo. Raises `MediaError` for damaged data."""
    import torch
    from torchvision.io import ImageReadMode
    from torchvision.io import decode_jpeg as decode

    height, width = jpeg_size(data)
    if height * width > MAX_PIXELS:
        raise MediaError(f"{name}: pictures of {width} x {height} pixels are too large")
    try:
        picture = decode(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    except (RuntimeError, ValueError) as error:
        raise MediaError(f"{name}: cannot decode the picture: {reason(error).rpartition(', ')[2]}") from None
    decoded: np.ndarray = picture.permute(1, 2, 0).numpy()
    return decoded


def jpeg_size(data: bytes) -> tuple[int, int]:
    """(height, width) as the header of a JPEG says; (0, 0) if it does not."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        at += 2 + length
    return 0, 0


def encode_jpeg(picture_HW3: np.ndarray, quality: int) -> bytes:
    """uint8 RGB [H, W, 3] -> JPEG with 4:2:0 chroma."""
    import torch
    from torchvision.io import encode_jpeg as encode

    planes = torch.from_numpy(np.ascontiguousarray(picture_HW3)).permute(2, 0, 1).contiguous()
    return bytes(encode(planes, quality).numpy())

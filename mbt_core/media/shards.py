"""Shards: tar files of packed clips, of which single members are read, here or by URL.

A shard is ``NAME.tar`` in the WebDataset layout and ``NAME.index.npy``, an array of `INDEX` with a record for every
member, in the order of the file. The members of one clip have names that begin with its key; keys ascend:

- ``KEY.json``: facts of the clip, in ``sources`` those of each column (`Facts`);
- ``KEY.COLUMN.NUMBER.jpg``: frames, each with the time from which it is shown in the index;
- ``KEY.COLUMN.flac``: sound at 16 kHz, mono;
- ``KEY.COLUMN.SUFFIX``: any other file as it was.

A clip's path is ``NAME.tar/KEY/COLUMN``. An index is not trusted: each member's own header must agree with it. Of a
folder of shards that a URL names (`mbt_core.io.remote`), the index is copied when it is first needed.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from pydantic import ConfigDict

from mbt_core.errors import MBTError
from mbt_core.io import remote
from mbt_core.io.files import open_regular, write_atomically
from mbt_core.media.errors import MediaError, reason

BLOCK = 512
"""Bytes of a member's header; its content begins at a multiple of them."""
INDEX = np.dtype(
    [("key", "S16"), ("member", "S100"), ("offset", "<i8"), ("length", "<i8"), ("time", "<f8"), ("crc", "<u4")]
)
"""Key of the clip, name of the member, where its content is in bytes, for frames the second they are shown from, and
CRC-32 of the content: decoders make some picture of damaged JPEGs, too."""
RATE = 16_000
"""Samples a second of packed sound."""
LARGEST = 1 << 30
"""Bytes of a member; more is refused."""
AT_ONCE = 1 << 20
"""Bytes: a member that has no more is read in one piece, others in such pieces."""
OPEN_SHARDS = 128
MARK = ".tar/"


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

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)  # of a shard that somebody else has made


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
    if path not in _there:
        url = remote.url_of(path)
        if os.path.isfile(path) if url is None else remote.exists(url):
            _there.add(path)
    return path in _there


class Ranges(Protocol):
    """A file of which ranges are read, as `mbt_core.io.remote.RemoteFile`."""

    size: int

    def read(self, spans: Sequence[tuple[int, int]], timeout: float) -> list[bytes]:
        """The bytes of each (begin, length); fewer where the file ends. A server has `timeout` seconds to answer."""


class LocalFile:
    """An opened file that is no link. It may be read by several threads and processes at once.

    Raises:
        OSError: if there is none.
    """

    def __init__(self, path: str) -> None:
        self._file = open_regular(path, follow=False)
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, spans: Sequence[tuple[int, int]], timeout: float) -> list[bytes]:
        """See `Ranges.read`."""
        return [os.pread(self._file.fileno(), length, begin) for begin, length in spans]


class Shard:
    """An opened shard. It may be read by several threads and processes at once.

    Args:
        path: the tar file, or where it would be in the copy of a folder that a URL names.

    Raises:
        MBTError: if it, or its index, is missing, a link or damaged.
    """

    def __init__(self, path: str) -> None:
        url = remote.url_of(path)
        self.path = url or path
        self._file: Ranges
        try:
            if url is None:
                self._file = LocalFile(path)
                index = path.removesuffix(".tar") + ".index.npy"
            else:
                self._file = far = remote.RemoteFile(url)
                index = _copied_index(path, url, far.version)
            LocalFile(index)
            self.index = np.asarray(np.load(index, mmap_mode="r", allow_pickle=False))
        except MBTError:
            raise
        except Exception as error:  # numpy says what it likes of a damaged header
            raise MediaError(f"{self.path}: cannot open the shard: {reason(error)}") from error
        if self.index.dtype != INDEX or self.index.ndim != 1:
            raise MediaError(f"{index}: no index of a shard")

    def members(self, key: str) -> np.ndarray:
        """The records of a clip. Raises `MediaError` if there is none, or they are not inside the file."""
        keys, wanted = self.index["key"], np.array(key.encode(), INDEX["key"])
        low, high = (int(np.searchsorted(keys, wanted, side)) for side in ("left", "right"))
        found = self.index[low:high]
        if not len(found) or (found["key"] != wanted).any():
            raise MediaError(f"{self.path}: holds no clip {key!r}")
        offset, length = found["offset"], found["length"]
        sane = (offset >= BLOCK) & (length >= 0) & (offset <= self._file.size - length)
        if not sane.all():
            number = low + int((~sane).argmax())
            raise MediaError(f"{self.path}: member {number} of its index is not inside it ({self._file.size} bytes)")
        large = found[length > LARGEST]
        if len(large):
            raise MediaError(
                f"{self.path}: member {name_in(large[0])!r} has {large[0]['length']:,} bytes, expected at most "
                f"{LARGEST:,}: cut its file and pack again"
            )
        return found

    def read(self, records: Sequence[Any], timeout: float) -> list[bytes]:
        """The content of members, all asked for at the same time. Raises `MBTError`, at latest after `timeout` s."""
        spans = [(int(r["offset"]) - BLOCK, BLOCK + int(r["length"])) for r in records]
        found = self._file.read(spans, timeout)
        for record, data, (_, length) in zip(records, found, spans, strict=True):
            self._check(record, data)
            if len(data) != length:
                raise MediaError(f"{self.path}: truncated")
        contents = [data[BLOCK:] for data in found]
        for record, content in zip(records, contents, strict=True):
            if zlib.crc32(content) != record["crc"]:
                raise MediaError(f"{self.path}: member {name_in(record)!r} is damaged; pack or copy the shard again")
        return contents

    def open(self, record: Any, timeout: float) -> BinaryIO:
        """A member as a file, each reading of which may take `timeout` seconds. Raises `MBTError`.

        Of one that is read in pieces the checksum is not tested.
        """
        offset, length = int(record["offset"]), int(record["length"])
        if length <= AT_ONCE:
            return io.BytesIO(self.read([record], timeout)[0])
        self._check(record, self._file.read([(offset - BLOCK, BLOCK)], timeout)[0])
        return io.BufferedReader(Part(self._file, offset, length, timeout), AT_ONCE)

    def _check(self, record: Any, data: bytes) -> None:
        """Raises `MediaError` unless the member's header in the tar file says what the index does."""
        header = data[:BLOCK]
        name = header[:100].rstrip(b"\0")
        length = header[124:136].rstrip(b"\0 ")
        regular = header[156:157] in (b"0", b"\0")
        if name != bytes(record["member"]) or length != b"%011o" % int(record["length"]) or not regular:
            raise MediaError(f"{self.path}: its index is not its own, at member {name_in(record)!r}")


def name_in(record: Any) -> str:
    """The name of the member that a record of the index tells of."""
    return bytes(record["member"]).decode(errors="replace")


def _copied_index(path: str, url: str, version: str) -> str:
    """The copy of a far shard's index, made if there is none of this version of both. Raises `DataError`."""
    stem = path.removesuffix(".tar")
    index_url = url.removesuffix(".tar") + ".index.npy"
    # of both: shards that are replaced may be there before their indices
    copy = Path(f"{stem}.{version}-{remote.about(index_url)[1]}.index.npy")
    if not copy.is_file():
        content = remote.fetch([index_url])[0]
        if content is None:
            raise MediaError(f"{index_url}: there is no such file")
        for older in copy.parent.glob(f"{os.path.basename(stem)}.*.index.npy"):
            older.unlink(missing_ok=True)
        write_atomically(copy, lambda file: file.write_bytes(content))
    return str(copy)


@lru_cache(maxsize=OPEN_SHARDS)
def open_shard(path: str) -> Shard:
    """The shard, opened once for all who read it."""
    return Shard(path)


class Part(io.RawIOBase):
    """A range of a file as a file of its own."""

    def __init__(self, file: Ranges, begin: int, length: int, timeout: float) -> None:
        self._file, self._begin, self._length, self._timeout = file, begin, length, timeout
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self._length - self._at))
        found = self._file.read([(self._begin + self._at, wanted)], self._timeout)[0] if wanted else b""
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)

"""Folders on other machines, by URL: small files of them are copied here, of large ones only ranges are read.

The copy of ``s3://bucket/shards`` is ``CACHE/remote/s3/bucket/shards``: a path below ``CACHE/remote`` tells its URL, so
that such paths may be used like all others. fsspec reads what it has a file system for (``http``, ``s3``, ``gs`` ...).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

from mbt_core.errors import ConfigError, DataError, MBTError
from mbt_core.io.files import write_atomically

PAUSES = (0.5, 2.0)
"""Seconds to wait before a failed request is made again."""
TIMEOUT = 60.0
"""Seconds of wall time that an answer may take, with all its tries."""
AT_ONCE = 128
"""Whole files asked for at the same time."""
FINAL = (FileNotFoundError, PermissionError, NotImplementedError)
"""Failures that another request would not change."""
PASSING = (408, 429)
"""Answers of web servers from 400 to 499 that say: not now (too slow, too many requests)."""
VERSION_KEYS = ("size", "ETag", "etag", "mtime", "LastModified", "Last-Modified", "md5Hash", "generation", "created")
"""What file systems call that which changes with a file's content."""
# `Path` makes one slash of two; a single letter is a drive
URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.DOTALL)
SHARE = re.compile(r"[\\/]{2}[^\\/]")
"""What the path of a network share begins with."""
Found = TypeVar("Found")


def cache_folder() -> Path:
    """``$MBT_CACHE``, by default ``~/.cache/mbt``."""
    return Path(os.environ.get("MBT_CACHE") or Path.home() / ".cache" / "mbt").expanduser()


def is_url(path: str | Path) -> bool:
    """Whether it names something by URL."""
    return URL.match(str(path)) is not None


def is_there(path: str | Path) -> bool:
    """Whether there is such a file or folder; of a URL it is not known before it is read."""
    return is_url(path) or Path(path).expanduser().exists()


def address(path: str | Path) -> str:
    """What to write down for later: a URL (also for the copy of what it names), or the absolute path."""
    if is_url(path):
        path = copy_of(path)
    return url_of(str(path)) or str(Path(path).expanduser().resolve())


def copy_of(url: str | Path) -> Path:
    """Where the copy of a folder is; of ``file:///FOLDER``, the folder itself.

    Raises:
        ConfigError: for what is not the URL of a folder.
    """
    found = URL.fullmatch(str(url))
    assert found is not None, url
    protocol, rest = found[1], found[2].rstrip("/")
    if protocol in ("file", "local"):
        return Path("/", rest)
    if not rest or set(rest.split("/")) & {"", ".", ".."} or re.search(r"[?#@\0]", rest):
        raise ConfigError(
            f"{url}: expected the address of a folder, PROTOCOL://PLACE/FOLDER, without ?, # and @ (give passwords "
            "and keys in the environment)"
        )
    return Path(_root(str(cache_folder())), protocol, rest)


def url_of(path: str) -> str | None:
    """The URL of which `path` is, or lies in, the copy; None: it is none."""
    root = _root(str(cache_folder())) + os.sep
    if not path.startswith(root):
        return None
    protocol, _, rest = path.removeprefix(root).partition(os.sep)
    return f"{protocol}://{rest}"


@lru_cache
def _root(cache: str) -> str:
    return os.path.realpath(os.path.join(cache, "remote"))


_asked: set[str] = set()
"""Addresses that the user of this process has named."""


def ask_for(path: str | Path, lasting: bool = False) -> None:
    """Notes that the user has named `path`: if it is on another machine, `require_asked` lets it be read.

    Args:
        path: of data.
        lasting: by later processes too, as what was trained on here may be. It is noted in `cache_folder`.
    """
    place = _elsewhere(path)
    if place is None:
        return
    _asked.add(place)
    if lasting:
        with suppress(MBTError):  # where it cannot be noted it is to be named again
            write_atomically(_note(place), lambda file: file.write_text(place, encoding="utf-8"))


def require_asked(path: str | Path, setting: str) -> None:
    """Raises `ConfigError` for what is on another machine unless the user has named it, now or in a training here.

    A configuration that somebody else has written must not have this machine contact hosts of its choice.
    """
    place = _elsewhere(path)
    if place is not None and place not in _asked and not _note(place).exists():
        raise ConfigError(
            f"{setting}: {place} is on another machine, and nothing was trained on it here: it is only read if you "
            f"name it, by --data {place}"
        )


def _elsewhere(path: str | Path) -> str | None:
    """The address of what is on another machine (also of the copy of it, and ``//HOST/SHARE``); None: it is here."""
    if SHARE.match(str(path)):
        return str(path)
    try:
        place = address(path)
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        return None  # no path at all
    return place if is_url(place) else None


def _note(place: str) -> Path:
    return cache_folder() / "asked" / blake2b(place.encode(), digest_size=16).hexdigest()


class RemoteFile:
    """A file of which ranges are read; any process and thread may do so.

    Args:
        url: of the file.

    Attributes:
        size: in bytes.
        version: changes with the file, as far as its server tells.

    Raises:
        DataError: if there is none, or its server does not say how long it is.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.size, self.version = about(url)

    def read(self, spans: Sequence[tuple[int, int]], timeout: float) -> list[bytes]:
        """The bytes of each (begin, length), asked for at once. Raises `DataError`, at the latest after `timeout` s."""
        starts, ends = [begin for begin, _ in spans], [begin + length for begin, length in spans]
        urls = [self.url] * len(spans)
        found = _try(self.url, lambda files, **how: _all_read(files.cat_ranges(urls, starts, ends, **how)), timeout)
        for content, (begin, length) in zip(found, spans, strict=True):
            if len(content) > length:
                raise DataError(f"{self.url}: its server does not serve ranges of files, only whole ones")
            if len(content) < length:
                raise DataError(f"{self.url}: truncated: it has no {length} bytes at {begin}")
        return found


@cache
def about(url: str) -> tuple[int, str]:
    """Bytes of a file, and its version; asked for once. Raises `DataError`."""
    info = _try(url, lambda files, **how: files.info(url, **how), TIMEOUT)
    size = info.get("size")
    if size is None:
        raise DataError(f"{url}: its server does not say how many bytes it has")
    told = repr([(key, str(info[key])) for key in VERSION_KEYS if key in info])
    return int(size), blake2b(told.encode(), digest_size=8).hexdigest()


def exists(url: str) -> bool:
    """Whether there is such a file. Raises `DataError` if that cannot be told."""
    try:
        about(url)
    except DataError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return False
        raise
    return True


def fetch(urls: Sequence[str], optional: bool = False) -> list[bytes | None]:
    """Whole files of one server, many asked for at the same time; None: there is no such file.

    Args:
        urls: of the files.
        optional: what one may not read, where servers keep it secret what is there, counts as not there.

    Raises:
        DataError: if they cannot be read.
    """
    absent = (FileNotFoundError, PermissionError) if optional else (FileNotFoundError,)
    contents: list[bytes | None] = []
    for some in (list(urls[i : i + AT_ONCE]) for i in range(0, len(urls), AT_ONCE)):

        def read(files: Any, some: list[str] = some, **how: float) -> list[bytes | None]:
            found = files.cat_ranges(some, [None] * len(some), [None] * len(some), **how)
            return _all_read([None if isinstance(content, absent) else content for content in found])

        contents += _try(some[0].rpartition("/")[0], read, TIMEOUT)
    return contents


def _all_read(found: list[Any]) -> list[Any]:
    for content in found:
        if isinstance(content, BaseException):
            raise content
    return found


def _try(url: str, ask: Callable[..., Found], timeout: float) -> Found:
    """What `ask` gets of the file system, tried again where that may help, not before a server says so.

    Raises `DataError`, at the latest after `timeout` seconds. File systems that are not asynchronous read what is here,
    or have a timeout of their own.
    """
    files = _file_system(url.partition(":")[0], os.getpid())
    pauses, deadline = iter(PAUSES), time.monotonic() + timeout
    left = timeout
    while True:
        try:
            return ask(files, timeout=left) if getattr(files, "async_impl", False) else ask(files)
        except Exception as error:  # botocore, aiohttp and google each have their own
            failure = _failure(error)
        pause = None if _is_final(failure) else next(pauses, None)
        if pause is not None:
            pause = max(pause, _asked_pause(failure))
        left = deadline - time.monotonic() - (pause or 0.0)
        if pause is None or left <= 0:
            slow = f"no answer within {timeout:g} s" if isinstance(failure, TimeoutError) else type(failure).__name__
            said = " ".join(str(failure).split()) or slow
            told = "there is no such file" if isinstance(failure, FileNotFoundError) else f"cannot be read: {said}"
            raise DataError(f"{url}: {told}") from failure
        time.sleep(pause)


def _is_final(failure: BaseException) -> bool:
    status = getattr(failure, "status", 0)
    return isinstance(failure, FINAL) or (400 <= status < 500 and status not in PASSING)


def _asked_pause(failure: BaseException) -> float:
    """Seconds that a server asks to wait; 0 if it does not, or names a date."""
    told = str((getattr(failure, "headers", None) or {}).get("Retry-After", ""))
    return float(told) if re.fullmatch(r"\d{1,9}", told, re.ASCII) else 0.0


def _failure(error: Exception) -> BaseException:
    """What happened: fsspec calls whatever hinders it from looking at a file of a web server a file not found."""
    cause = error.__cause__
    hidden = cause is not None and type(cause).__module__.startswith("aiohttp")
    return cause if hidden and cause and getattr(cause, "status", 0) not in (404, 410) else error


@lru_cache
def _file_system(protocol: str, process: int) -> Any:
    """One for each process: connections do not survive a fork."""
    try:
        import fsspec

        return fsspec.filesystem(protocol)
    except ImportError as error:
        raise ConfigError(
            f"{protocol}://: {error}. What reads shards by URL is installed by: pip install 'mbt-fusion[remote]'"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{protocol}://: {error}; expected http, https, s3, gs or what else fsspec knows") from None

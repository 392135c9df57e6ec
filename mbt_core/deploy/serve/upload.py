"""Takes one file out of a multipart/form-data request, as it comes in, to disk."""

from __future__ import annotations

import re
from collections.abc import AsyncIterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, BinaryIO

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELD = "file"
FRAMING = 1 << 16
"""Bytes that a request may have beyond its file: boundaries and headers."""
SUFFIX = re.compile(r"\.[a-z0-9]{1,10}")


class Refused(Exception):
    """A request that gets no answer but why not.

    Args:
        status: of the response, 4xx, 503 or 507.
        message: for the client.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(frozen=True)
class Received:
    """An uploaded file.

    Args:
        path: where it was written; of what the client calls it only a harmless suffix is used.
        name: what the client calls it; never a path.
    """

    path: Path
    name: str


async def receive(
    content_type: str, length: str | None, body: AsyncIterable[bytes], path: Path, max_bytes: int
) -> Received:
    """Writes the file of a request while it arrives.

    Args:
        content_type: the request's header.
        length: its ``Content-Length``, if it says one.
        body: its chunks.
        path: where to write, without a suffix; removing the file is the caller's task, also after an error.
        max_bytes: of the file; with the first byte more, reading ends.

    Raises:
        Refused: 415 for no multipart/form-data, 413 for too many bytes, 400 for anything but one part `FIELD` with a
            file in it, 422 for an empty file, 507 if it cannot be stored.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise Refused(415, f"expected multipart/form-data with a part {FIELD!r} (curl -F {FIELD}=@clip.mp4)")
    if length is not None and length.isdecimal() and int(length) > max_bytes + FRAMING:
        raise _too_large(max_bytes)
    try:
        with path.open("xb") as file:
            parts = _Parts(file, max_bytes)
            parser = MultipartParser(options[b"boundary"], parts.callbacks(), max_size=max_bytes + FRAMING)
            async for chunk in body:
                if parser.write(chunk) < len(chunk):
                    raise _too_large(max_bytes)
            parser.finalize()
    except FormParserError as error:
        raise Refused(400, f"the request is no valid multipart/form-data: {error}") from error
    except OSError as error:
        raise Refused(507, f"the file cannot be stored here: {error.strerror}; try again later") from error
    if not parts.complete or parts.name is None:
        raise Refused(400, f"the request has no complete part {FIELD!r} with a file")
    if not parts.size:
        raise Refused(422, "the file is empty")
    suffix = PurePath(parts.name).suffix.lower()
    final = path.with_suffix(suffix) if SUFFIX.fullmatch(suffix) else path
    return Received(path.rename(final), parts.name)


class _Parts:
    """Receives what the parser finds."""

    def __init__(self, file: BinaryIO, max_bytes: int) -> None:
        self.file, self.max_bytes = file, max_bytes
        self.size = 0
        self.name: str | None = None
        self.complete = False
        self._key = self._value = b""

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_header_field": self._on_key,
            "on_header_value": self._on_value,
            "on_header_end": self._on_header,
            "on_headers_finished": self._on_headers,
            "on_part_begin": self._on_part,
            "on_part_data": self._on_data,
            "on_end": self._on_end,
        }

    def _on_part(self) -> None:
        if self.name is not None:
            raise Refused(400, f"the request has several parts; expected one, {FIELD!r}")

    def _on_key(self, data: bytes, start: int, end: int) -> None:
        self._key += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header(self) -> None:
        if self._key.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            if options.get(b"name") == FIELD.encode() and b"filename" in options:
                self.name = options[b"filename"].decode(errors="replace")[-255:]
        self._key = self._value = b""

    def _on_headers(self) -> None:
        if self.name is None:
            raise Refused(400, f"the request has a part that is not {FIELD!r} with a file")

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self.size += end - start
        if self.size > self.max_bytes:
            raise _too_large(self.max_bytes)
        self.file.write(data[start:end])

    def _on_end(self) -> None:
        self.complete = True


def _too_large(max_bytes: int) -> Refused:
    return Refused(413, f"the file is larger than {max_bytes} bytes")

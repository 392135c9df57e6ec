"""A web server on this machine that serves a folder, also ranges of files, and remembers what was asked for."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Served:
    """A server that is running.

    Args:
        url: of the folder.
        asked: (method, path, bytes sent) of each request.
        failing: answers with `code` that are still to be given.
        code: of these answers.
        retry_after: seconds that they ask to wait; None: they do not say.
        ranges: whether ranges are served, or whole files in their place.
        going: while it is not set, nothing is answered.
    """

    url: str
    asked: list[tuple[str, str, int]] = field(default_factory=list)
    failing: int = 0
    code: int = 503
    retry_after: float | None = None
    ranges: bool = True
    going: threading.Event = field(default_factory=threading.Event)

    def of(self, suffix: str, method: str = "GET") -> list[int]:
        """Bytes sent in each answer for a path that ends so."""
        return [sent for how, path, sent in self.asked if how == method and path.endswith(suffix)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, folder: Path, served: Served, *rest: object) -> None:
        self.folder, self.served = folder, served
        super().__init__(*rest)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        self.served.going.wait()
        path = self.folder / self.path.lstrip("/")
        code, content, headers = 200, b"", {}
        if self.served.failing:
            self.served.failing -= 1
            code = self.served.code
            if self.served.retry_after is not None:
                headers["Retry-After"] = str(self.served.retry_after)
        elif not path.is_file():
            code = 404
        else:
            content = path.read_bytes()
            headers["ETag"] = f'"{path.stat().st_mtime_ns:x}-{len(content)}"'
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if wanted and self.served.ranges:
                first, last = int(wanted[1]), min(int(wanted[2]), len(content) - 1)
                headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
                code, content = 206, content[first : last + 1]
        self.served.asked.append((self.command, self.path, len(content) if body else 0))
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Readers that end leave their connections as they are."""


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """Serves a folder at a free port while the block runs."""
    served = Served("")
    served.going.set()
    server = Server(("127.0.0.1", 0), partial(Handler, folder, served))
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        served.going.set()
        server.shutdown()
        server.server_close()
        thread.join()

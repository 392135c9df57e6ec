"""Connections to the service: how many there may be, and how long one may take until it has asked something."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from dataclasses import dataclass
from http import HTTPStatus

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from mbt_core.deploy.serve.app import Service, make_app
from mbt_core.errors import ConfigError

HEAD = 10.0
"""Seconds that the head of a request may take to arrive, from the connection's start or from the last answer on."""
PATIENCE = 1.0
"""Seconds after which a connection that has not asked yet makes room for another one."""
MOST, LEAST = 512, 16
"""Connections at a time, where the limit of open files does not say less; below the other there is no service."""
BACKLOG = 32
"""Connections that are accepted in one go, before any of them can be refused."""
LINGER, LINGERING = 2.0, 16
"""Seconds in which a refusal may be read, and connections that may wait for that at a time."""
SPARE = 32
"""Open files for all else that a service does."""


@dataclass(frozen=True)
class Room:
    """How many files may be open for what.

    Args:
        connections: at a time.
        requests: for predictions, in work or waiting, each of which has a file of its own.
    """

    connections: int
    requests: int

    @classmethod
    def within(cls, files: int | None, requests: int) -> Room:
        """What fits into a number of files that may still be opened (None: any).

        Raises:
            ConfigError: if there can be no service.
        """
        if files is None:
            return cls(MOST, requests)
        others = SPARE + 2 * BACKLOG + LINGERING  # as many as are accepted in one go may be about to be closed
        requests = max(1, min(requests, (files - others) // 3))
        connections = min(MOST, files - others - requests)
        if connections < LEAST:
            raise ConfigError(
                f"only {files} more files may be opened, expected at least {others + 2 * LEAST}: raise the limit, e.g. "
                "by ulimit -n 1024"
            )
        return cls(connections, requests)


def free_files() -> int | None:
    """How many more files this process may open; None: it is not known, or there is no limit."""
    if not os.path.isdir("/proc/self/fd"):
        return None
    import resource  # not on every system

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if limit == resource.RLIM_INFINITY else limit - len(os.listdir("/proc/self/fd"))


class Connection(H11Protocol):
    """One connection, which is closed if it does not ask anything in time, and refused if there are too many.

    Attributes:
        most: connections at a time.
        head, patience: see `HEAD` and `PATIENCE`.
    """

    most = MOST
    head, patience = HEAD, PATIENCE
    refused = False
    since = 0.0
    """When it was begun to wait for a request."""
    late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        others = [other for other in self.connections if isinstance(other, Connection) and other is not self]
        open_ones = [other for other in others if not other.refused]
        if len(open_ones) >= self.most and not self._make_room(open_ones):
            self.refuse(503, "too many connections at a time; try again later")
            # what has not been read yet would reset the connection, and the answer would be lost
            if len(others) - len(open_ones) < LINGERING:
                self.transport.write_eof()
                self.loop.call_later(LINGER, self.transport.abort)
            else:
                self.transport.close()
            return
        self._wait_for_request()

    def _make_room(self, others: list[Connection]) -> bool:
        """Closes the connection that has been asking nothing for longest. Whether there is one."""
        until = self.loop.time() - self.patience
        waiting = [other for other in others if other.is_waiting and other.since < until]
        if waiting:
            min(waiting, key=lambda other: other.since).end("others are waiting for this connection")
        return bool(waiting)

    @property
    def is_waiting(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _stop_waiting(self) -> None:
        if self.late is not None:
            self.late.cancel()

    def _wait_for_request(self) -> None:
        self._stop_waiting()
        self.since = self.loop.time()
        self.late = self.loop.call_later(self.head, self._end_if_waiting)

    def _end_if_waiting(self) -> None:
        if self.is_waiting and not self.transport.is_closing():
            self.end(f"the head of a request took longer than {self.head:g} s to arrive")

    def end(self, message: str) -> None:
        """Closes, and says why unless there was an answer already."""
        if self.cycle is None:
            self.refuse(408, message)
        self.transport.close()

    def refuse(self, status: int, message: str) -> None:
        """Says why nothing will be answered."""
        self.refused = True
        self._stop_waiting()
        body = json.dumps({"error": message}).encode()
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)

    def data_received(self, data: bytes) -> None:
        if not self.refused:
            super().data_received(data)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)


class Server(uvicorn.Server):
    """The server of a started service.

    Args:
        service: which is told when it is to end.
        most: connections at a time.
        grace: seconds that running requests may take once it is to end.
        options: of `uvicorn.Config`.
    """

    def __init__(self, service: Service, most: int = MOST, grace: int | None = None, **options: str) -> None:
        app: FastAPI = make_app(service)
        protocol = type("Connection", (Connection,), {"most": most})
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                backlog=BACKLOG,
                timeout_graceful_shutdown=grace,
                **options,  # type: ignore[arg-type]
            )
        )
        self.service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.end()
        await super().shutdown(sockets)

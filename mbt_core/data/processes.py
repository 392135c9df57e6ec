"""A process of its own that reads, and what is common to all of them: signals, the limit of memory, the end with the
parent."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import torch

from mbt_core.errors import MBTError

MEMORY = 4 << 30
"""Bytes that reading one item may take beyond what the process has already."""
POLL = 1.0
"""Seconds after which the end of another process is noticed at the latest."""
NOBODY = -1.0
TASK, AT, SINCE, LEAVE = range(4)
"""Places of the memory that a process shares with its parent: number of its task, of the item of that which it is at,
time since when, and whether it is to leave."""


class Memory:
    """Limits what this process may take, where the system can (Linux); elsewhere nothing is limited."""

    def __init__(self, more: int) -> None:
        self.more, self.statm = more, None
        with suppress(OSError, ImportError):
            import resource  # not on every system

            self.resource = resource
            self.soft, self.hard = resource.getrlimit(resource.RLIMIT_DATA)
            self.statm = os.open("/proc/self/statm", os.O_RDONLY)

    def limit(self) -> None:
        """`more` bytes from what it has now."""
        if self.statm is None:
            return
        taken = int(os.pread(self.statm, 256, 0).split()[5]) * self.resource.getpagesize()
        most = min((limit for limit in (self.soft, self.hard) if limit >= 0), default=taken + self.more)
        self.resource.setrlimit(self.resource.RLIMIT_DATA, (min(taken + self.more, most), self.hard))

    def free(self) -> None:
        """As it was."""
        if self.statm is not None:
            self.resource.setrlimit(self.resource.RLIMIT_DATA, (self.soft, self.hard))


def start_method() -> str | None:
    """A fork starts at once and shares what is in memory; other methods import everything anew in every process."""
    return "fork" if sys.platform == "linux" else None


class ReadingProcess:
    """A process of its own that waits at the other end of a connection.

    Args:
        target: what it runs, with `connection`, `board` and `arguments`.
        arguments: further ones.
        method: of starting it; see `multiprocessing`.
    """

    def __init__(self, target: Callable[..., None], *arguments: Any, method: str | None = None) -> None:
        context: Any = multiprocessing.get_context(method)
        self.connection, theirs = context.Pipe()
        self.board = context.RawArray("d", [0.0, NOBODY, time.monotonic(), 0.0])
        mortal = threading.current_thread() is threading.main_thread()
        self.process = context.Process(
            target=_start, args=(mortal, target, theirs, self.board, *arguments), daemon=True
        )
        try:
            self.process.start()
        except OSError as error:
            self.connection.close()
            raise MBTError(
                f"a reading process cannot be started ({error.strerror or error}); lower data.workers"
            ) from error
        finally:
            theirs.close()

    @property
    def is_gone(self) -> bool:
        """Whether it has ended, and nothing that it sent is left."""
        return self.process.exitcode is not None and not self.connection.poll()

    def ending(self) -> str:
        """How it ended, in words."""
        self.process.join(POLL)
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"exit code {code}"
        with suppress(ValueError):
            name = signal.Signals(-code).name
            return f"{name}; perhaps memory is out" if name == "SIGKILL" else name
        return f"signal {-code}"

    def stop(self, grace: float = 0.0) -> None:
        """Ends it, whatever it does; with `grace` it may finish its item first."""
        if self.connection.closed:
            return
        self.board[LEAVE] = 1.0
        self.connection.close()
        if grace:
            self.process.join(grace)
        self.process.kill()
        self.process.join()
        self.process.close()


def _start(mortal: bool, target: Callable[..., None], connection: Connection, board: Any, *arguments: Any) -> None:
    gc.freeze()  # what comes with a fork is no garbage: looking through it would copy the memory that it lies in
    parent = os.getppid()
    # Ctrl-C is for the main process, which ends this one; its handlers, inherited by a fork, are not for this one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):  # so is that of a terminal which is closed
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # taken by the thread
        if mortal:  # the thread that started it ends with its process: so this one is ended even if it hangs in C
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    target(connection, board, *arguments)


def _end_with_parent(parent: int) -> None:
    """Ends this process when the main one was killed or says so by SIGTERM, also in the middle of decoding.

    Of others SIGTERM is not heeded: a cluster sends it to all processes of a job, and the main one still needs this one
    for the step that it ends before it saves.
    """
    while os.getppid() == parent:
        if sys.platform == "linux":
            asked = signal.sigtimedwait([signal.SIGTERM], POLL)
            if asked is not None and asked.si_pid == parent:
                break
        else:
            time.sleep(POLL)
    os._exit(1)

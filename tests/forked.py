"""Work in a process of its own, forked from the test's: it may be limited, killed, or die of what it reads."""

import os
import pickle
import resource
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def forked(work: Callable[[], Any], *, largest_file: int | None = None) -> Any:
    """What `work` returns, from a process that may not write past `largest_file` bytes of a file.

    That is what a full disk looks like ("File too large"), wherever tests run. Fails if the process or `work` does.
    """
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        code = 1
        try:
            os.close(reader)
            if largest_file is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
            try:
                content = pickle.dumps((work(), ""))
            except BaseException:
                content = pickle.dumps((None, traceback.format_exc()))
            while content:
                content = content[os.write(writer, content) :]
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        content = file.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 0, f"the process ended with {code}"
    returned, error = pickle.loads(content)
    assert not error, error
    return returned


def children() -> set[int]:
    """The processes that this one has started and that are still there."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        found |= {int(child) for child in (task / "children").read_text().split()}
    return {child for child in found if state_of(child) not in ("Z", "")}


def state_of(pid: int) -> str:
    """The letter of /proc for a process, e.g. R, S, T (stopped) or Z; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""

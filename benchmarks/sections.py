"""Runs sections of a table one after the other, each in a process of its own: none that fails, hangs or crashes ends
the others, and its rows are printed as they come.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

CONTEXT = multiprocessing.get_context("fork")
"""What is imported already is not imported again. A GPU must not have been used before the fork."""
WIDTHS = (12, 38, 52, 30, 6)
GRACE = 5.0
"""Seconds in which a section that has sent its last row may end."""


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        section: its name.
        check: what was looked at.
        measured: the result.
        expected: what it must be, or what it is compared with.
        ok: whether it is as it must be; None: it is a figure to read.
        reason: why it failed.
        seconds: since the row before it.
        figures: for JSON.
    """

    section: str
    check: str
    measured: str = ""
    expected: str = ""
    ok: bool | None = None
    reason: str = ""
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return self.ok is False

    def line(self) -> str:
        verdict = f"FAILED: {self.reason}" if self.failed else "ok" if self.ok else ""
        cells = (self.section, self.check, self.measured, self.expected, f"{self.seconds:.1f}")
        return line_of(cells, verdict)


Report = Callable[..., None]
"""``report(check, measured, expected, ok, reason, **figures)``: adds a row."""


@dataclass(frozen=True)
class Section:
    """Some rows of the table.

    Args:
        name: in the first column.
        work: called as ``work(options, rows, report)`` with the rows of the sections before.
        budget: seconds, after which it is ended.
        must_hold: whether its failure is one of the whole.
    """

    name: str
    work: Callable[[Any, Sequence[Row], Report], None]
    budget: float
    must_hold: bool = True


def line_of(cells: Sequence[str], verdict: str) -> str:
    return "  ".join([*(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS, strict=True)), verdict]).rstrip()


def header() -> str:
    return line_of(("section", "check", "measured", "expected", "s"), "verdict")


def run_sections(
    sections: Sequence[Section], options: Any, limit: float, show: Callable[[Row], None]
) -> tuple[list[Row], bool]:
    """Runs all within `limit` seconds.

    Returns:
        All rows, and whether everything that must hold does.
    """
    began, rows, holds = time.monotonic(), [], True
    for section in sections:
        left = limit - (time.monotonic() - began)
        mine = run_section(section, options, rows, min(section.budget, left), show)
        rows += mine
        holds = holds and not (section.must_hold and any(row.failed for row in mine))
    return rows, holds


def run_section(
    section: Section, options: Any, earlier: Sequence[Row], budget: float, show: Callable[[Row], None]
) -> list[Row]:
    """Its rows; the last one says why, if it did not come to its end within `budget` seconds."""
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append(row)
        show(row)

    def fail(reason: str) -> None:
        add(Row(section.name, "", ok=False, reason=reason, seconds=time.monotonic() - since))

    since = time.monotonic()
    if budget <= 0:
        fail("no time was left for it")
        return rows
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_enter, args=(section, options, earlier, sender))
    process.start()
    sender.close()
    try:
        until = since + budget
        while (row := _next(receiver, until)) is not None:
            since = time.monotonic()
            add(row)
        process.join(GRACE)
    except TimeoutError:
        fail(f"not done within {budget:.3g} s")
    except EOFError:
        process.join(GRACE)
        fail(f"its process ended by {_described(process.exitcode)}")
    finally:
        _end(process.pid)
        process.join()
    return rows


def _next(receiver: Connection, until: float) -> Row | None:
    """The next row, None at the end. Raises `TimeoutError`, and `EOFError` if the process is gone."""
    if not receiver.poll(max(0.0, until - time.monotonic())):
        raise TimeoutError
    row: Row | None = receiver.recv()
    return row


def _described(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def _end(pid: int | None) -> None:
    """Ends a section's process and all that it has started, which are a group of their own."""
    if pid is not None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def _enter(section: Section, options: Any, earlier: Sequence[Row], sender: Connection) -> None:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.dup2(2, 1)  # stdout is the table's
    sys.stdout = sys.stderr
    since = time.monotonic()

    def report(
        check: str, measured: str = "", expected: str = "", ok: bool | None = None, reason: str = "", **figures: Any
    ) -> None:
        nonlocal since
        now = time.monotonic()
        why = reason or ("" if ok is not False else f"expected {expected}")
        sender.send(Row(section.name, check, measured, expected, ok, why, now - since, figures))
        since = now

    try:
        section.work(options, earlier, report)
    except (Exception, SystemExit) as error:
        traceback.print_exc(file=sys.stderr)
        said = (str(error).strip().splitlines() or [""])[0]
        report("", ok=False, reason=f"{type(error).__name__}: {said}"[:300])
    sender.send(None)

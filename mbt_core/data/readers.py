"""Processes of their own that read what strangers have made: one that dies, hangs or takes too much memory is replaced,
what it died of is told, and everything else is read all the same.

A *task* is a list of items (the rows of a batch); *work* makes one result of it. While an item is read, the process
says so in memory that its parent sees, too; an item during which processes died twice is left out from then on.
"""

from __future__ import annotations

import os
import pickle
import time
import traceback
import weakref
from collections import Counter, deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from mbt_core.data.messages import receive, send
from mbt_core.data.processes import AT, LEAVE, MEMORY, NOBODY, POLL, SINCE, TASK, Memory, ReadingProcess, start_method
from mbt_core.errors import MBTError

if TYPE_CHECKING:
    from mbt_core.media import Clip

Item = TypeVar("Item")
Value = TypeVar("Value")
Result = TypeVar("Result")

AHEAD = 2
"""Tasks of each process that are read or waiting."""
TRIES = 2
"""Processes that an item may cost."""
FREE_DEATHS = 3
"""Processes that a task may cost outside of its items."""
PATIENCE, MIN_PATIENCE = 5.0, 30.0
"""Times the timeout, and seconds, that reading an item may take before its process counts as hanging."""
GRACE = 2.0
"""Seconds in which a process that is no longer needed may finish its item."""


def patience_for(timeout: float) -> float:
    """Seconds that an item may take where one call of a decoder may take `timeout`: it makes several."""
    return max(MIN_PATIENCE, PATIENCE * timeout)


class Turn:
    """A task, as the process that works on it sees it.

    Attributes:
        lost: number of an item -> why it must not be read.
        suspects: items during which a process died: to be read first, while this one has nothing else in memory.
    """

    def __init__(
        self,
        lost: Mapping[int, str] | None = None,
        suspects: Iterable[int] = (),
        board: Any = None,
        memory: Memory | None = None,
    ) -> None:
        self.lost, self.suspects = lost or {}, frozenset(suspects)
        self._board, self._memory = board, memory

    def at(self, index: int) -> None:
        """Item number `index` is read from now on; calling it again says that this goes on."""
        if self._board is None:
            return
        if self._board[LEAVE]:
            os._exit(0)
        self._board[SINCE] = time.monotonic()
        if self._board[AT] != index:
            self._board[AT] = index
            if self._memory is not None:
                self._memory.limit()

    def watch(self, clip: Clip, index: int) -> Clip:
        """The clip, but that `at` is called before anything of it is used."""
        return cast("Clip", _Watched(clip, partial(self.at, index)))

    def done(self) -> None:
        """No item is read any more."""
        self.at(int(NOBODY))
        if self._memory is not None:
            self._memory.free()


class _Watched:
    def __init__(self, clip: Clip, used: Callable[[], None]) -> None:
        self._clip, self._used = clip, used

    def __getattr__(self, name: str) -> Any:
        self._used()
        return getattr(self._clip, name)


Work = Callable[[Sequence[Any], Turn], Any]


@dataclass
class Each(Generic[Item, Value, Result]):
    """Work that reads its items one by one.

    Args:
        read: of one item.
        lost: (item, why it cannot be read) -> what stands for it.
        join: of what came of the items of a task; by default that is the result.
    """

    read: Callable[[Item], Value]
    lost: Callable[[Item, str], Value]
    join: Callable[[list[Value]], Result] | None = None

    def __call__(self, items: Sequence[Item], turn: Turn) -> Any:
        values: dict[int, Value] = {}
        for index in sorted(range(len(items)), key=lambda index: index not in turn.suspects):
            turn.at(index)
            values[index] = self._read(items[index], turn.lost.get(index))
        turn.done()
        ordered = [values[index] for index in range(len(items))]
        return ordered if self.join is None else self.join(ordered)

    def _read(self, item: Item, why: str | None) -> Value:
        if why is not None:
            return self.lost(item, why)
        try:
            return self.read(item)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            detail = str(error).partition("\n")[0] or "none is left"
            return self.lost(item, f"reading it takes too much memory: {detail}")


def out_of_memory(error: BaseException) -> bool:
    """Whether memory was asked for in vain; torch has no class of its own for that of the CPU."""
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _work(connection: Connection, board: Any, work: Work, memory: int) -> None:
    """A process of a `Pool`: tasks in, results or errors out, until the other end closes."""
    limits = Memory(memory)
    while True:
        try:
            number, items, lost, suspects = receive(connection)
        except (EOFError, OSError):
            return
        board[SINCE], board[TASK] = time.monotonic(), number
        turn = Turn(lost, suspects, board, limits)
        answer: tuple[int, Any, Exception | None]
        try:
            answer = number, work(items, turn), None
        except Exception as error:
            answer = number, None, _sendable(error)
        turn.done()
        try:
            send(connection, answer)
        except BrokenPipeError:
            return
        except Exception as error:  # it cannot be pickled, or there is no memory to share
            send(connection, (number, None, _sendable(error)))


def _sendable(error: Exception) -> Exception:
    """The error as another process can raise it, with where it came from."""
    if not isinstance(error, MBTError):
        error.add_note("In a reading process:\n" + "".join(traceback.format_tb(error.__traceback__)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


@dataclass
class _Task:
    number: int
    items: Sequence[Any]
    lost: dict[int, str] = field(default_factory=dict)
    deaths: Counter[int] = field(default_factory=Counter)


class _Worker:
    """A process, and the tasks that it has, the one it works on first."""

    def __init__(self, work: Work, memory: int) -> None:
        self.process = ReadingProcess(_work, work, memory, method=start_method())
        self.tasks: deque[_Task] = deque()

    def give(self, task: _Task) -> None:
        if not self.tasks:
            self.process.board[AT], self.process.board[SINCE] = NOBODY, time.monotonic()
        self.tasks.append(task)
        suspects = [index for index in task.deaths if index not in task.lost]
        with suppress(OSError):  # it is gone, which is noticed where its answer is awaited
            send(self.process.connection, (task.number, task.items, task.lost, suspects))


class Pool:
    """Reading processes, started when they are needed, for one kind of work.

    Args:
        work: what is done with a task; it is sent to the processes unless they are forked.
        count: most processes; 0: all is done in this one, and what ends a process ends it.
        patience: seconds without a sign of life after which a process counts as hanging.
        memory: bytes that reading one item may take.
        tries: processes that an item may cost.
        key: of an item -> what it is known by in `fatal`; None: nothing is remembered.
        fatal: key -> why it is not read, for what processes have died of.
    """

    def __init__(
        self,
        work: Work,
        count: int,
        patience: float,
        *,
        memory: int = MEMORY,
        tries: int = TRIES,
        key: Callable[[Any], Hashable] | None = None,
        fatal: MutableMapping[Any, str] | None = None,
    ) -> None:
        self.work, self.count, self.patience, self.memory, self.tries = work, count, patience, memory, tries
        self.key, self.fatal = key, {} if fatal is None else fatal
        self._workers: list[_Worker] = []
        self._answers: dict[int, tuple[Any, Exception | None]] = {}
        self._number = 0
        weakref.finalize(self, _stop_all, self._workers, os.getpid())

    def map(self, items: Iterable[Any], chunk: int = 1) -> Generator[Any, None, None]:
        """What came of each item, in their order, for work whose result is a list; `chunk` of them are one task."""

        def tasks() -> Iterator[list[Any]]:
            some = []
            for item in items:
                some.append(item)
                if len(some) == chunk:
                    yield some
                    some = []
            if some:
                yield some

        for values in self.run(tasks()):
            yield from values

    def run(
        self, tasks: Iterable[Sequence[Any]], received: Callable[[Any], Any] = lambda result: result
    ) -> Iterator[Any]:
        """The result of each task, in their order; some are taken ahead.

        Args:
            tasks: items each.
            received: called with a result as soon as it is there, which may be before its turn; what it returns comes
                in its place.

        Raises:
            MBTError: if processes die, or hang, and not of an item.
            Exception: what the work raised.
        """
        if not self.count:
            for items in tasks:
                yield received(self.work(items, Turn(self._known(items))))
            return
        source, ended, done = iter(tasks), False, False
        wanted = self._number
        try:
            while True:
                while not ended and self._number - wanted < AHEAD * self.count:
                    try:
                        items = next(source)
                    except StopIteration:
                        ended = True
                        break
                    self._hand_out(_Task(self._number, items, self._known(items)))
                    self._number += 1
                if wanted == self._number:
                    done = True
                    return
                self._attend(received, 0.0)
                while wanted not in self._answers:
                    self._attend(received, POLL)
                result, error = self._answers.pop(wanted)
                if error is not None:
                    raise error
                wanted += 1
                yield result
        finally:
            if not done:  # what is still being read is of no use to anybody
                self.stop()

    def stop(self) -> None:
        """Ends the processes; they are started anew when there is something to read."""
        _stop_all(self._workers, os.getpid())
        self._answers.clear()

    def _known(self, items: Sequence[Any]) -> dict[int, str]:
        if self.key is None or not self.fatal:
            return {}
        keys = map(self.key, items)
        return {index: self.fatal[key] for index, key in enumerate(keys) if key in self.fatal}

    def _hand_out(self, task: _Task) -> None:
        worker = min(self._workers, key=lambda worker: len(worker.tasks), default=None)
        if worker is None or (worker.tasks and len(self._workers) < self.count):
            worker = _Worker(self.work, self.memory)
            self._workers.append(worker)
        worker.give(task)

    def _attend(self, received: Callable[[Any], Any], seconds: float) -> None:
        """Takes what processes have sent, for which it waits `seconds`; replaces those that are gone or hang."""
        busy = [worker for worker in self._workers if worker.tasks]
        ready = set(wait([worker.process.connection for worker in busy], seconds))
        now = time.monotonic()
        for worker in busy:
            if worker.process.connection in ready:
                self._take(worker, received)
            elif worker.process.is_gone:
                self._replace(worker, f"the process that read it died ({worker.process.ending()})")
            elif now - worker.process.board[SINCE] > self.patience:
                self._replace(worker, f"reading it did not end within {self.patience:g} s")

    def _take(self, worker: _Worker, received: Callable[[Any], Any]) -> None:
        try:
            number, result, error = receive(worker.process.connection)
        except (EOFError, OSError):
            self._replace(worker, f"the process that read it died ({worker.process.ending()})")
            return
        assert worker.tasks.popleft().number == number
        self._answers[number] = (None if error else received(result)), error

    def _replace(self, worker: _Worker, why: str) -> None:
        """Ends a process, and has another one do its tasks, without what it came to its end by."""
        task, board = worker.tasks[0], worker.process.board
        index = int(board[AT]) if board[TASK] == task.number else int(NOBODY)
        worker.process.stop()
        task.deaths[index] += 1
        if index == NOBODY:
            if task.deaths[index] >= FREE_DEATHS:
                raise MBTError(
                    f"{FREE_DEATHS} reading processes in a row came to an end outside of any row, the last one so: "
                    f"{why}. Most often memory is out: lower data.workers or the batch size"
                )
        elif task.deaths[index] >= self.tries:
            task.lost[index] = why
            if self.key is not None:
                self.fatal[self.key(task.items[index])] = why
        tasks, worker.tasks = worker.tasks, deque()
        worker.process = ReadingProcess(_work, self.work, self.memory, method=start_method())
        for task in tasks:
            task.lost |= self._known(task.items)
            worker.give(task)


def _stop_all(workers: list[_Worker], owner: int) -> None:
    """Ends the processes of a pool; a fork of the one that started them leaves them alone."""
    if os.getpid() != owner:
        return
    for worker in workers:
        if not worker.process.connection.closed:
            worker.process.board[LEAVE] = 1.0
    until = time.monotonic() + GRACE
    for worker in workers:
        worker.process.stop(max(0.0, until - time.monotonic()) if worker.tasks else 0.0)
    workers.clear()

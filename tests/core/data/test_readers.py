"""A pool of reading processes: order, what it costs to lose one, and what is never lost with it."""

import faulthandler
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mbt_core.data.processes import MEMORY
from mbt_core.data.readers import Each, Pool, Turn
from mbt_core.errors import DataError, MBTError

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
DIED = "the process that read it died (SIGSEGV)"


def double(item: Any) -> Any:
    match item:
        case "dies":
            faulthandler.disable()  # pytest would print where
            os.kill(os.getpid(), signal.SIGSEGV)
        case "leaves":
            raise SystemExit(4)
        case "hangs":
            time.sleep(100)
        case "starves":
            np.empty(MEMORY + (1 << 30), np.uint8)
        case "full":
            raise MemoryError
        case "refuses":
            raise DataError("no")
        case Path():
            if not item.exists():
                item.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return item.name
    return 2 * item


def told(item: Any, why: str) -> str:
    return f"{item}: {why}"


def pool(count: int, **options: Any) -> Pool:
    each: Each[Any, Any, Any] = Each(double, told)
    return Pool(each, count, options.pop("patience", 20.0), **options)


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("chunk", [1, 4])
def test_results_come_in_order(count: int, chunk: int) -> None:
    assert list(pool(count).map(range(30), chunk)) == [2 * i for i in range(30)]


@pytest.mark.parametrize("count", [1, 2])
def test_items_that_end_their_process(count: int) -> None:
    fatal: dict[str, str] = {}
    reading = pool(count, patience=0.5, key=str, fatal=fatal)
    expected = {
        "dies": f"dies: {DIED}",
        "leaves": "leaves: the process that read it died (exit code 4)",
        "hangs": "hangs: reading it did not end within 0.5 s",
        "full": "full: reading it takes too much memory: none is left",
        "starves": "starves: reading it takes too much memory: Unable to allocate 5.00 GiB for an array with shape "
        "(5368709120,) and data type uint8",
    }
    items: list[Any] = [1, "dies", 2, 3, "leaves", "hangs", 4, "starves", "full", *range(5, 20)]
    results = [expected[item] if isinstance(item, str) else 2 * item for item in items]
    assert list(reading.map(items, 4)) == results
    assert fatal.keys() == {"dies", "leaves", "hangs"}  # memory that is refused costs no process
    began = time.monotonic()
    assert list(reading.map(["dies", "hangs", 1])) == [expected["dies"], expected["hangs"], 2]
    assert time.monotonic() - began < 0.4


def test_an_item_gets_a_second_process(tmp_path: Path) -> None:
    assert list(pool(2).map([1, tmp_path / "once", 2], 3)) == [2, "once", 4]
    other = tmp_path / "other"
    died = f"{other}: the process that read it died (SIGKILL; perhaps memory is out)"
    assert list(pool(1, tries=1).map([1, other, 2], 3)) == [2, died, 4]


def test_what_it_was_read_with_is_not_read_twice_for_nothing(tmp_path: Path) -> None:
    """The second process reads the item that the first one died of before all others."""
    order = tmp_path / "order"

    def noting(item: Any) -> Any:
        with order.open("a") as file:
            file.write(f"{item} ")
        return double(item)

    list(Pool(Each(noting, told), 1, 20.0).run([[1, 2, "dies", 3]]))
    assert order.read_text() == "1 2 dies dies 1 2 3 "


def test_an_error_ends_the_reading() -> None:
    before = set(multiprocessing.active_children())
    results = pool(2).map([1, 2, "refuses", 3])
    assert [next(results), next(results)] == [2, 4]
    with pytest.raises(DataError, match=r"^no$"):
        next(results)
    assert set(multiprocessing.active_children()) <= before


def test_tasks_are_taken_a_little_ahead() -> None:
    taken: list[int] = []

    def tasks() -> Iterator[list[int]]:
        for number in range(100):
            taken.append(number)
            yield [number]

    results = pool(2).run(tasks())
    assert next(results) == [0]
    assert len(taken) == 4
    assert next(results) == [2]
    assert len(taken) == 5
    results.close()  # type: ignore[attr-defined]


def test_processes_that_end_outside_of_items() -> None:
    def dying(items: Sequence[Any], turn: Turn) -> Any:
        turn.done()
        os._exit(7)

    with pytest.raises(MBTError, match=r"^3 reading processes in a row .* outside of any row, .*\(exit code 7\)"):
        list(Pool(dying, 1, 20.0).run([[1]]))


def test_a_process_that_dies_while_it_is_idle() -> None:
    reading = pool(1)
    assert list(reading.map([1])) == [2]
    for process in multiprocessing.active_children():
        process.kill()
        process.join()
    assert list(reading.map([2, 3])) == [4, 6]


def test_nothing_stays_when_the_pool_is_gone() -> None:
    before = set(multiprocessing.active_children())
    reading = pool(2)
    assert list(reading.map(range(4))) == [0, 2, 4, 6]
    assert len(set(multiprocessing.active_children()) - before) == 2
    del reading
    assert set(multiprocessing.active_children()) <= before

"""A process's share of the machine."""

import os

import pytest

from mbt_core.data.machine import cores, free_memory, processes_here


def test_shares_of_the_processes_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert processes_here() == 1
    alone, memory = cores(), free_memory()
    assert 1 <= alone <= (os.cpu_count() or 1)
    assert memory > 10_000_000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert cores() == 1
    assert free_memory() < memory / 500

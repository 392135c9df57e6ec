"""How threads wait for each other."""

from pathlib import Path

import pytest

from mbt_cli import main as mains
from mbt_cli import threads


@pytest.mark.parametrize(
    ("given", "running", "expected"),
    [
        ({}, 1, {}),
        ({}, 2, {"GOMP_SPINCOUNT": "300"}),
        ({"OMP_NUM_THREADS": "2"}, 2, {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "300"}),
        ({"GOMP_SPINCOUNT": "7"}, 2, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "active"}, 2, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_threads_sleep_early_beside_others_unless_the_user_says_how(given, running, expected, tmp_path, monkeypatch):
    (tmp_path / "stat").write_text(f"cpu  1 2 3\nprocs_running {running}\nprocs_blocked 0\n")
    monkeypatch.setattr(threads, "STAT", tmp_path / "stat")
    environment = dict(given)
    threads.settle_waiting(environment)
    assert environment == expected


def test_what_runs_now_and_then_does_not_count(monkeypatch):
    counts = iter([2, 3, 1])
    monkeypatch.setattr(threads, "_running", lambda: next(counts))
    assert not threads.others_run()


def test_where_the_system_does_not_tell_nothing_is_set(monkeypatch):
    monkeypatch.setattr(threads, "STAT", Path("/nowhere/stat"))
    environment: dict[str, str] = {}
    threads.settle_waiting(environment)
    assert not environment


@pytest.mark.parametrize(("arguments", "settled"), [(["recipes", "list"], True), (["--help"], False), ([], False)])
def test_only_a_command_looks_around(arguments, settled, monkeypatch):
    done = []
    monkeypatch.setattr(mains, "settle_waiting", done.append)
    monkeypatch.setattr(mains, "app", lambda: None)
    monkeypatch.setattr("sys.argv", ["mbt", *arguments])
    mains.main()
    assert bool(done) == settled

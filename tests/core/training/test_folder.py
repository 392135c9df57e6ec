"""Names of run folders."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mbt_core import ConfigError
from mbt_core.errors import InUseError
from mbt_core.run import train
from mbt_core.training.folder import LOCK, RunFolder


def test_runs_started_at_the_same_time_have_folders_of_their_own(tmp_path):
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda _: RunFolder.named(tmp_path / "runs", "x").path.name, range(40)))
    assert sorted(found) == sorted(["x", *(f"x-{number}" for number in range(2, 41))])


def test_other_processes_of_a_run_take_none(tmp_path, monkeypatch):
    variables = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert RunFolder.named(tmp_path, "x").path == RunFolder.named(tmp_path, "x").path == tmp_path / "x"
    assert os.listdir(tmp_path) == []


def test_a_run_that_never_began_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="modalities"):
        train({"modalities": {"nothing": {}}})
    model = {"fusion": {"layer": 1}, "backbone": {"dim": 8, "depth": 1, "heads": 2}}
    with pytest.raises(ConfigError, match="no data"):
        train({"modalities": {"signal": {"channels": 1, "rate": 1, "seconds": 4}}, "model": model})
    assert list(Path("runs").iterdir()) == []


def test_release_keeps_what_is_not_empty(tmp_path):
    folder = RunFolder.named(tmp_path, "x")
    (folder.path / "file").touch()
    folder.release()
    assert folder.path.exists()


def test_where_no_folder_can_be_made(tmp_path):
    (tmp_path / "runs").touch()
    with pytest.raises(ConfigError, match=r"runs/x: cannot be made: Not a directory; give --out"):
        RunFolder.named(tmp_path / "runs", "x")


HOLDER = """
import os, sys, time
from mbt_core.training.folder import LOCK, RunFolder
with RunFolder(sys.argv[1]).claim() as refused:
    forked = os.fork()  # as a reading process is
    if forked:
        print(refused, forked, flush=True)
    time.sleep(60)
"""


def claimed(path):
    with RunFolder(path).claim() as refused:
        return refused


def test_a_folder_belongs_to_one_process_until_that_ends(tmp_path):
    run = tmp_path / "runs" / "x"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, run], stdout=subprocess.PIPE, text=True)
    refused, forked = holder.stdout.readline().split()
    try:
        assert refused == "None"
        assert "another process is training in" in str(claimed(run))
        experiment = {"modalities": {"signal": {"channels": 1, "rate": 1, "seconds": 4}}}
        model = {"fusion": {"layer": 1}, "backbone": {"dim": 8, "depth": 1, "heads": 2}}
        with pytest.raises(InUseError, match="another process is training in"):
            train(experiment | {"model": model}, run)
        holder.kill()
        holder.wait()
        assert claimed(run) is None
    finally:
        holder.kill()
        os.kill(int(forked), signal.SIGKILL)
        holder.communicate()


def test_a_claim_leaves_nothing(tmp_path):
    with RunFolder(tmp_path / "a" / "b").claim() as refused:
        assert refused is None
        assert os.listdir(tmp_path / "a" / "b") == [LOCK]
        RunFolder(tmp_path / "a" / "b").check_unused()
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_to_is_no_reason_to_refuse(tmp_path):
    (tmp_path / "file").touch()
    assert claimed(tmp_path / "file" / "run") is None

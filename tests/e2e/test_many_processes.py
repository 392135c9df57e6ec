"""The real command line with several processes: by `mbt train --devices` and by `torchrun`, killed, restarted."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")]
SETTINGS = {
    "modalities": {"signal": {"channels": 2, "rate": 32, "seconds": 2}},
    "model": {"backbone": {"dim": 16, "depth": 2, "heads": 2}, "fusion": {"layer": 1}},
    "train": {"steps": 1000, "batch_size": 8, "lr": 0.01, "eval_every": 500, "log_every": 20, "save_every": 0.5},
    "data": {"workers": 0},
}


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(30):
        np.save(tmp_path / f"{i}.npy", rng.normal(size=(2, 64)).astype(np.float32) + i % 3)
        rows.append([i, f"{i}.npy", ("train", "train", "train", "val", "test")[i % 5], "abc"[i % 3]])
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "path", "split", "label"], *rows])
    (tmp_path / "recipe.yaml").write_text(json.dumps(SETTINGS))
    return tmp_path


@pytest.fixture
def start(folder):
    """Starts the command; what is left of it is ended with the test."""
    started = []

    def begin(*options, launcher=()):
        started.append(launch(folder, *options, launcher=launcher))
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            for child in children_of(process.pid):
                os.kill(child, signal.SIGKILL)
            process.kill()
            process.communicate()


def launch(folder, *options, launcher):
    command = [sys.executable, *launcher, "-m", "mbt_cli", "train", "--data", "manifest.csv", "--recipe", "recipe.yaml"]
    return subprocess.Popen(
        [*command, "--device", "cpu", *options],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def events(run):
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_step(run, process, step):
    until = time.monotonic() + 200
    while not any(event["step"] >= step for event in events(run)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.2)


def children_of(pid):
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in listed.split()]


def test_devices_starts_processes_and_only_the_first_speaks(folder, start):
    process = start("--out", "run", "--devices", "2", "--set", "train.steps=40")
    out, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert out.count("test split, run") == 1
    assert said.count("recipe ") == said.count("run folder run") == 1
    assert [event["event"] for event in events(folder / "run")] == ["step", "step", "val", "end"]
    assert (folder / "run/config.yaml").read_text().startswith("# mbt train --data manifest.csv")


def test_a_killed_process_of_devices(folder, start):
    process = start("--out", "run", "--devices", "2")
    wait_for_step(folder / "run", process, 100)
    os.kill(children_of(process.pid)[0], signal.SIGKILL)
    began = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - began < 60
    assert process.returncode == 1
    assert "Error: process 1 of the run was killed by SIGKILL" in said


def test_torchrun_goes_on_after_a_process_was_killed(folder, start):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    process = start("--out", "run", launcher=launcher)
    wait_for_step(folder / "run", process, 300)
    os.kill(children_of(process.pid)[-1], signal.SIGKILL)
    out, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert out.count("test split, run") == 1
    assert "from step" in said
    steps = [event["step"] for event in events(folder / "run") if event["event"] == "step"]
    assert steps == list(range(20, 1001, 20))

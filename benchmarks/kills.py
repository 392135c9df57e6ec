"""Kills a training run by SIGKILL at random points, goes on with it, and compares with a run that nobody disturbed.

    python benchmarks/kills.py [--kills 30] [--seed 0] [--steps 60]

Each line of the table is a run of its own, killed once and resumed to its end by the real command line, on the CPU. A
third of the kills come while the command starts, a third between two saves at a random time, a third while a file is
being saved: as soon as its temporary sibling is seen. `left` says which half-written file the kill left behind. The
weights, the optimiser's state, the progress and the log are compared bit for bit; exits with 1 if any differ.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file

from mbt_benchmarks.demo import make_demo
from mbt_core.training.state import FILE, read_progress

SETTINGS = {
    "modalities": {"rgb": {"frames": 2, "size": 32, "short_side": 32}, "audio": {"seconds": 1, "mel_bins": 32}},
    "model": {"backbone": {"dim": 96, "depth": 4, "heads": 4}, "fusion": {"layer": 2}, "drop_path": 0.1},
    "train": {"batch_size": 8, "optimizer": "adamw", "lr": 0.001, "eval_every": 20, "log_every": 7,
              "save_every": 0.05, "mixup": 0.3, "modality_dropout": 0.2},
    "data": {"cache": "memory"},
}  # fmt: skip
KINDS = ("start", "between", "saving")
CLOCK = ("time", "clips_per_second")


def start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mbt_cli", "train", *map(str, arguments), "--device", "cpu", "-q"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    """Waits for the end; what went wrong, or nothing."""
    said = process.communicate(timeout=600)[1]
    return "" if process.returncode == 0 else f"exit code {process.returncode}: {said.strip()[-300:]}"


def wait_until(process: subprocess.Popen[str], happened: Callable[[], bool], seconds: float = 300.0) -> None:
    """Until it has happened, the process has ended, or the time is over."""
    until = time.monotonic() + seconds
    while not happened() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.0002)


def half_written(run: Path) -> list[str]:
    """Which files are being saved, or were when the process was killed."""
    folders = [folder for folder in (run, run / "state") if folder.is_dir()]
    return sorted(
        name.split(".")[1]
        for folder in folders
        for name in os.listdir(folder)
        if name[0] == "." and name[-4:] == ".tmp"
    )


def wait(kind: str, process: subprocess.Popen[str], run: Path, chance: random.Random, times: dict[str, float]) -> None:
    """Until the moment of the kill."""
    if kind == "start":
        time.sleep(chance.uniform(0, times["start"]))
        return
    wait_until(process, (run / "state" / FILE).exists)
    time.sleep(chance.uniform(0, 0.7 if kind == "between" else 0.3) * times["train"])  # its end is an evaluation
    if kind == "saving":
        wait_until(process, lambda: bool(half_written(run)), seconds=5)


def log_of(run: Path) -> list[dict[str, object]]:
    """The lines of a run's log, without what the clock says."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{**json.loads(line), **dict.fromkeys(CLOCK)} for line in lines]


def differences(run: Path, unbroken: Path) -> list[str]:
    """What is not the same in two runs."""
    found = []
    for name in ("model.safetensors", f"state/{FILE}"):
        one, other = load_file(run / name), load_file(unbroken / name)
        if one.keys() != other.keys() or not all(one[key].equal(other[key]) for key in one):
            found.append(name)
    if read_progress(run / "state") != read_progress(unbroken / "state"):
        found.append("progress")
    if log_of(run) != log_of(unbroken):
        found.append("metrics.jsonl")
    if half_written(run):
        found.append("temporary files")
    return found


def undisturbed(folder: Path, arguments: list[object]) -> dict[str, float]:
    """Makes the run that the others are compared with; the seconds until it first saves, and from there to its end."""
    began = time.monotonic()
    process = start(folder, *arguments, "--out", "unbroken")
    wait_until(process, (folder / "unbroken" / "state" / FILE).exists)
    saved = time.monotonic()
    if problem := finish(process):
        sys.exit(problem)
    return {"start": saved - began, "train": time.monotonic() - saved}


def kill_and_resume(
    kind: str, run: Path, arguments: list[object], chance: random.Random, times: dict[str, float]
) -> tuple[str, list[str], str]:
    """A run, killed once and resumed to its end; makes a line of the table.

    Returns:
        The line, the files that were half written, and what was wrong at the end.
    """
    folder = run.parent
    began = time.monotonic()
    process = start(folder, *arguments, "--out", run)
    wait(kind, process, run, chance, times)
    process.kill()
    process.communicate()
    after, progress, left = time.monotonic() - began, read_progress(run / "state"), half_written(run)
    began = time.monotonic()
    problem = finish(start(folder, *arguments, "--out", run, "--resume", run))
    problem = problem or ", ".join(differences(run, folder / "unbroken"))
    saved = progress.step if progress else "-"
    lasted = time.monotonic() - began
    line = f"{kind:8} | {after:7.2f} | {saved:>10} | {', '.join(left) or '-':10} | {lasted:10.1f} | "
    return line + (problem or "identical"), left, problem


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    chance, wrong, while_saving = random.Random(options.seed), 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = make_demo(folder / "demo", train=40, test=9)
        (folder / "recipe.yaml").write_text(json.dumps(SETTINGS))
        arguments: list[object] = [
            "--data",
            manifest,
            "--recipe",
            "recipe.yaml",
            "--set",
            f"train.steps={options.steps}",
        ]
        times = undisturbed(folder, arguments)
        print(
            f"undisturbed: {options.steps} steps, {times['start']:.1f} s to the first save, then {times['train']:.1f}"
        )
        print("kill | when     | after s | step saved | left       | resumed, s | result", flush=True)
        for number in range(options.kills):
            kind = KINDS[number % len(KINDS)]
            line, left, problem = kill_and_resume(kind, folder / f"run{number}", arguments, chance, times)
            while_saving, wrong = while_saving + bool(left), wrong + bool(problem)
            print(f"{number + 1:4} | {line}", flush=True)
    print(f"{options.kills - wrong} of {options.kills} ended bit-identical; {while_saving} left a file half written")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

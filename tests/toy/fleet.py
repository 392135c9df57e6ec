"""Runs of several processes on this machine, forked from one that has imported everything: none costs an import."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CONTEXT = multiprocessing.get_context("forkserver")


@dataclass
class Ended:
    """How a process ended, and what it said on stderr. No code: it did not end."""

    code: int | None
    said: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.said.splitlines() if line.startswith("Error: ")]


def run_fleet(world: int, work: Callable[..., None], *args: Any, timeout: float = 60.0) -> list[Ended]:
    """Runs ``work(*args)`` in `world` processes with the variables that `torchrun` sets."""
    CONTEXT.set_forkserver_preload(["mbt_core.run", "torch.distributed.fsdp", "toy.fleet"])
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        heard = [Path(folder) / str(rank) for rank in range(world)]
        fleet = [
            CONTEXT.Process(target=_enter, args=(rank, world, port, heard[rank], work, args)) for rank in range(world)
        ]
        for process in fleet:
            process.start()
        try:
            for process in fleet:
                # where one has failed, the others must end soon
                process.join(12 if any(p.exitcode for p in fleet) else timeout)
            codes = [process.exitcode for process in fleet]
        finally:
            for process in fleet:
                process.kill()
        return [Ended(code, path.read_text()) for code, path in zip(codes, heard, strict=True)]


def _enter(rank: int, world: int, port: int, heard: Path, work: Callable[..., None], args: Sequence[Any]) -> None:
    import torch

    import toy
    from mbt_core import MBTError, registry
    from mbt_core.training.loop import Interrupted

    os.dup2(os.open(heard, os.O_WRONLY | os.O_CREAT), 2)
    numbers = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ.update({name: str(number) for name, number in numbers.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    registry().register(toy, "toy")
    try:
        work(*args)
    except MBTError as error:  # as the command line does
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Interrupted as stop:
        sys.exit(stop.exit_code)


def train(
    experiment: dict[str, Any], out: Path, resume: bool = False, parallel: str = "ddp", event: tuple[Any, ...] = ()
) -> None:
    """Trains in one of several processes.

    Args:
        experiment, out, resume: of `mbt_core.run.train`.
        parallel: of `Hardware`.
        event: (rank, step, what happens then): a signal's number, or an error to raise.
    """
    from mbt_core.run import Hardware, Trainer
    from mbt_core.run import train as run_training

    step = Trainer.train_step

    def eventful(self: Trainer, *args: Any) -> None:
        if event and (self.team.rank, self.progress.step) == event[:2]:
            if isinstance(event[2], Exception):
                raise event[2]
            os.kill(os.getpid(), event[2])
        step(self, *args)

    Trainer.train_step = eventful  # type: ignore[method-assign]
    run_training(experiment, out, resume=resume, hardware=Hardware("cpu", parallel=parallel))


def train_impatiently(*args: Any) -> None:
    """`train`, where a process counts as dead after 3 seconds."""
    from mbt_core.distributed import processes

    processes.PATIENCE, processes.BEAT = 3.0, 0.2
    train(*args)


def train_with_cache(cache: Path, *args: Any) -> None:
    """`train`, with `$MBT_CACHE` in a folder: what the forking process was started with is not this test's."""
    os.environ["MBT_CACHE"] = str(cache)
    train(*args)


def evaluate(run: Path, data: str, workers: int, out: Path) -> None:
    """Evaluates a run on the test split in one of several processes; the first one writes the metrics."""
    from mbt_core.data.source import open_manifest, other_data
    from mbt_core.distributed.processes import together
    from mbt_core.run import Hardware, load
    from mbt_core.training.evaluation import evaluate_split

    opened = load(run)
    opened.experiment.data.workers = workers
    manifest = open_manifest(
        other_data(opened.experiment.data, data), opened.model.modalities, opened.model.config.head
    )
    with together(Hardware("cpu"), opened.experiment.train.precision) as team:
        found = evaluate_split(opened.experiment, opened.model, manifest, "test", team, None, (), None, None)
        if team.is_first:
            (evaluation,) = found.values()
            about = {"metrics": evaluation.metrics(), "failed": sorted(evaluation.failed)}
            out.write_text(json.dumps(about))


def write_series(folder: Path, count: int) -> Path:
    """A manifest of `count` rows with a series and a sequence each, of 3 classes; some cells empty, some files bad."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        kind = int(rng.integers(3))
        series = rng.normal(size=(2, 8)) + 2 * np.sin(np.arange(8) * (kind + 1))
        sequence = rng.normal(size=(3, 1 + i % 6)) + kind
        np.save(folder / f"a{i}.npy", series.astype(np.float32))
        np.save(folder / f"g{i}.npy", sequence.astype(np.float32))
        split = "val" if i % 5 == 3 else "test" if i % 7 == 4 else "train"
        alpha, gamma = ("" if i % 11 == 2 else f"a{i}.npy"), ("" if i % 13 == 5 else f"g{i}.npy")
        rows.append({"id": f"r{i}", "alpha": alpha, "gamma": gamma, "split": split, "label": "xyz"[kind]})
    for row in rows[6:9]:  # one of train, one of train, one of val
        for name in ("alpha", "gamma"):
            (folder / (row[name] or "none.npy")).write_bytes(b"broken")
    path = folder / "manifest.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


STOP, KILL, HALT = signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP

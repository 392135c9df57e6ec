"""Whole trainings on the device: against the CPU, in a process group of one, and interrupted and resumed."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from device_correct import exact_products, largest_difference
from kills import differences
from lightning_fabric import Fabric
from safetensors.torch import load_file
from sections import Report, Row

from mbt_core import MBT
from mbt_core.config import Experiment
from mbt_core.data.collate import Preprocess, blank_batch
from mbt_core.data.missing import Losses
from mbt_core.distributed.launch import Place
from mbt_core.distributed.processes import Hardware, Team, connect
from mbt_core.media.reads import Reads
from mbt_core.run import train
from mbt_core.testing.conformance.examples import COUNT, write_example
from mbt_core.training.events import Listener
from mbt_core.training.folder import RunFolder
from mbt_core.training.loop import Interrupted, Plan, Trainer

STEPS, BATCH = 4, 8
DIFFERENCES = {"32": 2e-3, "bf16": 0.2}
"""Largest difference of how far a tensor of weights has moved in `STEPS` steps, of its norm."""
SAME_STEP = 1e-4
"""The same, between one process and a process group of one: kernels may differ, numbers may not."""
DRAWN = {"drop_path": 0.1, "dropout": 0.1, "patch_drop": 0.25}
"""What every step draws on the device."""


def experiment_of(data: Path | None, tiny: bool, model: Mapping[str, Any], **settings: Any) -> Experiment:
    """A small model of videos, which other processes read anew each time; `settings` are those of the training."""
    dim, size = (32, 32) if tiny else (384, 64)
    return Experiment(
        modalities={
            "rgb": {"frames": 2, "size": size, "short_side": size, "seconds": 1.0},
            "audio": {"seconds": 1, "mel_bins": 32, "mean": -2.0, "std": 4.0},
        },
        model={
            "backbone": {"dim": dim, "depth": 3 if tiny else 6, "heads": dim // 32 or 1},
            "fusion": {"layer": 2},
            "head": {"tasks": {"kind": 9, "sum": 3}},
            **model,
        },
        data={"path": None if data is None else str(data), "val_fraction": 0.0, "cache": "none"},
        train={"steps": STEPS, "batch_size": BATCH, "warmup": 0.0, "log_every": 1, **settings},
    )


def small_data(folder: Path) -> Path:
    """A manifest of two batches to train on and one to test, of a few small videos."""
    files = [write_example(Reads.FRAMES, None, folder, number) for number in range(COUNT)]
    rows = ["path,id,split,label.kind,label.sum"]
    for number in range(3 * BATCH):
        split = "train" if number < 2 * BATCH else "test"
        rows.append(f"{files[number % COUNT].name},{number},{split},k{number % 9},s{number % 3}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return folder / "manifest.csv"


def moves(run: Path, start: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """How far the weights of a run have moved from those it started with."""
    return {name: x.double() - start[name].double() for name, x in load_file(run / "model.safetensors").items()}


def training(options: Any, earlier: Sequence[Row], report: Report) -> None:
    """`mbt train` on the device and on the CPU: files, workers, augmentation, mixup, the loop; without what is drawn on
    the device."""
    exact_products()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = small_data(folder)

        def run(name: str, device: str, precision: str) -> Path:
            experiment = experiment_of(data, options.tiny, {}, lr=0.1, mixup=0.3, precision=precision)
            return train(experiment, folder / name, hardware=Hardware(device)).path

        on_cpu = run("cpu", "cpu", "32")
        torch.manual_seed(0)  # as a run does
        start = MBT(experiment_of(data, options.tiny, {}).mbt_config()).state_dict()
        for precision, allowed in DIFFERENCES.items():
            found = moves(run(f"device-{precision}", options.device, precision), start)
            worst = largest_difference(found, moves(on_cpu, start))
            expected = f"at most {allowed:g} of their way"
            check = f"{STEPS} steps of mbt train, {precision}"
            report(check, f"weights differ by {worst:.1e}", expected, worst <= allowed, difference=worst)


def stepped(fabric: Fabric, options: Any, folder: Path) -> dict[str, torch.Tensor]:
    """How far the weights move in two steps of the training loop, in the processes of `fabric`; the head is 0 at first,
    so that the first step moves nothing else."""
    experiment = experiment_of(None, options.tiny, {}, lr=0.1, clip_grad=10.0)
    torch.manual_seed(0)
    model = MBT(experiment.mbt_config())
    start = {name: x.clone() for name, x in model.state_dict().items()}
    losses = Losses("", 0, 0, 0.0)
    loop = Trainer(
        Team(fabric), experiment, RunFolder(folder), model, Preprocess(model.modalities),
        Plan(2, BATCH, 2, None), Listener(), None, str, losses,
    )  # fmt: skip
    batch = blank_batch(model.modalities, BATCH)
    batch.targets = {"kind": torch.arange(BATCH), "sum": torch.arange(BATCH) % 3}
    for loop.progress.step in range(2):
        loop.train_step(batch.to(fabric.device), BATCH)
    loop.progress.step = 2
    loop.save()
    saved = load_file(RunFolder(folder).state / "state.safetensors")
    weights = {key.removeprefix("model."): x for key, x in saved.items() if key.startswith("model.")}
    return {name: x.double() - start[name].double() for name, x in weights.items()}


def processes(options: Any, earlier: Sequence[Row], report: Report) -> None:
    """A process group of one: its collectives, and steps with `ddp` and `fsdp` against those without a group."""
    exact_products()
    with tempfile.TemporaryDirectory() as name, socket.socket() as probe:
        alone = stepped(Hardware(options.device).fabric("32"), options, Path(name) / "alone")
        probe.bind(("127.0.0.1", 0))
        variables = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1"}
        variables["MASTER_PORT"] = probe.getsockname()[1]
        probe.close()
        os.environ.update({key: str(value) for key, value in variables.items()})
        connect(Place(), options.device)
        backend, expected = dist.get_backend(), "nccl" if options.device == "cuda" else "gloo"
        ones = torch.ones(3, device=options.device)
        dist.all_reduce(ones)
        beside = torch.ones(3)
        dist.all_reduce(beside, group=dist.new_group(backend="gloo"))  # as a team of several has it
        right = backend == expected and bool((ones == 1).all()) and bool((beside == 1).all())
        report("a group, and one of gloo beside it", f"{backend}: sums over both", expected, right)
        for parallel in ("ddp", "fsdp"):
            fabric = Hardware(options.device, parallel=parallel).fabric("32", joined=True)
            fabric.launch()
            worst = largest_difference(stepped(fabric, options, Path(name) / parallel), alone)
            measured, limit = f"weights differ by {worst:.1e}", f"at most {SAME_STEP:g} of their way"
            report(f"two steps, {backend}, {parallel}", measured, limit, worst <= SAME_STEP, difference=worst)
        dist.destroy_process_group()


class Halt(Listener):
    """Asks the run to stop, as a queue or Ctrl-C does, in the midst of it."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == STEPS // 2:
            signal.raise_signal(signal.SIGTERM)


def resume(options: Any, earlier: Sequence[Row], report: Report) -> None:
    """A training that was interrupted and resumed, with all that is drawn on the device, against one that was not."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = small_data(folder)
        settings = {"optimizer": "adamw", "lr": 1e-3, "mixup": 0.3, "modality_dropout": 0.2, "save_every": 1e-6}
        for precision in ("bf16",) if options.tiny else ("32", "bf16"):
            experiment = experiment_of(data, options.tiny, DRAWN, precision=precision, **settings)
            unbroken, broken = folder / f"unbroken-{precision}", folder / f"broken-{precision}"
            hardware = Hardware(options.device)
            train(experiment, unbroken, hardware=hardware)
            try:
                train(experiment, broken, hardware=hardware, listeners=[Halt()])
                raise RuntimeError("the run was asked to stop and did not")
            except Interrupted:
                train(experiment, broken, hardware=hardware, resume=True)
            found = differences(broken, unbroken)
            measured = f"other {', '.join(found)}" if found else "weights, state and log are the same bits"
            check = f"stopped at step {STEPS // 2} of {STEPS}, resumed, {precision}"
            report(check, measured, "the same bits (deterministic)", not found, different=found)

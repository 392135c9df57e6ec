"""Whether `mbt train` wastes anything: its loop against a bare PyTorch loop, what a run costs besides, and threads.

    OMP_NUM_THREADS=1 python benchmarks/loop.py [--data MANIFEST] [--steps 1 301] [--rounds 3]
    python benchmarks/loop.py --threads [--rounds 5] [--seconds 2]

Without --threads, `mbt train` (recipe `small`) is run at two lengths; by processor time, reading processes included, a
straight line through both gives the time of a step and the fixed cost of a run. The bare loop has the same model,
optimizer, clipping, loss and evaluations, and its batches as tensors in memory: as they are collated ("samples", which
it preprocesses in every step as the run does: spectrograms, normalisation), or as the model takes them ("inputs").

With --threads, the bare loop on stand-ins is timed by the clock in processes that wait for each other's threads in
different ways, alone and beside one process that is always busy; they take turns. It needs a machine with nothing else
to do.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

MOST_BATCHES = 64
VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
WAYS: dict[str, dict[str, str]] = {
    "libgomp's default": {},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    **{f"GOMP_SPINCOUNT={n}": {"GOMP_SPINCOUNT": n} for n in ("300", "1000", "4000", "10000", "30000")},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def make_data(folder: Path, rows: int = 1200) -> Path:
    """Noisy pictures of 28 x 28 pixels and 0.4 s of sound at 8 kHz, in ten classes."""
    from PIL import Image

    rng = np.random.default_rng(0)
    lines = ["id,rgb,audio,label,split"]
    for row in range(rows):
        label = row % 10
        pixels = rng.integers(0, 120, (28, 28), np.uint8)
        pixels[4 + 2 * label : 8 + 2 * label] += 120
        Image.fromarray(pixels).save(folder / f"{row}.png")
        sound = np.sin(np.arange(3200) * (label + 2) / 20) + rng.normal(size=3200)
        with wave.open(str(folder / f"{row}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes((sound * 5000).astype(np.int16).tobytes())
        lines.append(f"{row},{row}.png,{row}.wav,{label},{'test' if row % 6 == 0 else 'train'}")
    path = folder / "manifest.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def train(data: Path, out: Path, steps: int) -> float:
    """Seconds of processor time that `mbt train` takes, with all of its processes."""
    command = [sys.executable, "-m", "mbt_cli", "train", "--data", data, "--modalities", "rgb,audio", "--out", out]
    process = subprocess.Popen([*map(str, command), "--quiet", "--set", f"train.steps={steps}"])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"mbt train ended with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_utime + usage.ru_stime


def bare(folder: Path, steps: int) -> dict[str, float]:
    """Seconds of processor time that `steps` steps of the bare loop take, with the evaluations of a run of them."""
    import torch

    import mbt_core as mbt
    from mbt_core.data.collate import Preprocess
    from mbt_core.data.loader import make_loader
    from mbt_core.data.sampler import EvalSampler, TrainSampler
    from mbt_core.data.source import open_manifest
    from mbt_core.training.evaluation import make_dataset
    from mbt_core.training.loop import make_plan

    experiment, cpu = mbt.load(folder).experiment, torch.device("cpu")
    model = mbt.MBT(experiment.mbt_config())
    manifest = open_manifest(experiment.data, model.modalities, experiment.model.head)
    preprocess, size = Preprocess(model.modalities), int(experiment.train.batch_size)
    rows, val = manifest.usable("train"), manifest.rows("val")
    plan = make_plan(experiment.train.model_copy(update={"steps": steps}), len(rows), size, None)
    train_rows = TrainSampler(rows, size, min(steps, MOST_BATCHES), 0)
    batches = [*make_loader(make_dataset(experiment, model, manifest, training=True), train_rows, 1, cpu)]
    held_out = [*make_loader(make_dataset(experiment, model, manifest, training=False), EvalSampler(val, size), 1, cpu)]
    found = {}
    with torch.no_grad():
        inputs = [[(preprocess(batch), batch.targets) for batch in part] for part in (batches, held_out)]
    for name, parts, prepare in (
        ("samples", [[(b, b.targets) for b in part] for part in (batches, held_out)], preprocess),
        ("inputs", inputs, lambda x: x),
    ):
        start = time.process_time()
        _loop(experiment, parts, prepare, steps, plan.eval_every)
        found[name] = time.process_time() - start
    return found


def _loop(experiment: Any, parts: list[list[Any]], prepare: Any, steps: int, every: int) -> None:
    import torch

    import mbt_core as mbt
    from mbt_core.model.loss import dense_targets, example_losses
    from mbt_core.training.optimizer import make_optimizer

    model, config = mbt.MBT(experiment.mbt_config()), experiment.train
    optimizer, head = make_optimizer(model, config, torch.device("cpu")), model.config.head
    for step, (batch, y) in enumerate(islice(cycle(parts[0]), steps), 1):
        with torch.no_grad():
            x = prepare(batch)
        targets = dict.fromkeys([*x, ""], dense_targets(y, head))
        loss = example_losses(model(x), targets, head, None, config.label_smoothing).mean()
        loss.backward()
        if config.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % every == 0:
            model.eval()
            with torch.inference_mode():
                hits = [(model(prepare(x)).logits.argmax(1) == y["label"]).float().mean() for x, y in parts[1]]
            float(torch.stack(hits).mean())
            model.train()


def compare(data: Path, folder: Path, lengths: list[int], rounds: int, console: Console) -> None:
    """One table: the loop, and the fixed cost."""
    short, long = lengths
    found: dict[str, list[float]] = {}
    for number in range(rounds):
        ours = {steps: train(data, folder / f"{number}-{steps}", steps) for steps in lengths}
        command = [sys.executable, __file__, "--bare", str(folder / f"{number}-{long}"), "--steps", str(long - short)]
        theirs = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        step = (ours[long] - ours[short]) / (long - short)
        of_round = {"a step": 1e3 * step, "fixed cost": ours[short] - short * step}
        of_round |= {name: seconds / (long - short) / step for name, seconds in theirs.items()}
        for name, value in of_round.items():
            found.setdefault(name, []).append(value)
    table = Table(title=f"mbt train, recipe small, {long} and {short} steps; processor time, {rounds} rounds")
    for heading in ("", "median", "rounds"):
        table.add_column(heading)
    texts = {
        "a step": ("ms a step", "{:.0f}"),
        "samples": ("bare loop on samples / ours", "{:.2f}"),
        "inputs": ("bare loop on inputs / ours", "{:.2f}"),
        "fixed cost": ("seconds of a run of no steps", "{:.1f}"),
    }
    for name, (text, form) in texts.items():
        table.add_row(text, form.format(statistics.median(found[name])), " ".join(map(form.format, found[name])))
    console.print(table)


def work() -> None:
    """Reads seconds, a line each, trains for so long, and writes examples a second."""
    import torch

    from mbt_core import MBT

    rgb = {"stem": "conv", "frames": 1, "tubelet": 1, "seconds": 1.0, "size": 80, "patch": 16}
    audio = {"stem": "conv", "seconds": 0.8, "mel_bins": 64, "patch": [16, 32], "mean": 0.0, "std": 1.0}
    fusion = {"layer": 2, "exchange_drop": 0.5}
    config = {"backbone": {"dim": 128, "depth": 4, "heads": 4}, "fusion": fusion, "head": {"classes": 10}}
    model = MBT({"modalities": {"rgb": rgb, "audio": audio}, **config})
    inputs = {"rgb": torch.randn(32, 3, 1, 80, 80), "audio": torch.randn(32, 1, 80, 64)}
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for line in sys.stdin:
        start, examples = time.perf_counter(), 0
        while time.perf_counter() - start < float(line):
            model(inputs).logits.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            examples += 32
        print(examples / (time.perf_counter() - start), flush=True)


@contextmanager
def processes(ways: Mapping[str, Mapping[str, str]]) -> Iterator[dict[str, subprocess.Popen[str]]]:
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    started = {
        name: subprocess.Popen([sys.executable, __file__, "--work"], env=clean | variables, **pipes)
        for name, variables in ways.items()
    }
    try:
        yield started
    finally:
        for process in started.values():
            process.kill()
            process.wait()


def ask(process: subprocess.Popen[str], seconds: float) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{seconds}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def threads(rounds: int, seconds: float, console: Console) -> None:
    """One table: examples a second of each way of waiting, alone and beside a busy process."""
    alone: dict[str, list[float]] = {name: [] for name in WAYS}
    beside: dict[str, list[float]] = {name: [] for name in WAYS}
    with processes(WAYS) as started:
        for process in started.values():  # imports, first steps
            ask(process, 0.5)
        for _ in range(rounds):
            for name, process in started.items():
                alone[name].append(ask(process, seconds))
                busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
                try:
                    beside[name].append(ask(process, seconds))
                finally:
                    busy.kill()
                    busy.wait()
    best = statistics.median(next(iter(alone.values())))
    load = " ".join(f"{x:.1f}" for x in os.getloadavg()) if hasattr(os, "getloadavg") else "?"
    table = Table(title=f"examples a second, {os.cpu_count()} cores, load {load}, medians of {rounds}")
    for heading in ("", "alone", "of the default", "beside a busy process", "of alone"):
        table.add_column(heading)
    for name in WAYS:
        a, b = statistics.median(alone[name]), statistics.median(beside[name])
        table.add_row(name, f"{a:.0f}", f"{a / best:.2f}", f"{b:.0f}", f"{b / a:.2f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a manifest with columns rgb and audio; made by default")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 301], help="two lengths of a training")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", action="store_true")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement of --threads")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    console = Console(soft_wrap=True)
    if given.work:
        with suppress(KeyboardInterrupt):
            work()
    elif given.bare is not None:
        print(json.dumps(bare(given.bare, given.steps[0])))
    elif given.threads:
        threads(given.rounds, given.seconds, console)
    else:
        with tempfile.TemporaryDirectory() as folder:
            data = given.data or make_data(Path(folder))
            compare(data, Path(folder), given.steps, given.rounds, console)


if __name__ == "__main__":
    main()

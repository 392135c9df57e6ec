"""How fast `mbt predict` goes through a folder, against the slower of its two halves alone: reading, and the model.

    python benchmarks/predict.py [--files 256] [--rounds 3] [--device auto] [--set K=V]...

Makes the clips (720p H.264 with sound) and a freshly initialised model (the recipe `small`, unless settings say
otherwise), then measures in turn, in each round: reading alone, with the same processes; the model alone, on a batch
that was read before; and `predict_files`, which overlaps them. Prints the medians, in files a second.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from input import make_video

from mbt_core.config import Experiment
from mbt_core.config.recipes import assemble
from mbt_core.data.collate import Batch, Preprocess
from mbt_core.data.loader import auto_workers, make_loader
from mbt_core.distributed.processes import Hardware
from mbt_core.evaluate.evaluator import forward
from mbt_core.evaluate.predict import BATCH, Files, Stream, files_manifest, find_files, predict_files
from mbt_core.model import MBT

VIDEOS = 4
SETS = ("modalities.rgb.frames=8", "modalities.rgb.seconds=8", "modalities.audio.seconds=8", "modalities.audio.mean=0",
        "modalities.audio.std=1", "model.head.classes=10")  # fmt: skip


def make_files(folder: Path, count: int) -> None:
    for number in range(min(VIDEOS, count)):
        make_video(folder / f"{number:06d}.mp4", 720, 1280)
    for number in range(VIDEOS, count):
        shutil.copy(folder / f"{number % VIDEOS:06d}.mp4", folder / f"{number:06d}.mp4")


def reader(model: MBT, folder: Path, experiment: Experiment, device: torch.device) -> Any:
    """What `predict_files` reads, and how."""
    manifest = files_manifest((), {name: m.reads for name, m in model.modalities.items()})
    views = experiment.evaluate.views
    dataset = Files(manifest, model.modalities, {}, config=experiment.data, seed=0, training=False, views=views)
    stream = Stream(((str(file), None, None) for file in find_files([folder])), max(1, BATCH // views))
    return make_loader(dataset, stream, experiment.data.workers, device), auto_workers(dataset)


def seconds(work: Any, device: torch.device) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder = Path(name)
        make_files(folder, options.files)
        experiment = assemble("rgb,audio", "small", None, [*SETS, *options.set])[0]
        fabric = Hardware(options.device).fabric(experiment.train.precision)
        device = fabric.device
        model = MBT(experiment.mbt_config()).eval().to(device)
        preprocess = Preprocess(model.modalities).to(device)
        loader, workers = reader(model, folder, experiment, device)
        batch: Batch = next(iter(loader)).to(device)
        each = len(batch) // experiment.evaluate.views

        def compute() -> None:
            for _ in range(options.files // each):
                with fabric.autocast():
                    forward(model, preprocess, batch)

        found: dict[str, list[float]] = {"reading alone": [], "the model alone": [], "predict": []}
        works = {
            "reading alone": lambda: list(reader(model, folder, experiment, device)[0]),
            "the model alone": compute,
            "predict": lambda: list(predict_files(model, [folder], experiment, fabric=fabric)),
        }
        compute()
        for _ in range(options.rounds):
            for what, work in works.items():
                found[what].append(options.files / seconds(work, device))
        speed = {what: statistics.median(values) for what, values in found.items()}
        for what, value in speed.items():
            print(f"{what:16} {value:8.1f} files/s")
        slower = min(speed["reading alone"], speed["the model alone"])
        serial = 1 / (1 / speed["reading alone"] + 1 / speed["the model alone"])
        print(f"{options.files} files, {workers} reading processes, {device}: predict reaches")
        print(
            f"{speed['predict'] / slower:.2f} of the slower half alone, {speed['predict'] / serial:.2f} of one by one"
        )


if __name__ == "__main__":
    main()

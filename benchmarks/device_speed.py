"""How fast the device is, what fits on it, and whether reading keeps up: MBT-B on the paper's input."""

from __future__ import annotations

import gc
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from device_correct import TINY, size_of
from input import READS, make_video, modalities
from memory import GIB, RESERVE, peak
from sections import Report, Row
from step import Setting, _peak

from mbt_cli.bench import experiment_of
from mbt_core import MBT
from mbt_core.analysis.measure.bench import settle
from mbt_core.analysis.measure.speed import Memory
from mbt_core.analysis.measure.speed import training as measure_training
from mbt_core.config import DataConfig, Experiment
from mbt_core.data.collate import Preprocess, blank_batch
from mbt_core.data.dataset import ClipDataset
from mbt_core.data.loader import auto_workers, make_loader
from mbt_core.data.machine import cores
from mbt_core.data.manifest import Manifest
from mbt_core.data.packing import pack
from mbt_core.data.sampler import TrainSampler
from mbt_core.training.flops import count_step

BATCH = 64
PEAKS = {
    "GB200": 2500, "B200": 2250, "H200": 989, "H100 NVL": 835, "H100 PCIe": 756, "H100": 989, "A100": 312,
    "L40S": 362, "L40": 181, "L4": 121, "A10G": 70, "A10": 125, "RTX 4090": 165,
}  # fmt: skip
"""Part of a device's name, the first that fits -> TFLOP/s of dense products in bf16, as its maker states them."""
TINY_SETS = ("model.backbone={dim: 32, depth: 3, heads: 2}", "model.fusion.layer=2", "modalities.rgb.size=32",
             "modalities.rgb.short_side=32", "modalities.audio.seconds=0.64")  # fmt: skip
DOCUMENT = Path(__file__).parent.parent / "docs/performance.md"
COLUMNS = re.compile(r"^\| (32|bf16) \| (yes|no) \| ([\d.]+) GiB \| ([\d.]+) GiB \|", re.MULTILINE)
SMALLER = 0.94
"""Factor between the batches that are tried until one fits."""
READ_BATCH = 16


def peak_of(options: Any, setting: Setting) -> tuple[float, str]:
    """TFLOP/s that all is compared with, and where they come from."""
    if options.peak_tflops:
        return options.peak_tflops, "as given"
    name = torch.cuda.get_device_name() if options.device == "cuda" else ""
    for part, tflops in PEAKS.items():
        if part in name:
            return float(tflops), f"{part}, as stated"
    return _peak(setting) / 1e12, "of a large product, measured"


def paper(options: Any, **train: Any) -> Experiment:
    """The paper's model and input."""
    experiment = settle(experiment_of(None, None, TINY_SETS if options.tiny else ()))
    return experiment.model_copy(update={"train": experiment.train.model_copy(update=train)})


def step(options: Any, earlier: Sequence[Row], report: Report) -> None:
    """Training steps in bf16, preprocessing included, as they are and compiled."""
    device = torch.device(options.device)
    batch_size, seconds = (2, 0.1) if options.tiny else (BATCH, 6.0)
    tflops, source = peak_of(options, Setting(device, "bf16", batch_size, False, "wall"))
    report("peak in bf16", f"{tflops:.4g} TFLOP/s", source, peak_tflops=tflops)
    for compiled in (False, True):
        check = f"batch {batch_size}, bf16, {'compiled' if compiled else 'not compiled'}"
        if compiled and options.tiny and device.type == "cpu":
            report(check, "left out: takes a C++ compiler and a minute")
            continue
        experiment = paper(options, precision="bf16", compile=compiled)
        operations = count_step(experiment.mbt_config(), experiment.train).flops
        model = MBT(experiment.mbt_config()).to(device)
        preprocess = Preprocess(model.modalities).to(device)
        batch = blank_batch(model.modalities, batch_size).to(device)
        speed = measure_training(model, preprocess, batch, Memory(device), seconds, experiment.train)
        rate = speed.clips_per_second
        used = rate * operations / 1e12
        measured = f"{1000 * batch_size / rate:.4g} ms, {rate:.4g} clips/s, {used:.4g} TFLOP/s, MFU {used / tflops:.1%}"
        expected = f"{operations / 1e12:.3g} TFLOP a clip (3 x forward)"
        figures = {"clips_per_second": rate, "tflops": used, "mfu": used / tflops, "peak_memory": speed.peak_memory}
        report(check, measured, expected, **figures)
        del model, preprocess, batch
        release(device)


def release(device: torch.device) -> None:
    """Gives back what an earlier model has left."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def documented() -> Iterator[tuple[str, bool, float, float]]:
    """(precision, checkpointing, GiB of weights and optimiser, GiB of a clip) of the table in the documentation."""
    for precision, checkpointing, fixed, clip in COLUMNS.findall(DOCUMENT.read_text(encoding="utf-8")):
        yield precision, checkpointing == "yes", float(fixed), float(clip)


def memory(options: Any, earlier: Sequence[Row], report: Report) -> None:
    """What a step takes at its highest against what was computed from the CPU's, and the largest batch that fits."""
    device, size = torch.device(options.device), size_of(TINY if options.tiny else "")
    of_mbt_b = ", of MBT-B" if options.tiny else ""

    def highest(precision: str, checkpointing: bool, batch: int) -> float | None:
        """GiB; None: it does not fit."""
        release(device)
        with suppress(torch.OutOfMemoryError):
            return peak(size, Setting(device, precision, batch, False, "wall"), checkpointing) / GIB
        return None

    for precision, checkpointing, fixed, clip in documented():
        batch = 4 if options.tiny else BATCH
        taken, computed = highest(precision, checkpointing, batch), fixed + batch * clip
        name = f"batch {batch}, {precision}{', checkpointing' if checkpointing else ''}"
        measured = "does not fit" if taken is None else f"{taken:.3g} GiB"
        ratio = None if taken is None else taken / computed
        suffix = "" if ratio is None or options.tiny else f", {ratio:.2f} of it"
        report(name, measured + suffix, f"computed {computed:.3g} GiB{of_mbt_b}", gib=taken, computed=computed)
    if device.type != "cuda":
        report("largest batch", "left out: only a GPU says that its memory is out")
        return
    precision, checkpointing, fixed, clip = next(documented())
    whole = torch.cuda.get_device_properties(device).total_memory / GIB
    computed = batch = max(1, int((whole - RESERVE - fixed) / clip))
    while (taken := highest(precision, checkpointing, batch)) is None and batch > computed // 2:
        batch = int(batch * SMALLER)
    measured = f"{batch} fits with {taken:.4g} GiB" if taken is not None else f"not even {batch} fits"
    expected = f"computed {computed} in {whole:.0f} GiB{of_mbt_b}"
    report(f"largest batch, {precision}", measured, expected, batch=batch, computed=computed)


def reading(options: Any, earlier: Sequence[Row], report: Report) -> None:
    """Clips a second of the paper's input by the reading processes of `auto`, against what the fastest step takes."""
    rates = [row.figures["clips_per_second"] for row in earlier if "clips_per_second" in row.figures]
    needed, seconds = max(rates, default=None), 0.3 if options.tiny else 8.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        heights = {"96p mp4": (96, 128)} if options.tiny else {"720p mp4": (720, 1280), "256p mp4": (256, 456)}
        for source, (height, width) in heights.items():
            make_video(folder / f"{height}.mp4", height, width)
            rows = "".join(f"{i},{folder / f'{height}.mp4'}\n" for i in range(4 if options.tiny else 64))
            (folder / f"{height}.csv").write_text("id,path\n" + rows)
            measure_reading(source, folder / f"{height}.csv", options, seconds, needed, report)
        first = folder / f"{next(iter(heights.values()))[0]}.csv"
        pack(first, READS, DataConfig(), folder / "shards", workers=max(1, cores() - 1))
        measure_reading("shards", folder / "shards", options, seconds, needed, report)


def measure_reading(
    source: str, data: Path, options: Any, seconds: float, needed: float | None, report: Report
) -> None:
    """A row of the table."""
    parts, config = modalities(), DataConfig()
    manifest = Manifest.read(data, READS, config)
    dataset = ClipDataset(manifest, parts, {}, config=config, seed=0, training=True)
    batch_size = 2 if options.tiny else READ_BATCH
    sampler = TrainSampler(manifest.rows("train"), batch_size, 10**6, seed=0)
    workers = auto_workers(dataset)
    batches = iter(make_loader(dataset, sampler, "auto", torch.device(options.device)))
    for _ in range(max(1, workers)):  # all start at once, and their first batches come at once
        next(batches)
    began, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds:
        count += len(next(batches))
    rate = count / passed
    measured = f"{rate:.4g} clips/s by {workers} processes, {rate / workers:.3g} each"
    if needed is None:
        expected = "the step was not measured"
    else:
        verdict = "enough" if rate >= needed else f"{rate / needed:.2f} of it"
        expected = f"the step takes {needed:.4g}: {verdict}"
    report(source, measured, expected, clips_a_second=rate, workers=workers, needed=needed)

"""Is a GPU right, and how fast is it: one table, within 8 minutes on one GPU of the H200's class with 16 cores.

    benchmarks/device.sh [--json FILE] [--peak-tflops 989]
    benchmarks/device.sh --device cpu --tiny     # the same lines of code in seconds, without a GPU

Correctness against the CPU (logits, gradients, a step, of every fusion strategy; preprocessors of every kind of
modality; whole trainings), processes (`nccl`), resume; then the speed of a step with and without compiling, memory, and
reading. Each row is printed as soon as it is measured. The exit code is 1 if anything that must hold does not, 2 if the
device is not there. A section that fails is a row; its traceback goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # else asking for a GPU would forbid the forks

import torch
from device_correct import kinds, strategies
from device_runs import processes, resume, training
from device_speed import memory, reading, step
from sections import Report, Row, Section, header, run_sections

from mbt_core.data.machine import cores
from mbt_core.distributed.launch import Place
from mbt_core.distributed.processes import Hardware
from mbt_core.io.files import finite

LIMIT = 440.0
"""Seconds for all sections but the first; with that and the start at most 8 minutes."""

PATIENCE = 5
"""Factor on all times without a GPU, whose machine others may use."""


@dataclass(frozen=True)
class Options:
    """What is asked for.

    Args:
        device: ``cpu`` or ``cuda``.
        tiny: small models and inputs.
        peak_tflops: of the device in bf16; None: by its name, or measured.
    """

    device: str
    tiny: bool
    peak_tflops: float | None


def machine(options: Options, earlier: Sequence[Row], report: Report) -> None:
    """What this is. Raises `ConfigError` if the device is not there."""
    Hardware(options.device).accelerator(Place())
    if options.device == "cuda":
        about = torch.cuda.get_device_properties(0)
        name, size = about.name, f"{about.total_memory / 2**30:.0f} GiB"
    else:
        name, size = platform.processor() or platform.machine(), "no GPU"
    report(f"torch {torch.__version__}", f"{name}, {size}, {cores()} cores", device=name, cores=cores())


MACHINE = Section("machine", machine, 30)
SECTIONS = (
    Section("strategies", strategies, 90),
    Section("kinds", kinds, 30),
    Section("training", training, 40),
    Section("processes", processes, 40),
    Section("resume", resume, 40),
    Section("step", step, 110, must_hold=False),
    Section("memory", memory, 40, must_hold=False),
    Section("reading", reading, 60, must_hold=False),
)


def show(row: Row) -> None:
    print(row.line(), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--tiny", action="store_true", help="small models and inputs: whether all runs, not how fast")
    parser.add_argument("--peak-tflops", type=float, help="of the device in bf16, dense; by default known by its name")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument(
        "--only", nargs="+", choices=[s.name for s in SECTIONS], help="these sections, for a second look"
    )
    return parser.parse_args()


def main() -> int:
    asked = parse()
    options = Options(asked.device, asked.tiny, asked.peak_tflops)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the section that runs, too
    chosen = [section for section in SECTIONS if not asked.only or section.name in asked.only]
    print(header(), flush=True)
    patience = 1 if options.device == "cuda" else PATIENCE
    chosen = [replace(section, budget=patience * section.budget) for section in chosen]
    rows, holds = run_sections([MACHINE], options, LIMIT, show)
    if not holds:
        return 2
    measured, holds = run_sections(chosen, options, patience * LIMIT, show)
    rows += measured
    failed = sum(row.failed for row in rows)
    print(f"{len(rows)} rows, {failed} failed: {'all that must hold does' if holds else 'NOT all that must hold does'}")
    if asked.json is not None:
        document = {**asdict(options), "torch": torch.__version__, "holds": holds, "rows": [asdict(r) for r in rows]}
        asked.json.write_text(json.dumps(finite(document), indent=1) + "\n")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())

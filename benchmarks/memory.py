"""Memory of a training step of MBT-B on the paper's input, and the largest batch that fits.

    OMP_NUM_THREADS=1 python benchmarks/memory.py [--small] [--precision 32 bf16] [--gib 24 79 139] [--json]
    python benchmarks/memory.py --device cuda --batch-size 8 16

Each measurement is the highest memory of two steps in a process of its own: of the CPU what the process takes beyond
what it takes before the model is made, of a GPU what tensors take. Two batch sizes give a line: what weights, gradients
and the optimiser take, and what a clip takes. The largest batches follow from it; they are computed, not tried. (What
a clip takes on the CPU is close to what it takes on a GPU: mostly what the backward pass needs.)
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from step import PRECISIONS, Setting, add_size, make_inputs, mbt, settle_size

from mbt_core.analysis.measure.speed import Memory

GIB = 2**30
RESERVE = 0.5
"""GiB that the process takes before the model is there, or a GPU's context."""


def peak(size: argparse.Namespace, setting: Setting, checkpointing: bool) -> int:
    """Bytes at the highest during two training steps."""
    memory = Memory(setting.device)
    contestant = mbt(size, make_inputs(size, setting), setting, checkpointing=checkpointing)
    memory.reset()
    for _ in range(2):  # the optimiser's state is there from the second on
        contestant.train()
    found = memory.peak()
    if found is None:
        raise SystemExit("this system does not tell how much memory a process takes")
    return found


def apart(*given: Any) -> int:
    """`peak` in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak, given)


def measure(given: argparse.Namespace, precision: str, checkpointing: bool) -> dict[str, Any]:
    device = torch.device(given.device)
    few, many = sorted(given.batch_size)
    low, high = (
        apart(given, Setting(device, precision, size, False, "wall"), checkpointing) / GIB for size in (few, many)
    )
    clip = (high - low) / (many - few)
    fixed = low - few * clip
    told = clip > 0.01 * low  # else the peak is not the backward pass, but weights, gradients and the optimiser
    return {
        "precision": precision,
        "checkpointing": checkpointing,
        "measured_gib": {few: low, many: high},
        "fixed_gib": fixed,
        "clip_gib": clip,
        "largest_batch": {
            limit: max(0, int((limit - RESERVE - fixed) / clip)) if told else None for limit in given.gib
        },
    }


def show(results: list[dict[str, Any]], given: argparse.Namespace) -> None:
    table = Table(title=f"GiB of a training step on {given.device}")
    headings = ["precision", "checkpointing", "weights and optimiser", "a clip"]
    for heading in (*headings, *(f"largest batch in {limit:g}" for limit in given.gib)):
        table.add_column(heading, justify="left" if heading == "precision" else "right")
    for found in results:
        yes = "yes" if found["checkpointing"] else "no"
        sizes = ["measure larger batches" if size is None else str(size) for size in found["largest_batch"].values()]
        table.add_row(found["precision"], yes, f"{found['fixed_gib']:.2f}", f"{found['clip_gib']:.3f}", *sizes)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", nargs="+", default=["32", "bf16"], choices=PRECISIONS)
    parser.add_argument("--batch-size", nargs=2, type=int, default=[1, 3], help="the two that are measured")
    parser.add_argument("--gib", nargs="+", type=float, default=[24, 79, 139], help="79: GPUs of 80 GB, 139: of 141 GB")
    add_size(parser)
    given = settle_size(parser.parse_args())
    results = [measure(given, precision, way) for precision in given.precision for way in (False, True)]
    if given.json:
        print(json.dumps({"size": vars(given), "results": results}, indent=1))
    else:
        show(results, given)


if __name__ == "__main__":
    main()

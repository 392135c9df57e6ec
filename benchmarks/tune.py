"""What an epoch of fine-tuning costs: everything, from the fusion layer on, the classifier only; and with kept tokens.

    python benchmarks/tune.py [--data MANIFEST] [--modalities rgb,audio] [--pretrained SOURCE] [--set KEY=VALUE]...

Trains the same model in one process in five ways, for a few epochs each, and prints a table: seconds of an epoch (the
fewest, without the first), what keeping the tokens took once, and how much of the disk. By default on the demo, with
fresh weights of the geometry of a ViT-S: what is in the weights does not change the time.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from mbt_benchmarks.demo import make_demo
from mbt_core.config.recipes import assemble
from mbt_core.run import Hardware, train
from mbt_core.training.events import Listener

BATCH = 16
SETS = ("model.fusion.layer=8", "train.warmup=0")
WAYS = (("all", False), ("fused", False), ("fused", True), ("head", False), ("head", True))


class Clock(Listener):
    """Notes when the run began to keep tokens, when it began to train, and the end of each epoch."""

    def __init__(self) -> None:
        self.asked, self.ends = time.perf_counter(), [0.0]
        self.prepared = 0.0

    def message(self, text: str) -> None:
        self.asked = time.perf_counter()

    def run_start(self, folder: Path, config: Mapping[str, Any], step: int, steps: int) -> None:
        self.ends = [time.perf_counter()]
        self.prepared = self.ends[0] - self.asked

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        self.ends.append(time.perf_counter())

    def per_epoch(self) -> float:
        """Seconds, the fewest of all epochs but the first."""
        return min(b - a for a, b in pairwise(self.ends[1:]))


def some_rows(args: argparse.Namespace, folder: Path) -> Path:
    """A manifest of `args.clips` rows to train on, evenly chosen, and of no others."""
    source = Path(args.data) if args.data else make_demo(folder / "demo", train=args.clips, test=0)
    with source.open(newline="") as file:
        rows = list(csv.DictReader(file))
    chosen = [rows[i * len(rows) // args.clips] | {"split": "train"} for i in range(args.clips)]
    args.root = source.parent.resolve()
    with (folder / "some.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(chosen[0]))
        writer.writeheader()
        writer.writerows(chosen)
    return folder / "some.csv"


def measure(args: argparse.Namespace, tune: str, cached: bool, folder: Path) -> tuple[float, float, int]:
    """Seconds of an epoch, seconds of the preparation, bytes kept."""
    sets = [f"model.backbone={args.backbone}", *SETS, f"train.batch_size={BATCH}", f"data.root={args.root}"]
    sets += [f"train.steps={args.clips // BATCH * args.epochs}", f"train.log_every={args.clips // BATCH}"]
    sets += [f"train.tune={tune}", f"train.cache_lower={cached}", "data.val_fraction=0"]
    sets += [f"model.pretrained={args.pretrained}"] if args.pretrained else []
    experiment = assemble(args.modalities, "small", str(folder / "some.csv"), [*sets, *args.set])[0]
    experiment.train.eval_every = args.clips // BATCH * args.epochs
    clock = Clock()
    os.environ["MBT_CACHE"] = str(folder / f"cache-{tune}")
    train(experiment, folder / f"{tune}-{cached}", hardware=Hardware(args.device), listeners=[clock])
    kept = sum(file.stat().st_size for file in (folder / f"cache-{tune}").rglob("*.safetensors"))
    return clock.per_epoch(), clock.prepared, kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="manifest; by default the demo")
    parser.add_argument("--modalities", default="rgb,audio")
    parser.add_argument("--backbone", default="vit_small_patch16_224", help="a timm name")
    parser.add_argument("--pretrained", help="as model.pretrained takes it")
    parser.add_argument("--clips", type=int, default=96, help="rows of the data to train on")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", action="append", default=[], help="KEY.PATH=VALUE of any setting")
    args = parser.parse_args()
    whole = None
    print("tune    kept tokens   epoch      of the whole   once      on disk", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        some_rows(args, Path(folder))
        for tune, cached in WAYS:
            epoch, once, size = measure(args, tune, cached, Path(folder))
            whole = whole or epoch
            kept = f"{once:6.1f} s  {size / 1e6:8.1f} MB" if cached else "       -            -"
            print(f"{tune:7} {'yes' if cached else 'no':11} {epoch:7.2f} s {epoch / whole:14.3f}   {kept}", flush=True)


if __name__ == "__main__":
    main()

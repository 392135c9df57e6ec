"""What the recipe `small` reaches out of the box, over several data sets and seeds.

    python benchmarks/small_data.py sets
    python benchmarks/small_study.py sets out [--seeds 3] [--variants default late alone linear] [--sets NAME ...]

Each folder of the first argument that holds a manifest.csv is a data set. Its modalities are the manifest's columns
besides id, label and split; those that are no kind of modality are sensors. A run is one `mbt train` with no flag but
the seed and the variant's, and one `mbt eval --subsets` on the test split. Finished runs are not repeated: an
interrupted study goes on.

| variant | what is trained |
|---|---|
| default | the recipe |
| late | without exchange: `model.fusion.strategy=late` |
| alone | each modality by itself |
| linear | linear patches, no label smoothing, all examples with exchange: the recipe before it was tuned |
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

KINDS = ("rgb", "audio", "flow", "signal")
LINEAR = ("train.label_smoothing=0", "model.fusion.exchange_drop=0")
METRICS = ("top1", "r2")


class Training(NamedTuple):
    """One run: of a data set, in a variant, of some modalities, with a seed."""

    data: Path
    variant: str
    modalities: tuple[str, ...]
    seed: int
    settings: tuple[str, ...]

    @property
    def name(self) -> str:
        variant = f"{self.variant}-{self.modalities[0]}" if self.variant == "alone" else self.variant
        return f"{self.data.name}-{variant}-{self.seed}"


def columns(manifest: Path) -> tuple[tuple[str, ...], bool]:
    """Modalities as `mbt train` takes them, and whether the label is a number with decimals."""
    with manifest.open(newline="") as file:
        rows = csv.DictReader(file)
        labels = [row["label"] for row in rows]
        names = [name for name in rows.fieldnames or () if name not in ("id", "label", "split")]
    numbers = all(label.replace(".", "", 1).isdigit() and "." in label for label in labels)
    return tuple(name if name in KINDS else f"{name}=signal" for name in names), numbers


def trainings(data: Path, variants: list[str], seeds: int) -> list[Training]:
    modalities, numbers = columns(data / "manifest.csv")
    task = ("model.head.task=regression",) if numbers else ()
    names = [name.partition("=")[0] for name in modalities]
    planned = []
    for seed in range(seeds):
        for variant in variants:
            if variant == "alone":
                if len(modalities) > 1:
                    planned += [Training(data, variant, (name,), seed, task) for name in modalities]
            elif variant == "linear":
                stems = tuple(f"modalities.{name}.stem=patch" for name in names)
                planned.append(Training(data, variant, modalities, seed, (*task, *LINEAR, *stems)))
            elif variant == "default" or len(modalities) > 1:
                strategy = ("model.fusion.strategy=late",) if variant == "late" else ()
                planned.append(Training(data, variant, modalities, seed, (*task, *strategy)))
    return planned


def run(training: Training, out: Path) -> dict[str, float]:
    """Subset -> its metric on the test split, and the training's seconds of processor time as ``seconds``."""
    folder, result = out / training.name, out / f"{training.name}.json"
    mbt = [sys.executable, "-m", "mbt_cli"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if not result.exists():
        start = ["--resume", folder] if (folder / "config.yaml").exists() else [
            *("--data", training.data / "manifest.csv", "--modalities", ",".join(training.modalities)),
            *("--out", folder, "--set", f"train.seed={training.seed}"),
            *(part for setting in training.settings for part in ("--set", setting)),
        ]  # fmt: skip
        process = subprocess.Popen(
            [*mbt, "train", *map(str, start), "--quiet"], env=environment, stdout=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{training.name}: mbt train ended with {os.waitstatus_to_exitcode(status)}")
        command = [*mbt, "eval", str(folder), "--subsets", "--json"]
        evaluated = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        scores = {
            subset: next(metrics[name] for name in METRICS if name in metrics)
            for subset, metrics in json.loads(evaluated.stdout)["subsets"].items()
        }
        seconds = usage.ru_utime + usage.ru_stime
        result.write_text(json.dumps({"fused": scores["+".join(n.partition("=")[0] for n in training.modalities)]}
                                     | scores | {"seconds": seconds}))  # fmt: skip
    return json.loads(result.read_text())


def summary(values: list[float], digits: int = 3) -> str:
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", default=["default"], choices=["default", "late", "alone", "linear"])
    parser.add_argument("--sets", nargs="+", help="names of folders; all by default")
    parser.add_argument("--parallel", type=int, default=os.cpu_count() or 1, help="runs at once, one thread each")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    sets = sorted(path.parent for path in options.folder.glob("*/manifest.csv"))
    planned = [
        training
        for data in sets
        if not options.sets or data.name in options.sets
        for training in trainings(data, options.variants, options.seeds)
    ]
    results: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with ThreadPoolExecutor(options.parallel) as pool:
        for training, scores in zip(planned, pool.map(lambda one: run(one, options.out), planned), strict=True):
            for subset, value in scores.items():
                if training.variant != "alone" or subset != "fused":
                    results[training.data.name, training.variant][subset].append(value)
    table = Table(title=f"recipe small, test split, mean and deviation over {options.seeds} seeds")
    for heading in ("data", "variant", "top-1 or R2, fused", "of one modality and of other subsets", "CPU seconds"):
        table.add_column(heading)
    for (name, variant), by_subset in results.items():
        others = "  ".join(f"{s} {summary(v)}" for s, v in by_subset.items() if s not in ("fused", "seconds"))
        fused, seconds = by_subset["fused"], by_subset["seconds"]
        table.add_row(name, variant, summary(fused) if fused else "", others, summary(seconds, 0))
    Console(soft_wrap=True).print(table)


if __name__ == "__main__":
    main()

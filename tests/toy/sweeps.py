"""A recipe of two anonymous modalities, data for it, and cells: a training takes a fraction of a second."""

import csv
import os
import signal
from pathlib import Path
from textwrap import dedent

import numpy as np

from mbt_core.sweep.cost import Cost
from mbt_core.sweep.engine import Watcher
from mbt_core.sweep.grid import Cell, Flags, make_cells, parse_over
from mbt_core.sweep.results import Result
from mbt_core.training.events import Listener

RECIPE = """\
    modalities: {alpha: {channels: auto}, beta: {}}
    model:
      backbone: {dim: 8, depth: 3, heads: 2, mlp: 12}
      fusion: {layer: 1, bottlenecks: 2}
    train: {steps: 6, batch_size: 4, eval_every: 3, log_every: 1, lr: 0.01, optimizer: adamw}
    data: {workers: 0}
    """


def make_flags(folder: Path, *sets: str, test: bool = True) -> Flags:
    """Flags of the recipe on 16 rows to train, 8 to validate and 8 to test, of two classes."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(32):
        shapes = {"alpha": (2, 13), "beta": (4, 6)}
        paths = {name: folder / f"{name}{number}.npy" for name in shapes}
        for name, shape in shapes.items():
            np.save(paths[name], rng.normal(number % 2, 1, shape).astype(np.float32))
        split = ["train", "val", "train", "test" if test else "train"][number // 2 % 4]
        rows.append({"id": number, **paths, "label": f"c{number % 2}", "split": split})
    with (folder / "data.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (folder / "recipe.yaml").write_text(dedent(RECIPE))
    return Flags(None, str(folder / "recipe.yaml"), str(folder / "data.csv"), sets, "cpu")


def layers(flags: Flags, seeds: int = 1, values: str = "0,3") -> list[Cell]:
    return make_cells(flags, [parse_over(f"model.fusion.layer={values}")], seeds)


def result(labels: dict[str, str], seed: int, score: float | None, **more: object) -> Result:
    """A finished cell with top1 `score`; None: one that is missing."""
    cell = Cell(",".join(labels.values()), labels, seed, Flags(), None)  # type: ignore[arg-type]
    if score is None:
        return Result(cell)
    known = {"steps": 6, "split": "test", "metrics": {"top1": score, "top1[alpha]": 0.5}, "main": ("top1",)}
    known |= {"examples": 8, "clips_per_second": 100.0, "cost": Cost(2.5, 10**6), **more}
    return Result(cell, "finished", **known)  # type: ignore[arg-type]


class Log(Watcher):
    """Notes the cells that are trained and the step each starts from; may ask one to stop."""

    def __init__(self, stop_in=None, stop_at=0):
        self.stop_in, self.stop_at, self.trained = stop_in, stop_at, []

    def cell_start(self, cell, number, total):
        log = self

        class Training(Listener):
            def run_start(self, folder, config, step, steps):
                log.trained.append((cell.name, step))

            def step(self, step, metrics):
                if cell.name == log.stop_in and step == log.stop_at:
                    os.kill(os.getpid(), signal.SIGINT)

        return [Training()]

"""A small demo and runs on it that take a second, for tests of the command line and of the whole line."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from typer.testing import CliRunner

from mbt_cli.main import app

TINY = (
    "model.backbone.dim=32",
    "model.backbone.depth=2",
    "model.backbone.heads=2",
    "model.fusion.layer=1",
    "modalities.rgb.size=32",
    "modalities.rgb.short_side=32",
    "modalities.audio.mel_bins=32",
    "train.batch_size=8",
    "train.steps=6",
    "train.eval_every=3",
    "train.log_every=2",
    "train.select=best",
    "data.workers=0",
)
"""Settings on top of recipe `small`: 2 blocks of width 32, 6 steps of 8 clips, evaluated twice, the better weights
chosen by val."""


@dataclass
class Done:
    """What a command left.

    Args:
        code: the exit code.
        out: stdout.
        err: stderr.
    """

    code: int
    out: str
    err: str


def mbt(*arguments: object) -> Done:
    """Runs the command line in this process, as the script `mbt` would run it. No traceback may come out of it."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="mbt")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    done = Done(result.exit_code, result.stdout, result.stderr)
    assert "Traceback" not in done.out + done.err
    assert "should not have happened" not in done.err, done.err
    return done


def make_small_demo(folder: Path) -> Path:
    """The demo with 27 clips to train, 9 to validate and 9 to test; two tasks, `kind` and `sum`."""
    from mbt_benchmarks.demo import make_demo

    rows = read_csv(make_demo(folder, train=36, test=9))
    for row in rows[27:36]:
        row["split"] = "val"
    write_csv(folder / "small.csv", rows)
    (folder / "small.classes.json").write_text((folder / "manifest.classes.json").read_text())
    return folder / "small.csv"


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def clips_of(demo: Path, split: str = "test") -> list[Path]:
    """The files of a split of the small demo."""
    return [demo.parent / row["path"] for row in read_csv(demo) if row["split"] == split]


def tiny_sets(modalities: str = "rgb,audio", *sets: str) -> list[str]:
    """`TINY` for these instances of rgb and audio, and further settings."""
    instances = dict(part.split("=") if "=" in part else (part, part) for part in modalities.split(","))
    chosen = [s for s in TINY if not s.startswith("modalities.")]
    for name, kind in instances.items():
        chosen += [s.replace(f".{kind}.", f".{name}.", 1) for s in TINY if s.startswith(f"modalities.{kind}.")]
    return [*chosen, *sets]


def tiny_experiment(data: Path, *sets: str, modalities: str = "rgb,audio") -> Any:
    from mbt_core.config.recipes import assemble

    return assemble(modalities, None, str(data), tiny_sets(modalities, *sets))[0]


def tiny_run(data: Path, out: Path, *sets: str, modalities: str = "rgb,audio", **options: Any) -> Any:
    """Trains a tiny model; returns its `Run`."""
    from mbt_core.run import train

    return train(tiny_experiment(data, *sets, modalities=modalities), out, **options)


def flags_of_signals(
    folder: Path, cells: Sequence[Mapping[str, Any]], sets: Sequence[str], offsets: Mapping[str, float] | None = None
) -> list[Any]:
    """Flags of an experiment on rows of two signals, of two classes that differ in the mean.

    Args:
        folder: where the files and the manifest go.
        cells: further cells, a mapping a row.
        sets: ``KEY.PATH=VALUE`` each.
        offsets: file -> what is added to its values.
    """
    rng = np.random.default_rng(0)
    rows = []
    for number, more in enumerate(cells):
        files = {name: f"{name}{number}.npy" for name in ("accel", "gyro")}
        for file in files.values():
            mean = number % 2 + (offsets or {}).get(file, 0)
            np.save(folder / file, rng.normal(mean, 1, (2, 32)).astype(np.float32))
        rows.append({"id": number, **files, "label": f"c{number % 2}", **more})
    write_csv(folder / "data.csv", rows)
    words = [word for assignment in sets for word in ("--set", assignment)]
    return ["--modalities", "accel=signal,gyro=signal", "--data", folder / "data.csv", "--device", "cpu", *words]

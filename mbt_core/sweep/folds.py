"""Cross-validation as a sweep: a training for each fold, scored on the rows that it has not seen.

``OUT/folds.yaml`` is the experiment, the recipe of every fold; ``OUT/fold0``, ``OUT/fold1`` ... are their run folders.
"""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mbt_core.config import Experiment, HeadConfig
from mbt_core.config.schema import validate
from mbt_core.config.settings import to_yaml
from mbt_core.config.training import LAST
from mbt_core.data.source import ask_for_data, open_manifest, require_train
from mbt_core.data.splits import TEST, TRAIN, VAL
from mbt_core.errors import ConfigError, MBTError, MBTWarning
from mbt_core.evaluate.table import evaluated, read_predictions
from mbt_core.io.files import write_atomically
from mbt_core.io.remote import address
from mbt_core.run import Run
from mbt_core.sweep.engine import Sweep, differences
from mbt_core.sweep.grid import Cell, Flags
from mbt_core.sweep.results import Result, main_metrics
from mbt_core.sweep.transfer import absolute
from mbt_core.training.folder import RunFolder
from mbt_core.training.resolve import make_modalities
from mbt_core.training.state import read_progress

FILE = "folds.yaml"
FOLD = "fold"


@dataclass(frozen=True)
class Scored:
    """An evaluation: of how many rows, and its metrics."""

    examples: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class FoldResult(Result):
    """What a finished fold came to.

    Args:
        scored: split -> its evaluation: val, the rows of the fold; test, where there is such a split.
    """

    scored: Mapping[str, Scored] = field(default_factory=dict)


class Folds(Sweep):
    """The folds in a folder that `begin` has begun, as cells of a sweep.

    Args:
        out: the folder.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Raises:
        ConfigError: as of `Sweep`, or if the folder holds none.
    """

    unit = "folds"

    def __init__(self, out: Path, device: str = "auto") -> None:
        self.again = shlex.join(["mbt", "train", "--resume", str(out)])
        super().__init__(out, _cells(out, device))

    def folder(self, cell: Cell) -> RunFolder:
        return RunFolder(self.out / cell.name)

    def is_done(self, cell: Cell) -> bool:
        return super().is_done(cell) and evaluated(self.folder(cell).path, VAL) is not None

    def train(self, cell: Cell, **options: Any) -> Run:
        """Trains a fold and evaluates it on its rows as `mbt eval` would: with all views, and with predictions."""
        run = super().train(cell, **options)
        if not self.is_done(cell):
            run.evaluate(split=VAL, device=cell.flags.device)
        if not self.is_done(cell):
            raise MBTError(f"{run.path}: the predictions of its rows could not be written")
        return run

    def read(self, cell: Cell) -> Result:
        folder = self.folder(cell)
        progress = read_progress(folder.state)
        if progress is None or not self.is_done(cell):
            return Result(cell, "unfinished" if folder.config_file.exists() else "missing")
        experiment = folder.experiment()
        folders = {split: evaluated(folder.path, split) for split in (VAL, TEST)}
        scored = {split: score(path, experiment.model.head) for split, path in folders.items() if path is not None}
        return FoldResult(
            cell,
            "finished",
            steps=progress.step,
            split=VAL,
            examples=scored[VAL].examples,
            metrics=scored[VAL].metrics,
            main=main_metrics(experiment),
            folder=folder,
            scored=scored,
        )


def are_in(out: Path) -> bool:
    """Whether folds were begun in a folder."""
    return (out / FILE).is_file()


def begin(
    out: Path, experiment: Experiment, folds: int, command: str, *, resume: bool = False, device: str = "auto"
) -> Folds:
    """Notes the experiment in ``OUT/folds.yaml``, or with `resume` finds that it is the one that is noted there.

    Raises:
        ConfigError: the folder is in use, another experiment was begun in it, or this one sets folds itself.
        DataError: the data have fewer rows (groups) than folds.
    """
    wanted = in_folds(experiment, folds)
    if resume and are_in(out):
        return goes_on(out, folds, wanted, device)
    RunFolder(out).check_unused()
    ask_for_data(wanted.data)
    require_train(open_manifest(wanted.data, make_modalities(wanted), wanted.model.head))
    # only what is set: the data decide what is left open
    tree = wanted.model_dump(mode="json", exclude_unset=True)
    tree["modalities"] = {name: {"kind": c.kind, **tree["modalities"][name]} for name, c in wanted.modalities.items()}
    here = out.resolve()
    header = f"# {' '.join(command.split())}\n"
    header += f"# fold I: mbt train --recipe {here / FILE} --set data.fold=I --out {here / FOLD}I\n"
    write_atomically(out / FILE, lambda path: path.write_text(header + to_yaml(tree), encoding="utf-8"))
    return Folds(out, device)


def goes_on(out: Path, folds: int | None = None, wanted: Experiment | None = None, device: str = "auto") -> Folds:
    """The folds that were begun in a folder.

    Raises:
        ConfigError: if they are not so many, or of another experiment than `wanted`.
    """
    if not are_in(out):
        raise ConfigError(f"{out} holds no folds: it has no {FILE}; --folds with --out begins some")
    sweep = Folds(out, device)
    begun = len(sweep.cells)
    if folds not in (None, begun):
        raise ConfigError(f"{out}: expected --folds {begun}, with which it was begun, got {folds}; or another --out")
    if wanted is not None and (differing := differences(wanted, sweep.cells[0].experiment, ())):
        raise ConfigError(f"{out} was begun with other settings: {'; '.join(differing[:3])}. Choose another --out")
    return sweep


def in_folds(experiment: Experiment, folds: int) -> Experiment:
    """The experiment with its rows in folds, and the last weights of each training scored.

    Weights, or a length of training, that were chosen by the rows of a fold would be scored too well on them.
    """
    data, train = experiment.data, experiment.train
    if data.folds not in (None, folds) or data.fold:
        raise ConfigError(
            f"data.folds={data.folds}, data.fold={data.fold}: cross-validation sets both itself; leave them out"
        )
    if train.patience is not None or train.monitor not in ("auto", LAST):
        warnings.warn(
            "train.monitor and train.patience are not used in cross-validation: weights that were chosen by the rows "
            "of a fold would be scored too well on them; each fold is trained to its end, and its last weights are "
            "scored",
            MBTWarning,
            stacklevel=2,
        )
    tree = experiment.model_dump(exclude_unset=True)
    tree["modalities"] = experiment.modalities
    tree["data"] = tree.get("data", {}) | {"folds": folds, "fold": 0}
    # whatever folder they are gone on with from
    tree["data"] |= {key: address(path) for key in ("path", "root") if (path := getattr(data, key)) is not None}
    if experiment.model.pretrained is not None:
        tree["model"]["pretrained"] = _absolute(experiment.model.pretrained)
    tree["train"] = tree.get("train", {}) | {"monitor": LAST, "patience": None}
    return validate(Experiment, tree)


def _absolute(pretrained: str | Mapping[str, str | None]) -> Any:
    if isinstance(pretrained, str):
        return absolute(pretrained)
    return {name: source and absolute(source) for name, source in pretrained.items()}


def _cells(out: Path, device: str) -> list[Cell]:
    flags = Flags(recipe=str(out / FILE), device=device)
    experiment = flags.experiment()
    if experiment.data.folds is None:
        raise ConfigError(f"{out / FILE}: expected data.folds of 2 or more, got none")
    each = [flags.over({"data.fold": fold}) for fold in range(experiment.data.folds)]
    return [
        Cell(f"{FOLD}{fold}", {FOLD: str(fold)}, experiment.train.seed, flags, flags.experiment())
        for fold, flags in enumerate(each)
    ]


def score(folder: Path, head: HeadConfig) -> Scored:
    evaluation = read_predictions(folder, head).found
    return Scored(len(evaluation.index), evaluation.metrics())


def rows_of(sweep: Folds) -> tuple[int, int]:
    """How many rows the folds are made of, and how many are in test."""
    experiment = sweep.cells[0].experiment
    manifest = open_manifest(experiment.data, make_modalities(experiment), experiment.model.head)
    return len(manifest.rows(TRAIN)) + len(manifest.rows(VAL)), len(manifest.splits.get(TEST, ()))

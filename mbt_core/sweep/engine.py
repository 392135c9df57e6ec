"""Trains the cells of a sweep one after another in one process; finished ones are left, interrupted ones go on."""

from __future__ import annotations

import gc
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mbt_core.config import DataConfig, Experiment
from mbt_core.config.assets import portable
from mbt_core.data.cache import Cache
from mbt_core.data.manifest import Manifest
from mbt_core.data.source import open_manifest
from mbt_core.errors import ConfigError, InUseError, MBTError
from mbt_core.modality import Modality
from mbt_core.run import Hardware, Run, train
from mbt_core.sweep.grid import Cell
from mbt_core.sweep.results import Result, is_finished, read_result
from mbt_core.training.events import Listener
from mbt_core.training.folder import DATA, FILLED, RunFolder
from mbt_core.training.loop import Interrupted
from mbt_core.training.resolve import make_modalities
from mbt_core.training.state import read_progress, save_state

CELLS = "cells"
OPEN = ("model.head.classes", "model.head.tasks", "model.head.task")
"""What data fills where the experiment leaves it open, besides what is ``auto``."""


class Watcher:
    """Told what a sweep does; every method may be overridden, none must."""

    def cell_start(self, cell: Cell, number: int, total: int) -> Sequence[Listener]:
        """A cell is about to be trained, `number` (from 1) of `total`. Returns listeners to its training."""
        return ()

    def cell_end(self, result: Result) -> None:
        """It finished or failed."""


class Sweep:
    """Cells and where they lie: ``OUT/cells/NAME``, a run folder each.

    Args:
        out: folder of the sweep; may hold cells of an earlier call, also trained elsewhere.
        cells: of the grid.

    Raises:
        ConfigError: if `out` holds a cell of this name that was trained with other settings, or on other data.

    Attributes:
        unit: what its cells are, for people.
        again: what goes on with it, for people.
    """

    unit = "cells"
    again = "the same command"

    def __init__(self, out: Path, cells: Sequence[Cell]) -> None:
        self.out, self.cells = out, cells
        self._errors: dict[str, str] = {}
        self._elsewhere: set[str] = set()
        self._digests: dict[str, str | None] = {}
        self._finished: dict[str, Result] = {}
        for cell in cells:
            self._check_same(cell)

    def folder(self, cell: Cell) -> RunFolder:
        return RunFolder(self.out / CELLS / cell.name)

    def result(self, cell: Cell) -> Result:
        """What the cell's folder tells, and why its training failed, if it did."""
        if cell.name in self._finished:
            return self._finished[cell.name]
        found, error = self.read(cell), self._errors.get(cell.name)
        if cell.name in self._elsewhere and found.status != "finished":
            return replace(found, status="running elsewhere")
        if found.status == "finished":
            self._finished[cell.name] = found
        return replace(found, status="failed", error=error) if error and found.status != "finished" else found

    def read(self, cell: Cell) -> Result:
        """What the cell's folder tells."""
        return read_result(cell, self.folder(cell))

    def is_done(self, cell: Cell) -> bool:
        """Whether nothing of the cell is left to do."""
        return is_finished(self.folder(cell))

    def results(self) -> list[Result]:
        """Of every cell, in the order of the grid."""
        return [self.result(cell) for cell in self.cells]

    def todo(self) -> list[Cell]:
        """Cells that are not finished."""
        return [cell for cell in self.cells if not self.is_done(cell)]

    def commands(self) -> list[str]:
        """One ``mbt train`` per cell that is not finished; what they leave is picked up by the next call."""
        return [self._command(cell) for cell in self.todo()]

    def run(self, device: str = "auto", watcher: Watcher | None = None) -> list[Result]:
        """Trains what is not finished. A cell that fails is noted, and the others go on; so does one that another
        process is training.

        Raises:
            Interrupted: after Ctrl-C, SIGTERM or SIGHUP; the state of the cell is saved.
        """
        watcher, shared, todo = watcher or Watcher(), SharedCache(), self.todo()
        hardware = Hardware(device)
        for number, cell in enumerate(todo, start=1):
            folder, listeners = self.folder(cell), watcher.cell_start(cell, number, len(todo))
            self._errors.pop(cell.name, None)
            self._elsewhere.discard(cell.name)
            try:
                self.train(
                    cell,
                    resume=folder.config_file.exists(),
                    hardware=hardware,
                    listeners=listeners,
                    command=cell.flags.command(folder.path),
                    choose_cache=shared.choose,
                )
            except Interrupted:
                raise
            except InUseError:
                self._elsewhere.add(cell.name)
                watcher.cell_end(self.result(cell))
                continue
            except MBTError as error:
                self._errors[cell.name] = str(error)
            except Exception as error:  # a bug in one cell is no reason to lose the others
                self._errors[cell.name] = f"{type(error).__name__}: {error}"
            _slim(folder)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            watcher.cell_end(self.result(cell))
        return self.results()

    def train(self, cell: Cell, **options: Any) -> Run:
        """Trains one cell; `options` as of `mbt_core.run.train`."""
        return train(cell.experiment, self.folder(cell).path, **options)

    def _command(self, cell: Cell) -> str:
        folder = self.folder(cell)
        if folder.config_file.exists():
            device = [] if cell.flags.device == "auto" else ["--device", cell.flags.device]
            return shlex.join(["mbt", "train", "--resume", str(folder.path), *device])
        return cell.flags.command(folder.path)

    def _check_same(self, cell: Cell) -> None:
        folder = self.folder(cell)
        if not folder.config_file.exists():
            return
        filled = folder.noted(FILLED)
        known = None if filled is None else filled.split(", ")
        if found := differences(cell.experiment, folder.experiment(), known):
            raise ConfigError(
                f"{folder.path} was trained with other settings: {'; '.join(found[:3])}. Choose another --out, or "
                "delete that folder"
            )
        noted = folder.noted(DATA)
        if noted is not None and (now := self._digest(cell.experiment)) is not None and now != noted:
            raise ConfigError(
                f"{folder.path} was trained on other data: ids, labels or splits of its rows have changed. Choose "
                "another --out, or delete that folder"
            )

    def _digest(self, experiment: Experiment) -> str | None:
        """Of the rows that this would be trained on now; None: they are not here."""
        head = experiment.model.head
        key = repr((experiment.data, [(n, c.kind) for n, c in experiment.modalities.items()], head.task, head.outputs))
        if key not in self._digests:
            try:
                manifest = open_manifest(experiment.data, make_modalities(experiment), head)
                self._digests[key] = manifest.digest()
            except MBTError:
                self._digests[key] = None
        return self._digests[key]


def _slim(folder: RunFolder) -> None:
    """Drops the tensors of a finished run's last state: nothing goes on from there, and a sweep has many cells."""
    progress = read_progress(folder.state)
    if progress is not None and progress.finished:
        save_state(folder.state, {}, {}, progress)


def differences(wanted: Experiment, found: Experiment, filled: Sequence[str] | None = None) -> list[str]:
    """Settings of a resolved experiment that are not what `wanted` asks for; what data fills may be anything.

    Args:
        wanted: what is asked for, unresolved.
        found: resolved.
        filled: ``KEY.PATH`` of what was open in what `found` was resolved from; None: not known, it may be all.
    """
    left = set() if wanted.model.head.outputs else set(OPEN)
    left |= set() if wanted.data.path else {"data.path"}
    left |= {"model.head.scales"} if wanted.model.head.scales is None else set()
    # what a modality fills can decide its other settings, too: the tubelet of stills
    fitted = {f"modalities.{name}" for name, config in wanted.modalities.items() if config.auto_fields()}

    def compare(one: Any, other: Any, path: str) -> list[str]:
        if (path in left or one == "auto") and (filled is None or path in filled or path == "data.path"):
            return []
        if filled is not None and path in filled and path.rpartition(".")[0] in fitted:
            return []
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            return [
                line
                for key in dict.fromkeys((*one, *other))
                for line in compare(one.get(key), other.get(key), f"{path}.{key}" if path else key)
            ]
        return [] if one == other else [f"{path} is {other}, expected {one}"]

    return compare(portable(wanted), portable(found), "")


class SharedCache:
    """Hands the decoded clips from one training to the next that reads the same ones in the same way."""

    def __init__(self) -> None:
        self._cache: Cache | None = None
        self._way: Any = None
        self._rows = np.zeros(0, np.int64)

    def choose(
        self,
        config: DataConfig,
        manifest: Manifest,
        modalities: Mapping[str, Modality],
        splits: Sequence[str],
        message: Callable[[str], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Cache | None:
        """The last training's cache, if it holds what this one reads; else as `Cache.choose`."""
        way = (
            (config.cache, config.timeout, manifest.path.resolve(), manifest.root),
            [(name, m.reads, m.decode_settings(), m.seconds) for name, m in modalities.items()],
        )
        rows = np.concatenate([manifest.splits[split] for split in splits if split in manifest.splits])
        if self._cache is None or way != self._way or not np.isin(rows, self._rows).all():
            self._cache = None  # its memory is free before the next one looks for some
            self._cache = Cache.choose(config, manifest, modalities, splits, message, progress)
            self._way, self._rows = way, rows
        return self._cache

"""What a run left in its folder, opened for the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbt_core.config import Experiment
from mbt_core.data.manifest import Manifest
from mbt_core.data.source import evaluated_data, open_manifest
from mbt_core.errors import MBTError
from mbt_core.evaluate.table import FILE, PREFIX, Predictions, read_predictions
from mbt_core.model import MBT
from mbt_core.training.folder import RunFolder
from mbt_core.training.loggers import read_metrics


@dataclass(frozen=True)
class Left:
    """What a run left.

    Args:
        folder: that is reported on: the run's, or that of an evaluation in it.
        run: the run's folder.
        experiment: as it was resolved.
        notes: the first lines of its configuration: the command; time, versions and more as their first words say.
        log: lines of ``metrics.jsonl``.
        model: with its best weights; None: it has none yet.
        predictions: of the evaluation; None: there was none.
        manifest: that was evaluated; None: it cannot be opened, see `why`.
        why: there is no manifest.
    """

    folder: Path
    run: RunFolder
    experiment: Experiment
    notes: list[str]
    log: list[dict[str, Any]]
    model: MBT | None
    predictions: Predictions | None
    manifest: Manifest | None
    why: str


def open_left(folder: Path) -> Left:
    """Opens a run folder, or the folder of an evaluation in one.

    Raises:
        ConfigError: if it is none.
        DataError: if its predictions cannot be read.
    """
    run = RunFolder(folder)
    if not run.config_file.is_file() and folder.resolve().name.startswith(PREFIX):
        run = RunFolder(folder.parent)
    experiment = run.experiment()
    head = experiment.model.head
    model = MBT.from_pretrained(run.path).eval() if (run.path / "model.safetensors").exists() else None
    predictions = read_predictions(folder, head) if (folder / FILE).exists() else None
    manifest, why = None, "the run has no weights yet"
    if model is not None:
        try:
            other = predictions.about.data if predictions else None
            config = experiment.data if other is None else evaluated_data(experiment.data, other)
            manifest = open_manifest(config, model.modalities, head, model.classes)
        except MBTError as error:
            why = str(error)
    return Left(
        folder,
        run,
        experiment,
        _notes(run.config_file),
        read_metrics(run.path / "metrics.jsonl"),
        model,
        predictions,
        manifest,
        why,
    )


def _notes(path: Path) -> list[str]:
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        found.append(line[2:])
    return found

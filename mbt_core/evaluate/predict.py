"""Classifies media files with whatever modalities each has.

Shapes: B windows of a batch, C classes of a task.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from lightning_fabric import Fabric

from mbt_core.config import DEFAULT_TASK, DataConfig, Experiment, TaskKind
from mbt_core.data.collate import Batch, Preprocess
from mbt_core.data.dataset import ClipDataset
from mbt_core.data.loader import make_loader
from mbt_core.data.manifest import Manifest
from mbt_core.data.sampler import EvalSampler
from mbt_core.errors import ConfigError, MBTError
from mbt_core.evaluate.evaluator import forward, scales
from mbt_core.media import Clip
from mbt_core.modality import Modality
from mbt_core.model import MBT
from mbt_core.model.loss import by_task

Segment = tuple[str, float | None, float | None]
"""A file, and the start and end of a window of it in seconds."""


@dataclass(frozen=True)
class FilePrediction:
    """What a file, or a window of it, was classified as.

    Args:
        file: as it was given or found.
        modalities: names of those it has.
        top: task -> (label, score) from the best down; scores are probabilities (or values of a regression).
        start, end: of the window in seconds, where the file was cut into windows.
        error: why there is no prediction.
    """

    file: str
    modalities: list[str] = field(default_factory=list)
    top: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    start: float | None = None
    end: float | None = None
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """``{"file", "modalities", "top": [{"label", "score"}] or {TASK: [...]}}`` or ``{"file", "error"}``."""
        if self.error is not None:
            return {"file": self.file, "error": self.error}
        top = {t: [{"label": label, "score": score} for label, score in best] for t, best in self.top.items()}
        place = {} if self.start is None else {"start": self.start, "end": self.end}
        single = top[DEFAULT_TASK] if list(top) == [DEFAULT_TASK] else top
        return {"file": self.file, **place, "modalities": self.modalities, "top": single}


def find_files(paths: Sequence[Path]) -> list[Path | FilePrediction]:
    """Files as given, and all files below given folders (hidden ones left out), sorted; or why there is none."""
    found: list[Path | FilePrediction] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = [
            Path(folder) / name
            for folder, folders, names in os.walk(path)
            for name in names
            if not name.startswith(".") and not folders.sort()
        ]
        found += sorted(inside) or [FilePrediction(str(path), error="no file in this folder")]
    return [file if isinstance(file, FilePrediction) else _named(file) for file in found]


def _named(file: Path) -> Path | FilePrediction:
    try:
        str(file).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(file).decode(errors="replace")
        return FilePrediction(shown, error="its name is not valid UTF-8; rename it")
    return file


@torch.inference_mode()
def predict_files(
    model: MBT,
    paths: Sequence[Path],
    experiment: Experiment,
    *,
    fabric: Fabric,
    top: int = 5,
    every: float | None = None,
) -> Iterator[FilePrediction]:
    """Classifies files and folders batch by batch; a bad file yields its error and does not stop the others.

    Args:
        model: in evaluation mode; moved to the device.
        paths: files and folders.
        experiment: of the run: data, views, batch size.
        fabric: device and precision.
        top: how many labels.
        every: seconds between the starts of windows that slide over each file; None: the run's views of the whole.
    """
    rows = _rows(find_files(paths), model.modalities, every)
    segments = [row for row in rows if not isinstance(row, FilePrediction)]
    classified = _classify(model, segments, experiment, fabric, top, windows=every is not None)
    for row in rows:
        yield row if isinstance(row, FilePrediction) else next(classified)


def _classify(
    model: MBT, segments: Sequence[Segment], experiment: Experiment, fabric: Fabric, top: int, windows: bool
) -> Iterator[FilePrediction]:
    """One prediction a segment, in their order."""
    reads = {name: m.reads for name, m in model.modalities.items()}
    manifest = files_manifest(segments, reads)
    views = 1 if windows else experiment.evaluate.views
    dataset = ClipDataset(manifest, model.modalities, {}, config=experiment.data, seed=0, training=False, views=views)
    sampler = EvalSampler(range(len(segments)), max(1, 32 // views))
    loader = make_loader(dataset, sampler, experiment.data.workers if len(segments) > 8 else 0, fabric.device)
    model.to(fabric.device).eval()
    preprocess = Preprocess(model.modalities).to(fabric.device)
    for batch in loader:
        batch = batch.to(fabric.device)  # noqa: PLW2901
        with fabric.autocast():
            logits = by_task(forward(model, preprocess, batch).logits)
        yield from _results(batch, logits, segments, model, top, experiment.evaluate.average, windows)


def files_manifest(segments: Sequence[Segment], reads: Mapping[str, str]) -> Manifest:
    """The manifest of files without labels; each file serves every modality that finds what it reads."""
    files, starts, ends = zip(*segments, strict=True)
    columns = {
        "id": [str(number) for number in range(len(segments))],
        # each modality's own column: `path` alone would not serve one that reads text
        **{f"{name}.path": [os.path.abspath(file) for file in files] for name in reads},
        "start": pa.array(starts, pa.float64()),
        "end": pa.array(ends, pa.float64()),
    }
    return Manifest.from_table(pa.table(columns), Path.cwd(), reads, DataConfig(), labelled=False)


def _rows(
    files: Sequence[Path | FilePrediction], modalities: Mapping[str, Modality], every: float | None
) -> list[Segment | FilePrediction]:
    """What to classify, and what cannot be (files are only looked into where windows slide), in the files' order."""
    if every is None:
        return [file if isinstance(file, FilePrediction) else (str(file), None, None) for file in files]
    if not 0 < every < math.inf:
        raise ConfigError(f"--every {every:g}: expected a positive number of seconds")
    lengths = [m.seconds for m in modalities.values() if m.seconds is not None]
    length = max(lengths, default=every)
    rows: list[Segment | FilePrediction] = []
    for file in files:
        rows += [file] if isinstance(file, FilePrediction) else _windows(file, every, length)
    return rows


def _windows(file: Path, every: float, length: float) -> list[Segment | FilePrediction]:
    try:
        with Clip(file) as clip:
            duration = clip.duration
    except MBTError as error:
        return [FilePrediction(str(file), error=without_name(str(error), str(file)))]
    if duration is None:
        return [(str(file), None, None)]
    last = max(0.0, duration - length)
    starts = [i * every for i in range(int(last / every + 1e-6) + 1)]
    return [(str(file), start, min(start + length, duration)) for start in starts]


def without_name(error: str, file: str) -> str:
    """The message of an error without the file that it begins with."""
    return error.removeprefix(f"{file}: ")


def _results(
    batch: Batch,
    logits: dict[str, torch.Tensor],
    segments: Sequence[Segment],
    model: MBT,
    top: int,
    average: str,
    windows: bool,
) -> Iterator[FilePrediction]:
    errors = dict(batch.errors)
    head = model.config.head
    for row in dict.fromkeys(batch.index.tolist()):
        file, start, end = segments[row]
        if row in errors:
            yield FilePrediction(file, error=without_name(errors[row], os.path.abspath(file)))
            continue
        mine = batch.index == row
        names = [name for name, here in batch.present.items() if bool(here[mine].any())]
        best = {}
        for task, values in logits.items():
            kind = head.kind_of(task)
            there, back = scales(kind, average)
            mean = back(there(values[mine].float()).mean(0, keepdim=True))[0]
            best[task] = best_labels(mean, kind, model.classes.get(task), top)
        yield FilePrediction(file, names, best, *((start, end) if windows else (None, None)))


def best_labels(logits_C: torch.Tensor, kind: TaskKind, names: list[str] | None, top: int) -> list[tuple[str, float]]:
    """The `top` labels with their scores."""
    labels = names or [f"class_{i}" for i in range(len(logits_C))]
    if kind == "regression":
        return [(label, float(v)) for label, v in zip(labels, logits_C.tolist(), strict=True)]
    scores = logits_C.softmax(0) if kind == "single" else logits_C.sigmoid()
    values, indices = scores.topk(min(top, len(scores)))
    return [(labels[i], float(v)) for v, i in zip(values.tolist(), indices.tolist(), strict=True)]

"""Classifies media files with whatever modalities each has.

Shapes: B windows of a batch, C classes of a task.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Collection, Container, Hashable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import Sampler

from mbt_core.config import DEFAULT_TASK, DataConfig, Experiment, TaskKind
from mbt_core.data.collate import Batch, Preprocess
from mbt_core.data.columns import RATE
from mbt_core.data.dataset import ClipDataset, Draw
from mbt_core.data.loader import make_loader
from mbt_core.data.manifest import Manifest
from mbt_core.data.readers import Each, Pool, patience_for
from mbt_core.data.sampler import EvalSampler
from mbt_core.errors import ConfigError, MBTError
from mbt_core.evaluate.evaluator import forward, scales
from mbt_core.evaluate.memory import rows_at_once
from mbt_core.io.files import is_folder
from mbt_core.media import Clip
from mbt_core.media.folders import CODECS
from mbt_core.media.reads import Reads
from mbt_core.modality import Modality
from mbt_core.model import MBT
from mbt_core.model.loss import by_task

if TYPE_CHECKING:  # it takes a second to import, and reading processes do not need it
    from lightning_fabric import Fabric

Segment = tuple[str, float | None, float | None]
"""A file, and the start and end of a window of it in seconds."""
BATCH = 32
"""Views classified at a time, unless ``evaluate.batch_size`` says otherwise."""
WINDOWS = 1_000_000
"""More windows of a file are an error: `every` is too short, or the length that the file claims is wrong."""
NOT_FINITE = "the model gives no finite scores; look for values in it far beyond those it was trained on"
UNSPLIT = DataConfig(val_fraction=0, test_fraction=0)
"""Of rows that are no data set: none is held out."""
Listed = Sequence[tuple[str, bool, bool]]
"""Of each entry of a folder: its name, whether it is a folder, whether it is a link."""


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


def find_files(
    paths: Iterable[Path], reads: Collection[str] = (), fps: float | None = None
) -> Iterator[Path | FilePrediction]:
    """Files as given, and all files below given folders, sorted (hidden ones left out); or why there is none.

    Args:
        paths: files and folders.
        reads: what the modalities read: a folder of pictures that offers it as one clip is given as a file is.
        fps: frames a second of folders of frames; None: a folder with nothing but pictures in it is not one clip.

    Raises:
        ConfigError: for an `fps` that is no positive number.
    """
    _check_positive("--fps", fps, "frames a second")
    for path in paths:
        if not os.path.isdir(path):
            yield _named(path)
            continue
        found = False
        for file in _below(path, reads, fps):
            found = True
            yield _named(file) if isinstance(file, Path) else file
        if not found:
            yield FilePrediction(str(path), error="no file in this folder")


def _below(folder: Path, reads: Collection[str], fps: float | None) -> Iterator[Path | FilePrediction]:
    """The files below a folder in the order of their paths, or itself; links to folders are not followed."""
    try:
        with os.scandir(folder) as entries:
            listed = sorted((e.name, is_folder(e), e.is_symlink()) for e in entries if not e.name.startswith("."))
    except OSError as error:
        yield FilePrediction(str(folder), error=f"cannot be listed: {error.strerror}")
        return
    if _is_array(folder, listed, reads) or _is_video(listed, reads, fps):
        yield folder
        return
    for name, is_inner, is_link in listed:
        if not is_inner:
            yield folder / name
        elif not is_link:
            yield from _below(folder / name, reads, fps)


def _is_array(folder: Path, listed: Listed, reads: Collection[str]) -> bool:
    """Whether a folder is one of sub-folders with pictures, and these are read."""
    if Reads.ARRAY not in reads or not listed or not all(is_inner for _, is_inner, _ in listed):
        return False
    try:
        return Clip(folder).has(Reads.ARRAY)
    except (MBTError, OSError):
        return False


def _is_video(listed: Listed, reads: Collection[str], fps: float | None) -> bool:
    """Whether a folder holds pictures alone, and they are frames. Whether one is missing, reading it says."""
    wanted = fps is not None and Reads.FRAMES in reads and bool(listed)
    return wanted and all(not is_inner and Path(name).suffix.lower() in CODECS for name, is_inner, _ in listed)


def _named(file: Path) -> Path | FilePrediction:
    try:
        str(file).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(file).decode(errors="replace")
        return FilePrediction(shown, error="its name is not valid UTF-8; rename it")
    return file


class Files(ClipDataset):
    """Reads batches of segments of any files: what a batch holds is all that it has to know.

    Attributes:
        fps: frames a second of what does not tell it.
    """

    fps: float | None = None

    def batch(self, items: Sequence[Any]) -> tuple[ClipDataset, Sequence[Draw]]:
        """For segments; rows count from 0 in the batch."""
        dataset = copy(self)
        dataset.manifest = files_manifest(items, self.manifest.reads, self.fps)
        return dataset, [Draw(0, row) for row in range(len(items))]

    def key(self, item: Any) -> Hashable:
        """The file: a window that a process dies of stands for all that follow."""
        return item[0]


class Stream(Sampler[list[Segment]]):
    """Cuts a stream of segments into batches, and keeps what was handed out until it is asked for.

    Args:
        rows: segments, and between them what cannot be classified.
        batch_size: segments of a batch.
    """

    def __init__(self, rows: Iterable[Segment | FilePrediction], batch_size: int) -> None:
        self.rows, self.batch_size = rows, batch_size
        self.handed_out: deque[Segment | FilePrediction] = deque()

    def __iter__(self) -> Iterator[list[Segment]]:
        batch: list[Segment] = []
        for row in self.rows:
            self.handed_out.append(row)
            if not isinstance(row, FilePrediction):
                batch.append(row)
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def take(self, count: int) -> Iterator[Segment | FilePrediction]:
        """The next `count` segments that were handed out, and what stands between them and after them."""
        while self.handed_out and (count > 0 or isinstance(self.handed_out[0], FilePrediction)):
            row = self.handed_out.popleft()
            count -= not isinstance(row, FilePrediction)
            yield row


def _check_positive(option: str, value: float | None, unit: str) -> None:
    if value is not None and not 0 < value < math.inf:
        raise ConfigError(f"{option} {value:g}: expected a positive number of {unit}")


def predict_files(
    model: MBT,
    paths: Iterable[Path],
    experiment: Experiment,
    *,
    fabric: Fabric,
    top: int = 5,
    every: float | None = None,
    answered: Container[tuple[str, float | None]] = (),
    fps: float | None = None,
) -> Iterator[FilePrediction]:
    """Classifies files and folders batch by batch; a bad file yields its error and does not stop the others.

    Folders are walked through as they are read, and a few batches are in memory, however many files there are. While
    the model works on a batch, other processes read the next ones.

    Args:
        model: in evaluation mode; moved to the device.
        paths: files and folders.
        experiment: of the run: data, views, batch size.
        fabric: device and precision.
        top: how many labels.
        every: seconds between the starts of windows that slide over each file, the last of which ends with it; None:
            the run's views of the whole.
        answered: (file, start of the window or None) of what is left out.
        fps: frames a second of folders of pictures and of arrays, which do not tell it; see `find_files`.

    Raises:
        ConfigError: at once, for an `every` or `fps` that is no positive number.
    """
    _check_positive("--every", every, "seconds")
    _check_positive("--fps", fps, "frames a second")
    files = find_files(paths, {m.reads for m in model.modalities.values()}, fps)
    windows = _rows(files, model.modalities, experiment.data, every, fps)
    rows = (row for row in windows if _key(row) not in answered)
    return _classified(model, rows, experiment, fabric, top, every is not None, fps)


def _key(row: Segment | FilePrediction) -> tuple[str, float | None]:
    """A file, and the start of the window of it."""
    return (row.file, row.start) if isinstance(row, FilePrediction) else row[:2]


@torch.inference_mode()
def _classified(
    model: MBT,
    rows: Iterator[Segment | FilePrediction],
    experiment: Experiment,
    fabric: Fabric,
    top: int,
    windows: bool,
    fps: float | None,
) -> Iterator[FilePrediction]:
    """What each row was classified as, in their order."""
    reads = {name: m.reads for name, m in model.modalities.items()}
    views = 1 if windows else experiment.evaluate.views
    stream = Stream(rows, rows_at_once(model, experiment.evaluate.batch_size or BATCH, views))
    empty = files_manifest((), reads)
    dataset = Files(empty, model.modalities, {}, config=experiment.data, seed=0, training=False, views=views)
    dataset.fps = fps
    loader = make_loader(dataset, stream, experiment.data.workers, fabric.device)
    model.to(fabric.device).eval()
    preprocess = Preprocess(model.modalities).to(fabric.device)
    for batch in loader:
        results = classify(batch, model, preprocess, fabric, top, experiment.evaluate.average)
        for row in stream.take(len(batch) // views):
            yield row if isinstance(row, FilePrediction) else _placed(next(results), row, windows)
    for row in stream.take(0):
        assert isinstance(row, FilePrediction)
        yield row


def classify(
    batch: Batch, model: MBT, preprocess: torch.nn.Module, fabric: Fabric, top: int, average: str
) -> Iterator[FilePrediction]:
    """What each row of a batch is classified as, its file left open: `answers_of` what the model says of it."""
    with fabric.autocast():
        logits = by_task(forward(model, preprocess, batch.to(fabric.device)).logits)
    return answers_of(batch, {task: values.float().cpu() for task, values in logits.items()}, model, top, average)


@torch.inference_mode()
def predict_rows(
    model: MBT,
    manifest: Manifest,
    rows: np.ndarray,
    experiment: Experiment,
    *,
    fabric: Fabric,
    top: int = 5,
    answered: Container[tuple[str, float | None]] = (),
) -> Iterator[FilePrediction]:
    """Classifies rows of a manifest, whose modalities may lie in files of their own; `file` is the row's id.

    Args:
        model: in evaluation mode; moved to the device.
        manifest: read for the model's modalities; labels are not needed.
        rows: of the manifest, int [N].
        experiment: of the run: data, views, batch size.
        fabric: device and precision.
        top: how many labels.
        answered: (id, None) of what is left out.
    """
    views = experiment.evaluate.views
    rows = np.array([row for row in rows.tolist() if (manifest.ids[row].as_py(), None) not in answered], np.int64)
    dataset = ClipDataset(manifest, model.modalities, {}, config=experiment.data, seed=0, training=False, views=views)
    sampler = EvalSampler(rows, rows_at_once(model, experiment.evaluate.batch_size or BATCH, views))
    loader = make_loader(dataset, sampler, experiment.data.workers, fabric.device)
    model.to(fabric.device).eval()
    preprocess = Preprocess(model.modalities).to(fabric.device)
    for batch in loader:
        found = classify(batch, model, preprocess, fabric, top, experiment.evaluate.average)
        for row, prediction in zip(dict.fromkeys(batch.index.tolist()), found, strict=True):
            yield replace(prediction, file=manifest.ids[row].as_py())


def files_manifest(segments: Sequence[Segment], reads: Mapping[str, str], fps: float | None = None) -> Manifest:
    """The manifest of files without labels; each file serves every modality that finds what it reads.

    Args:
        segments: the files.
        reads: modality -> what it reads.
        fps: frames a second of files that do not tell it.
    """
    files = [os.path.abspath(file) for file, _, _ in segments]
    columns = {
        "id": pa.array(map(str, range(len(segments))), pa.string()),
        # each modality's own column: `path` alone would not serve one that reads text
        **{f"{name}.path": pa.array(files, pa.string()) for name in reads},
        "start": pa.array([start for _, start, _ in segments], pa.float64()),
        "end": pa.array([end for _, _, end in segments], pa.float64()),
        RATE: pa.array([fps] * len(segments), pa.float64()),
    }
    return Manifest.from_table(pa.table(columns), Path.cwd(), reads, UNSPLIT, labelled=False)


def _rows(
    files: Iterable[Path | FilePrediction],
    modalities: Mapping[str, Modality],
    config: DataConfig,
    every: float | None,
    fps: float | None = None,
) -> Iterator[Segment | FilePrediction]:
    """What to classify, and what cannot be (files are only looked into where windows slide), in the files' order."""
    length = max((m.seconds for m in modalities.values() if m.seconds is not None), default=every)
    each: Each[Path, float | FilePrediction | None, Any] = Each(partial(_length, config.timeout, fps), _no_length)
    pool = Pool(each, 1 if config.workers else 0, patience_for(config.timeout))
    for file in files:
        if isinstance(file, FilePrediction):
            yield file
        elif every is None or length is None:
            yield str(file), None, None
        else:
            [duration] = pool.map([file])
            if isinstance(duration, FilePrediction):
                yield duration
            else:
                yield from _windows(str(file), duration, every, length)


def _length(timeout: float, fps: float | None, file: Path) -> float | FilePrediction | None:
    """Seconds of a file, None if it has no length; or what is wrong with it."""
    try:
        with Clip(file, timeout=timeout, fps=fps) as clip:
            return clip.duration
    except MBTError as error:
        return FilePrediction(str(file), error=without_name(str(error), str(file)))


def _no_length(file: Path, why: str) -> FilePrediction:
    return FilePrediction(str(file), error=why)


def _windows(name: str, duration: float | None, every: float, length: float) -> Iterator[Segment | FilePrediction]:
    """Windows of `length` seconds, a start every `every` seconds and one at the end; or why there are none."""
    if duration is None:
        yield name, None, None
        return
    last = max(0.0, duration - length)
    steps = last / every + 1e-6
    if steps + 1 > WINDOWS:
        many = f"{duration:g} s long by its own account: more than {WINDOWS} windows at --every {every:g}"
        yield FilePrediction(name, error=f"{many}; give a larger one, or mend the file")
        return
    starts = (i * every for i in range(int(steps) + 1))
    rest = [last] if last - int(steps) * every > 1e-6 * every else []
    for start in chain(starts, rest):
        yield name, start, min(start + length, duration)


def without_name(error: str, file: str) -> str:
    """The message of an error without the file that it begins with."""
    return error.removeprefix(f"{file}: ")


def answers_of(
    batch: Batch, logits: Mapping[str, torch.Tensor], model: MBT, top: int, average: str
) -> Iterator[FilePrediction]:
    """What each row of a batch was classified as, its file left open."""
    errors = dict(batch.errors)
    head = model.config.head
    for row in dict.fromkeys(batch.index.tolist()):
        if row in errors:
            yield FilePrediction("", error=errors[row])
            continue
        mine = batch.index == row
        names = [name for name, here in batch.present.items() if bool(here[mine].any())]
        best = {}
        for task, values in logits.items():
            kind = head.kind_of(task)
            there, back = scales(kind, average)
            mean = back(there(values[mine]).mean(0, keepdim=True))[0]
            best[task] = best_labels(mean, kind, model.output_names(task), top)
        if all(math.isfinite(score) for labels in best.values() for _, score in labels):
            yield FilePrediction("", names, best)
        else:
            yield FilePrediction("", error=NOT_FINITE)


def _placed(found: FilePrediction, segment: Segment, windows: bool) -> FilePrediction:
    """The prediction with its file and window."""
    file, start, end = segment
    if found.error is not None:
        return FilePrediction(file, error=without_name(found.error, os.path.abspath(file)))
    return replace(found, file=file, start=start if windows else None, end=end if windows else None)


def best_labels(logits_C: torch.Tensor, kind: TaskKind, names: list[str] | None, top: int) -> list[tuple[str, float]]:
    """The `top` labels with their scores."""
    labels = names or [f"class_{i}" for i in range(len(logits_C))]
    if kind == "regression":
        return [(label, float(v)) for label, v in zip(labels, logits_C.tolist(), strict=True)]
    scores = logits_C.softmax(0) if kind == "single" else logits_C.sigmoid()
    values, indices = scores.topk(min(top, len(scores)))
    return [(labels[i], float(v)) for v, i in zip(values.tolist(), indices.tolist(), strict=True)]

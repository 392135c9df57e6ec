"""Pooled embeddings of a data set, fused and of each modality alone: what the classifier sees, mean over views.

Shapes: V views of a batch, R rows of it, N rows in all, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from lightning_fabric import Fabric
from torch import Tensor

from mbt_core.config import Experiment
from mbt_core.data.collate import Batch, Preprocess
from mbt_core.data.dataset import ClipDataset
from mbt_core.data.loader import make_loader
from mbt_core.data.manifest import Manifest
from mbt_core.data.missing import check_missing
from mbt_core.data.sampler import EvalSampler
from mbt_core.data.source import split_or_all
from mbt_core.errors import ConfigError
from mbt_core.evaluate.evaluator import forward
from mbt_core.evaluate.memory import rows_at_once
from mbt_core.io.files import only_writer, write_atomically
from mbt_core.model import MBT

FUSED, IDS = "fused", "ids"
SUFFIXES = (".parquet", ".npy", ".npz")
ROW_GROUP = 4096


@dataclass(frozen=True)
class Part:
    """Embeddings of some rows.

    Args:
        ids: of the rows.
        values: ``fused`` and modality -> float32 [R, D], NaN where there is none.
    """

    ids: list[str]
    values: dict[str, np.ndarray]


@dataclass
class Embedded:
    """What was written: number of rows, D, and why some have no embedding (id -> message)."""

    rows: int = 0
    width: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def check_out(out: Path, modalities: Iterable[str]) -> None:
    """Raises `ConfigError` for a file of another kind, or if a modality has the name of a column."""
    if out.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--out {out}: expected a file that ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    taken = {FUSED, IDS}.intersection(modalities)
    if taken:
        raise ConfigError(f"the modality {taken.pop()!r} has the name of what embeddings are written as; rename it")


@torch.inference_mode()
def embed(
    model: MBT,
    manifest: Manifest,
    split: str | None,
    out: Path,
    experiment: Experiment,
    fabric: Fabric,
    views: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    max_missing: float | None = None,
) -> Embedded:
    """Writes the embeddings of a manifest's rows.

    ``.parquet``: columns id, fused and one a modality, null where there is none. ``.npz``: arrays ids [N], fused
    [N, D] and one a modality; ``.npy``: fused [N, D]; NaN where there is none.

    Args:
        model: in evaluation mode; moved to the device.
        manifest: read for the model's modalities; labels are not needed.
        split: whose rows; None: all.
        out: the file, replaced when all is done.
        experiment: of the run: how data are read, batch size, views.
        fabric: device and precision.
        views: windows per clip; the experiment's by default.
        progress: called with (rows done, rows in all).
        max_missing: share of the files that may be missing or unreadable; the experiment's by default.

    Raises:
        ConfigError: for a file of another kind, an unknown split, or a file that another process is writing.
        DataError: if more than `max_missing` of the files are missing or unreadable.
    """
    check_out(out, model.modalities)
    manifest, split = split_or_all(manifest, split)
    losses = check_missing(manifest, split, experiment.data.max_missing if max_missing is None else max_missing)
    rows, views = manifest.rows(split), views or experiment.evaluate.views
    dataset = ClipDataset(manifest, model.modalities, {}, config=experiment.data, seed=0, training=False, views=views)
    sampler = EvalSampler(rows, rows_at_once(model, experiment.evaluate.batch_size or 32, views))
    loader = make_loader(dataset, sampler, experiment.data.workers, fabric.device)
    model.to(fabric.device).eval()
    preprocess = Preprocess(model.modalities).to(fabric.device)
    report = Embedded()

    def parts() -> Iterator[Part]:
        for batch in loader:
            losses.add(batch.errors)
            report.failed |= {manifest.row(row).id: message for row, message in batch.errors}
            part = _embed(model, preprocess, batch.to(fabric.device), manifest, fabric)
            report.rows, report.width = report.rows + len(part.ids), part.values[FUSED].shape[1]
            yield part
            if progress:
                progress(report.rows, len(rows))

    def write(path: Path) -> None:
        if out.suffix.lower() == ".parquet":
            _write_parquet(path, parts())
        else:
            _write_arrays(path, parts(), fused_only=out.suffix.lower() == ".npy")

    with only_writer(out):
        write_atomically(out, write)
    return report


def _embed(model: MBT, preprocess: torch.nn.Module, batch: Batch, manifest: Manifest, fabric: Fabric) -> Part:
    with fabric.autocast():
        prediction = forward(model, preprocess, batch)
    rows, views = batch.index.unique_consecutive(return_inverse=True)

    def mean(embedding_VD: Tensor, there_V: Tensor) -> np.ndarray:
        kept_VD = torch.where(there_V[:, None], embedding_VD.float(), 0)
        sums_RD = kept_VD.new_zeros(len(rows), kept_VD.shape[1]).index_add_(0, views, kept_VD)
        counts_R = torch.bincount(views[there_V], minlength=len(rows))
        found: np.ndarray = (sums_RD / counts_R[:, None]).cpu().numpy()  # 0 / 0 is NaN: nothing there
        return found

    values = {FUSED: mean(prediction.embedding, batch.weight > 0)}
    values |= {name: mean(e, batch.present[name]) for name, e in prediction.modality_embeddings.items()}
    return Part([manifest.row(row).id for row in rows.tolist()], values)


def _joined(parts: Sequence[Part]) -> Part:
    ids = [name for part in parts for name in part.ids]
    return Part(ids, {name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values})


def _write_parquet(path: Path, parts: Iterable[Part]) -> None:
    """Group by group: a large data set is never in memory as a whole."""
    writer: pa.parquet.ParquetWriter | None = None
    try:
        for part in _groups(parts):
            arrays = {name: _column(values) for name, values in part.values.items()}
            table = pa.table({"id": pa.array(part.ids, pa.string()), **arrays})
            writer = writer or pa.parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _groups(parts: Iterable[Part]) -> Iterator[Part]:
    waiting: list[Part] = []
    for part in parts:
        waiting.append(part)
        if sum(len(p.ids) for p in waiting) >= ROW_GROUP:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _column(values_RD: np.ndarray) -> pa.FixedSizeListArray:
    absent = np.isnan(values_RD).any(1)
    flat = pa.array(np.where(absent[:, None], 0, values_RD).astype(np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, values_RD.shape[1], mask=pa.array(absent))


def _write_arrays(path: Path, parts: Iterable[Part], fused_only: bool) -> None:
    whole = _joined(list(parts))
    if fused_only:
        with path.open("wb") as file:
            np.save(file, whole.values[FUSED])
        return
    arrays = {IDS: np.array(whole.ids, dtype=str), **whole.values}
    with ZipFile(path, "w") as archive:  # np.savez takes no array called `file`
        for name, values in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)

"""``predictions.parquet``: what a model says of every example it was evaluated on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from torch import Tensor

from mbt_core.data.manifest import Manifest
from mbt_core.evaluate.evaluator import Evaluation
from mbt_core.files import write_atomically

FILE = "predictions.parquet"


def write_predictions(folder: Path, found: Evaluation, manifest: Manifest, split: str) -> None:
    """Writes ``predictions.parquet``, one row an example; those that could not be read come last.

    Columns: ``id``, ``split``, ``error`` (null, or why it could not be read); ``target``, a class index, or a list with
    one number a class; ``logits``, averaged over views and fused, and ``logits[NAME]`` of each modality (null where it
    is absent). With several tasks they are called ``TASK/target``, ``TASK/logits`` and so on. The file's metadata
    ``classes`` holds the names of the classes as JSON, task -> names.

    Args:
        folder: of the run.
        found: the evaluation.
        manifest: its rows.
        split: that was evaluated.
    """
    failed = sorted(found.failed)
    rows = [*found.index.tolist(), *failed]
    columns = {
        "id": pa.array([manifest.row(row).id for row in rows], pa.string()),
        "split": pa.array([split] * len(rows), pa.string()),
        "error": pa.array([found.failed.get(row) for row in rows], pa.string()),
    }
    single = found.head.tasks is None
    for task, target in found.targets.items():
        columns["target" if single else f"{task}/target"] = _column(target, None, len(failed))
    for source, logits in found.logits.items():
        for task, values in logits.items():
            name = "logits" if single else f"{task}/logits"
            columns[f"{name}[{source}]" if source else name] = _column(values, found.present.get(source), len(failed))
    table = pa.table(columns).replace_schema_metadata({"classes": json.dumps(manifest.classes, ensure_ascii=False)})
    write_atomically(folder / FILE, lambda part: pa.parquet.write_table(table, part))


def _column(values: Tensor, present: Tensor | None, failed: int) -> pa.Array:
    """[N] or [N, C] as N numbers or lists, and `failed` nulls after them; null where not `present`."""
    here = np.ones(len(values), bool) if present is None else present.numpy()
    if values.dim() == 1:
        numbers = pa.array(values.numpy(), mask=~here)
        return pa.concat_arrays([numbers, pa.nulls(failed, numbers.type)])
    lengths = np.concatenate([here * values.shape[1], np.zeros(failed, np.int64)])
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
    missing = pa.array(np.concatenate([~here, np.ones(failed, bool)]))
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.float().numpy()[here].ravel()), mask=missing)

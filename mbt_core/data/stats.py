"""Mean and deviation of every modality's input over a split, and how often each class comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbt_core.config import DataConfig
from mbt_core.data.collate import Preprocess
from mbt_core.data.dataset import ClipDataset
from mbt_core.data.loader import make_loader
from mbt_core.data.manifest import Manifest
from mbt_core.data.sampler import EvalSampler
from mbt_core.modality import Modality

BATCH = 16


@dataclass
class Moments:
    """Sums over the values of a modality's input, by channel.

    Args:
        count: number of values of a channel.
        total, squares: float64 [C].
    """

    count: int = 0
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def add(self, x: Tensor) -> None:
        """Adds [B, C, ...]."""
        x = x.double().transpose(0, 1).flatten(1)
        self.count += x.shape[1]
        self.total = self.total + x.sum(1)
        self.squares = self.squares + x.square().sum(1)

    def report(self) -> dict[str, Any] | None:
        """``{"mean", "std"}`` over all values, and of each of several channels ``channel_mean``, ``channel_std``."""
        if not isinstance(self.total, Tensor) or not isinstance(self.squares, Tensor):
            return None
        mean, square = self.total / self.count, self.squares / self.count
        found: dict[str, Any] = {
            "mean": _number(mean.mean()),
            "std": _number((square.mean() - mean.mean() ** 2).clamp(min=0).sqrt()),
        }
        if len(mean) > 1:
            each = (square - mean**2).clamp(min=0).sqrt()
            found |= {"channel_mean": list(map(_number, mean)), "channel_std": list(map(_number, each))}
        return found


def _number(x: Tensor) -> float:
    return float(f"{x.item():.6g}")


def unnormalised(config: Any) -> Any | None:
    """The configuration whose preprocessor neither subtracts a mean nor divides; None if it has no mean and std."""
    if not {"mean", "std"} <= type(config).model_fields.keys():
        return None
    return type(config).model_validate(config.model_dump() | {"mean": 0.0, "std": 1.0})


def statistics(
    manifest: Manifest,
    modalities: Mapping[str, Modality],
    config: DataConfig,
    split: str,
    *,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Mean and deviation of the inputs before they are normalised: one window, the middle one, of each row.

    Args:
        manifest: the rows.
        modalities: name -> instance; those whose configuration has no `mean` and `std` are left out.
        config: workers, timeout.
        split: whose rows.
        limit: rows to look at, spread over the split; None: all.
        progress: called with (rows done, rows in all).

    Returns:
        ``{"split", "rows", "failed", "modalities": {NAME: {"clips", "mean", "std"}}, "classes": {TASK: {CLASS:
        rows}}}``. A modality of which nothing was there has only ``clips``, 0.
    """
    plain = {name: unnormalised(modality.config) for name, modality in modalities.items()}
    chosen = {name: type(modalities[name])(name, c) for name, c in plain.items() if c is not None}
    rows = manifest.rows(split)
    if limit is not None and limit < len(rows):
        rows = rows[np.linspace(0, len(rows) - 1, limit).astype(int)]
    found, clips, failed = {name: Moments() for name in chosen}, dict.fromkeys(chosen, 0), 0
    if chosen:
        dataset = ClipDataset(manifest, chosen, {}, config=config, seed=0, training=False)
        preprocess = Preprocess(chosen)
        done = 0
        for batch in make_loader(dataset, EvalSampler(rows, BATCH), config.workers, torch.device("cpu")):
            failed += len(batch.errors)
            for name, x in preprocess(batch).items():
                here = batch.present[name]
                clips[name] += int(here.sum())
                if here.any():
                    found[name].add((x[0] if isinstance(x, tuple) else x)[here])
            done += len(batch)
            if progress:
                progress(done, len(rows))
    counts = {
        task: dict(zip(labels.names, labels.counts(manifest.rows(split)).tolist(), strict=True))
        for task, labels in manifest.labels.items()
        if labels.names
    }
    reports = {name: {"clips": clips[name], **(moments.report() or {})} for name, moments in found.items()}
    return {"split": split, "rows": len(rows), "failed": failed, "modalities": reports, "classes": counts}

"""Reads batches in processes of their own (`mbt_core.data.readers`), or in this one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import partial
from typing import Any, Literal

import torch
from torch.utils.data import Sampler

from mbt_core.data.collate import Batch, Collate
from mbt_core.data.dataset import ClipDataset, Draw, Example
from mbt_core.data.machine import cores
from mbt_core.data.readers import Each, Pool, Turn, patience_for

MAX_WORKERS = 16
Workers = int | Literal["auto"]


class Loader:
    """The `Batch`es of a data set, in the order of a sampler. It can be gone through again and again.

    A row during which reading processes died or hung is one that cannot be read: weight 0, and an error that says so.
    It is not tried again while the manifest lives.

    Args:
        dataset: what is read.
        sampler: of batches; of a stream it has no length.
        workers: reading processes; 0: none, and what ends a process ends this one.
        device: where the batches go; for a GPU they are in page-locked memory.
    """

    def __init__(self, dataset: ClipDataset, sampler: Sampler[Any], workers: int, device: torch.device) -> None:
        self.sampler, self.device, self.workers = sampler, device, workers
        self.pool = Pool(
            partial(_read, dataset, Collate(dataset.modalities)),
            workers,
            patience_for(dataset.config.timeout),
            key=dataset.key,
            fatal=dataset.fatal,
        )

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Batch]:
        """Batches; a few are read ahead.

        Raises:
            MBTError: if processes die, and not of a row; what reading raises that is no fault of a row.
        """
        if self.device.type != "cuda":
            yield from self.pool.run(self.sampler)
            return
        device = self.device if self.device.index is not None else torch.device("cuda", torch.cuda.current_device())
        pinning = ThreadPoolExecutor(1, "pinning", torch.cuda.set_device, (device,))
        try:
            for batch in self.pool.run(self.sampler, lambda batch: pinning.submit(batch.pin_memory)):
                yield batch.result()
        finally:
            pinning.shutdown(wait=False, cancel_futures=True)


def _read(dataset: ClipDataset, collate: Collate, items: Sequence[Any], turn: Turn) -> Batch:
    dataset, draws = dataset.batch(items)
    if turn.suspects and dataset.cache is not None:  # windows may be read where decoding the whole clip ends a process
        dataset = copy(dataset)
        dataset.cache = None
    batch: Batch = Each(dataset.__getitem__, dataset.unreadable, collate)(draws, turn)
    return batch


def make_loader(dataset: ClipDataset, sampler: Sampler[Any], workers: Workers, device: torch.device) -> Loader:
    """A loader of `Batch`es.

    Args:
        dataset: what is read.
        sampler: of batches; of a stream it has no length.
        workers: reading processes, which are started when there are batches for them; the batches do not depend on
            it. ``auto``: see `auto_workers`.
        device: where the batches go.
    """
    return Loader(dataset, sampler, auto_workers(dataset) if workers == "auto" else workers, device)


def row_reader(dataset: ClipDataset, workers: Workers) -> Callable[[int], list[Example]]:
    """A function that reads a row of the manifest in a process of its own, or with no `workers` in this one."""
    each: Each[Draw, list[Example], Any] = Each(dataset.__getitem__, dataset.unreadable)
    options: dict[str, Any] = {"key": dataset.key, "fatal": dataset.fatal}
    pool = Pool(each, 1 if workers else 0, patience_for(dataset.config.timeout), **options)

    def read(row: int) -> list[Example]:
        [examples] = pool.map([Draw(0, row)])
        return list(examples)

    return read


def auto_workers(dataset: ClipDataset) -> int:
    """The number of reading processes that ``auto`` stands for: one if all decoded clips are in memory, else one per
    core but one, at most 16."""
    if dataset.cache is not None and dataset.cache.complete:
        return 1
    return min(max(1, cores() - 1), MAX_WORKERS)

"""Reads batches, in this process or in several."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Sampler
from torch.utils.data._utils import signal_handling

from mbt_core.data.collate import Collate
from mbt_core.data.dataset import ClipDataset
from mbt_core.data.machine import cores
from mbt_core.errors import MBTError

MAX_WORKERS = 16
MIN_PATIENCE = 300.0
POLL = 1.0
"""Seconds after which a reading process has noticed that the main one is gone."""


class Loader(DataLoader[Any]):
    """A `DataLoader` whose failures are `MBTError`s with one clear message."""

    def __iter__(self) -> Any:
        batches: Any = super().__iter__()
        while True:
            try:
                yield next(batches)
            except StopIteration:
                return
            except Exception as error:
                if self.num_workers:
                    _end_workers(batches)  # else they would live as long as the error's traceback
                    self._iterator = None
                clear = _explained(error, self.timeout)
                if clear is None:
                    raise
                raise clear from error


def make_loader(
    dataset: ClipDataset,
    sampler: Sampler[Any],
    workers: int | Literal["auto"],
    device: torch.device,
    patience: float | None = None,
) -> Loader:
    """A loader of `Batch`es.

    Args:
        dataset: what is read.
        sampler: of batches; of a stream it has no length.
        workers: reading processes; the batches do not depend on it. ``auto``: none if the decoded clips are in memory,
            else one per core but one, at most 16 and no more than batches.
        device: where the batches go; for a GPU they are in page-locked memory.
        patience: seconds without a batch after which reading fails; by default 10 times the time a clip may take, at
            least 300.

    Raises:
        MBTError: while iterating, if a process dies or hangs.
    """
    count = auto_workers(dataset, sampler) if workers == "auto" else workers
    if patience is None:
        patience = max(MIN_PATIENCE, 10 * dataset.config.timeout)
    several: dict[str, Any] = {}
    if count:
        # a fork starts at once; other methods import everything anew in every process
        method = "fork" if sys.platform == "linux" else None
        several = {"multiprocessing_context": method, "persistent_workers": True, "timeout": patience}
    return Loader(
        dataset,
        batch_sampler=sampler,
        num_workers=count,
        collate_fn=Collate(dataset.modalities),
        pin_memory=device.type == "cuda",
        worker_init_fn=_start_worker,
        **several,
    )


def auto_workers(dataset: ClipDataset, sampler: Sampler[Any]) -> int:
    """The number of reading processes that ``auto`` stands for."""
    if dataset.cache is not None and dataset.cache.in_memory:
        return 0
    batches = len(sampler) if hasattr(sampler, "__len__") else MAX_WORKERS
    return min(max(1, cores() - 1), MAX_WORKERS, batches)


def _start_worker(number: int) -> None:
    # Ctrl-C is for the main process, which ends this one; its handlers, inherited by a fork, are not for this one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):  # so is that of a terminal which is closed
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":  # taken by the thread
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    """Ends this process when the main one was killed or says so by SIGTERM, also in the middle of decoding.

    Of others SIGTERM is not heeded: a cluster sends it to all processes of a job, and the main one still needs this one
    for the step that it ends before it saves.
    """
    while os.getppid() == parent:
        if sys.platform == "linux":
            asked = signal.sigtimedwait([signal.SIGTERM], POLL)
            if asked is not None and asked.si_pid == parent:
                break
        else:
            time.sleep(POLL)
    os._exit(1)


def _end_workers(batches: Any) -> None:
    """Ends all reading processes of an iterator, whatever they do: one that hangs or is stopped heeds no request.

    Nothing of it is waited for any more: its threads could wait for ever for a lock that a killed process has held.
    """
    signal_handling._remove_worker_pids(
        id(batches)
    )  # else their end would be an error, raised in the midst of anything
    batches._worker_pids_set, batches._shutdown = False, True
    for worker in batches._workers:
        worker.kill()
    for worker in batches._workers:
        worker.join()
    if batches._pin_memory:
        batches._pin_memory_thread_done_event.set()


def _explained(error: Exception, patience: float) -> MBTError | None:
    """What happened in the reading processes, for the user; None: `error` says it already, or is a bug."""
    text = str(error)
    if isinstance(error, MBTError) and text.startswith("Caught "):
        # raised in a worker, the message arrives at the end of a traceback
        name = f"{type(error).__module__}.{type(error).__name__}: "
        return type(error)(text.rsplit(name, 1)[-1].strip())
    if not isinstance(error, RuntimeError) or not text.startswith("DataLoader"):
        return None
    if "timed out" in text:
        return MBTError(
            f"no batch was read in {patience:g} s: a reading process hangs, perhaps on a file system that does not "
            "answer. Try data.workers=0 to see where"
        )
    return MBTError(
        f"a reading process died ({error.__cause__ or error}); most often memory, or shared memory (/dev/shm), is out: "
        "lower data.workers or train.batch_size"
    )

"""The largest batch that fits, and words for one that does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mbt_core.config import TrainConfig
from mbt_core.data.collate import blank_batch
from mbt_core.errors import MBTError
from mbt_core.model import MBT

DEFAULT_BATCH = 64
LARGEST_BATCH = 4096


def largest_batch(model: MBT, preprocess: nn.Module, device: torch.device) -> int:
    """The largest power of two that a forward and backward pass on `device` has memory for, with one doubling to spare.

    Only CUDA says that its memory is out instead of being killed; elsewhere it is `DEFAULT_BATCH`.
    """
    if device.type != "cuda":
        return DEFAULT_BATCH
    model.to(device).train()
    preprocess.to(device)
    size = 4
    while size < LARGEST_BATCH:
        try:
            prediction = model(preprocess(blank_batch(model.modalities, size * 2).to(device)))
            prediction.embedding.float().square().mean().backward()
        except torch.OutOfMemoryError:
            break
        finally:
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
        size *= 2
    return max(1, size // 2)


@contextmanager
def explain_memory(config: TrainConfig) -> Iterator[None]:
    """Turns running out of memory into an `MBTError` that says what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).lower()
        if not isinstance(error, MemoryError) and "out of memory" not in text and "can't allocate memory" not in text:
            raise
        raise MBTError(
            f"out of memory with train.batch_size={config.batch_size}, train.accumulate={config.accumulate}: compute "
            "the batch in more parts (train.accumulate=4), lower train.batch_size, or set model.checkpointing=true"
        ) from error

"""The largest batch that fits, and words for one that does not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from mbt_core.config import TrainConfig
from mbt_core.data.collate import blank_batch
from mbt_core.errors import MBTError
from mbt_core.modality.tokens import Tokens
from mbt_core.model import MBT
from mbt_core.model.mbt import TokenTransform

DEFAULT_BATCH = 64
LARGEST_BATCH = 4096
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "status_alloc_failed")
"""As the CPU's allocator, CUDA's, and its libraries (cuBLAS, cuDNN) say it, in lower case."""


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
            run_blanks(model, preprocess, size * 2, device)
        except torch.OutOfMemoryError:
            break
        finally:
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
        size *= 2
    return max(1, size // 2)


def run_blanks(model: MBT, preprocess: nn.Module, size: int, device: torch.device) -> None:
    """A forward and backward pass of `size` stand-ins, all of them present and of their greatest length."""
    inputs = preprocess(blank_batch(model.modalities, size).to(device))
    prediction = model(inputs, transform=full_length(model))
    prediction.embedding.float().square().mean().backward()


def full_length(model: MBT) -> TokenTransform:
    """Makes every sequence as long as its grid allows: stand-ins of texts are as good as empty."""

    def fill(tokens: dict[str, Tokens]) -> dict[str, Tokens]:
        grids = {name: math.prod(model.stream(name).grid) for name in tokens}
        return {name: Tokens(F.pad(x, (0, 0, 0, grids[name] - x.shape[1]))) for name, (x, _) in tokens.items()}

    return fill


@contextmanager
def explain_memory(config: TrainConfig) -> Iterator[None]:
    """Turns running out of memory into an `MBTError` that says what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).lower()
        if not isinstance(error, MemoryError) and not any(words in text for words in OUT_OF_MEMORY):
            raise
        raise MBTError(
            f"out of memory with train.batch_size={config.batch_size}, train.accumulate={config.accumulate}: compute "
            "the batch in more parts (train.accumulate=4), lower train.batch_size, or set model.checkpointing=true"
        ) from error

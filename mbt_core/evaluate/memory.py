"""How many rows a batch of an evaluation may have, so that no configuration asks for more memory than there may be."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from mbt_core.errors import ConfigError
from mbt_core.modality import Modality, Sample
from mbt_core.model import MBT

LIMIT = 16 << 30
"""Bytes that a batch may take: its samples, and its tokens in the widest layer."""


def rows_at_once(model: MBT, batch_size: int, views: int) -> int:
    """Rows of a batch: as many as `batch_size` views are of, and fewer where they would take more than `LIMIT`.

    Args:
        model: that classifies them.
        batch_size: views of a batch, as configured.
        views: of a row, which lie in one batch.

    Raises:
        ConfigError: if those of a single row take more.
    """
    each = view_bytes(model)
    if views * each > LIMIT:
        raise ConfigError(
            f"evaluate.views: {views} views of a clip would take {views * each / 2**30:.1f} GiB, expected at most "
            f"{LIMIT >> 30}; give fewer views, or a smaller model or input"
        )
    return max(1, min(batch_size, LIMIT // each) // views)


def view_bytes(model: MBT) -> int:
    """Bytes that one view takes, about: samples as floating-point numbers, and what a block makes of their tokens."""
    numbers = sum(math.prod(x.shape) for modality in model.modalities.values() for x in _leaves(_blank(modality)))
    tokens = sum(model.prefix + math.prod(model.stream(name).grid) for name in model.modalities)
    return 8 * numbers + 4 * tokens * (4 * model.backbone.dim + model.backbone.mlp_width)


def _blank(modality: Modality) -> Sample:
    """A stand-in of which only the shapes count."""
    try:
        with torch.device("meta"):
            return modality.blank()
    except Exception:  # a plugin's that needs values
        return modality.blank()


def _leaves(sample: Sample) -> Iterator[Tensor]:
    yield from sample.values() if isinstance(sample, dict) else [sample]

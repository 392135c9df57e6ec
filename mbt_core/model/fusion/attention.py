"""Vanilla fusion: pairwise attention among all tokens of all modalities.

Shapes: B batch, N tokens of a stream with its prefix, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mbt_core.model.block import Attended
from mbt_core.model.fusion.base import JOINT, Attend, Fusion, Masks, Presence, Rows, Streams, key_mask, recorder


def _visible(x_BND: Tensor, mask_BN: Tensor | None, present_B: Tensor | None) -> Tensor | None:
    """Which tokens of a stream others may attend to."""
    if present_B is None:
        return mask_BN
    here = present_B[:, None].expand(x_BND.shape[:2])
    return here if mask_BN is None else here & mask_BN


class CrossAttention(Fusion):
    """Queries of a stream's own tokens; keys and values of everyone's (equation 5 of the paper)."""

    def layer(
        self,
        index: int,
        blocks: Mapping[str, Any],
        streams: Streams,
        state: Any,
        masks: Masks,
        present: Presence,
        record: dict[str, list[Attended]] | None = None,
    ) -> tuple[Streams, Any]:
        new = {}
        for name, x_BND in streams.items():
            others = [
                (y, _visible(y, masks[other], None if present is None else present[other]))
                for other, y in streams.items()
                if other != name
            ]
            context = torch.cat([y for y, _ in others], 1) if others else None
            # an absent stream still sees itself, so that no row of its (unused) attention is empty
            mask = key_mask([(x_BND, masks[name]), *others])
            new[name] = blocks[name](x_BND, context, mask, recorder(record, name))
        return new, state

    def sources(self, streams: Streams, name: str) -> list[tuple[str, int]]:
        return [(n, streams[n].shape[1]) for n in (name, *(other for other in streams if other != name))]


class SelfAttention(Fusion):
    """All tokens in one sequence through one joint set of blocks (equation 4 of the paper)."""

    joint = True

    def layer(
        self,
        index: int,
        blocks: Mapping[str, Any],
        streams: Streams,
        state: Any,
        masks: Masks,
        present: Presence,
        record: dict[str, list[Attended]] | None = None,
    ) -> tuple[Streams, Any]:
        parts = [
            (x, _visible(x, masks[name], None if present is None else present[name])) for name, x in streams.items()
        ]
        y = blocks[JOINT](torch.cat([x for x, _ in parts], 1), mask=key_mask(parts), record=recorder(record, JOINT))
        return dict(zip(streams, y.split([x.shape[1] for x, _ in parts], 1), strict=True)), state

    def sources(self, streams: Streams, name: str) -> list[tuple[str, int]]:
        return [(n, x.shape[1]) for n, x in streams.items()]

    def trace(self, rows: Rows, attend: Attend, present: Presence) -> Rows:
        return attend(JOINT, torch.cat(list(rows.values()), -1))

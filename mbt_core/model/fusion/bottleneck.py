"""Attention bottlenecks (MBT, arXiv 2107.00135, section 3.3).

Shapes: B batch, N tokens of a stream with its prefix, Z bottlenecks, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mbt_core.config import BackboneConfig, FusionConfig
from mbt_core.model.block import Attended
from mbt_core.model.fusion.base import (
    BOTTLENECKS,
    Attend,
    Fusion,
    Masks,
    Presence,
    Rows,
    Streams,
    add_up,
    key_mask,
    recorder,
)


class Bottleneck(Fusion):
    """Every stream runs on [its tokens; z]; the new z is the mean over the present streams of their proposals.

    Equations 8 and 9 of the paper (symmetric update). z has no positions and starts from a learned N(0, 0.02).
    """

    def __init__(self, config: FusionConfig, backbone: BackboneConfig, names: list[str], **options: Any) -> None:
        super().__init__(config, backbone, names, **options)
        # nobody to exchange with, or no layer to do it in
        used = len(names) > 1 and config.first < backbone.depth
        self.bottlenecks = nn.Parameter(torch.empty(1, config.bottlenecks, backbone.dim)) if used else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.bottlenecks is not None:
            nn.init.normal_(self.bottlenecks, std=0.02)

    def start(self, streams: Streams) -> Tensor | None:
        if self.bottlenecks is None:
            return None
        first = next(iter(streams.values()))
        return self.bottlenecks.expand(first.shape[0], -1, -1).to(first.dtype)

    def layer(
        self,
        index: int,
        blocks: Mapping[str, Any],
        streams: Streams,
        state: Tensor | None,
        masks: Masks,
        present: Presence,
        record: dict[str, list[Attended]] | None = None,
    ) -> tuple[Streams, Tensor | None]:
        if state is None:
            return {n: blocks[n](x, mask=masks[n], record=recorder(record, n)) for n, x in streams.items()}, None
        new, proposals = {}, {}
        for name, x_BND in streams.items():
            new[name], proposals[name] = self._run(name, x_BND, state, blocks, masks, record)
        return new, mean_present(proposals, present, state)

    def _run(
        self,
        name: str,
        x_BND: Tensor,
        z_BZD: Tensor,
        blocks: Mapping[str, Any],
        masks: Masks,
        record: dict[str, list[Attended]] | None,
    ) -> tuple[Tensor, Tensor]:
        mask = key_mask([(x_BND, masks[name]), (z_BZD, None)])
        y = blocks[name](torch.cat((x_BND, z_BZD), 1), mask=mask, record=recorder(record, name))
        own, proposal = y.split((x_BND.shape[1], z_BZD.shape[1]), 1)  # one gradient, where two slices have two
        return own, proposal

    def sources(self, streams: Streams, name: str) -> list[tuple[str, int]]:
        own = super().sources(streams, name)
        return own if self.bottlenecks is None else [*own, (BOTTLENECKS, self.bottlenecks.shape[1])]

    def bottlenecks_of(self, state: Any) -> Tensor | None:
        return state

    def trace(self, rows: Rows, attend: Attend, present: Presence) -> Rows:
        if BOTTLENECKS not in rows:
            return super().trace(rows, attend, present)
        names = [name for name in rows if name != BOTTLENECKS]
        here = {name: 1.0 if present is None else present[name][:, None, None].to(rows[name].dtype) for name in names}
        # the new z is a mean: each present stream answers for an equal part of it
        part = rows[BOTTLENECKS] / torch.as_tensor(sum(here.values())).clamp(min=1)
        return add_up(attend(name, torch.cat((rows[name], part * here[name]), -1)) for name in names)


class SequentialBottleneck(Bottleneck):
    """Streams in order; each sees the z that the one before it left (equation 7 of the paper, "updated twice")."""

    def layer(
        self,
        index: int,
        blocks: Mapping[str, Any],
        streams: Streams,
        state: Tensor | None,
        masks: Masks,
        present: Presence,
        record: dict[str, list[Attended]] | None = None,
    ) -> tuple[Streams, Tensor | None]:
        if state is None:
            return super().layer(index, blocks, streams, state, masks, present, record)
        new = {}
        for name, x_BND in streams.items():
            new[name], proposal = self._run(name, x_BND, state, blocks, masks, record)
            state = proposal if present is None else torch.where(present[name][:, None, None], proposal, state)
        return new, state

    def trace(self, rows: Rows, attend: Attend, present: Presence) -> Rows:
        if BOTTLENECKS not in rows:
            return super().trace(rows, attend, present)
        z_BQZ, before = rows[BOTTLENECKS], {}
        for name in reversed([name for name in rows if name != BOTTLENECKS]):
            written = z_BQZ if present is None else z_BQZ * present[name][:, None, None]
            before[name] = attend(name, torch.cat((rows[name], written), -1))
            z_BQZ = z_BQZ - written + before[name].pop(BOTTLENECKS)
        return add_up(before.values()) | {BOTTLENECKS: z_BQZ}


def mean_present(proposals: dict[str, Tensor], present: Presence, otherwise: Tensor) -> Tensor:
    """Mean over the streams present in each sample of [B, Z, D]; `otherwise` where none is."""
    if present is None:
        return torch.stack(list(proposals.values())).mean(0)
    here = torch.stack([present[name] for name in proposals])[:, :, None, None]
    stacked = torch.stack(list(proposals.values()))
    count = here.sum(0)
    total = torch.where(here, stacked, 0).sum(0)
    return torch.where(count > 0, total / count.clamp(min=1), otherwise)

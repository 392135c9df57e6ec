"""The contract of a fusion strategy.

Shapes: B batch, N tokens of a stream with its prefix, Z bottlenecks, D width, Q whatever is traced.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mbt_core.config import BackboneConfig, FusionConfig
from mbt_core.errors import ConfigError, MBTError
from mbt_core.model.block import Attended

Streams = dict[str, Tensor]
"""Name -> [B, N, D], in the model's order; only the modalities given to this forward pass."""
Masks = Mapping[str, Tensor | None]
"""Name -> bool [B, N] (True: real token) or None (all are)."""
Presence = Mapping[str, Tensor] | None
"""Name -> bool [B] (True: this sample has it); None: all samples have all."""
BOTTLENECKS = ""
"""What stands for the bottleneck tokens where tokens are named by their stream."""
Rows = dict[str, Tensor]
"""Name, or `BOTTLENECKS` -> [B, Q, N]: Q quantities over each stream's tokens."""
Attend = Callable[[str, Tensor], Rows]
"""(stream whose block it is, rows over the block's queries [B, Q, N]) -> rows over its keys."""


@dataclass(frozen=True)
class LayerRecord:
    """What one layer did, for probes and pictures.

    Args:
        tokens: name -> [B, N, D] after the layer.
        attended: name -> list of (queries [B, H, N, E], keys [B, H, K, E]); one pair a call of a block.
        sources: name -> whose tokens the keys are, in order: (a name or `BOTTLENECKS`; their number).
        bottlenecks: [B, Z, D] after the layer, or None.
    """

    tokens: dict[str, Tensor]
    attended: dict[str, list[Attended]]
    sources: dict[str, list[tuple[str, int]]]
    bottlenecks: Tensor | None


class Fusion(nn.Module, ABC):
    """How streams exchange information from the fusion layer on. It may own parameters.

    Args:
        config: the fusion section of the model's configuration.
        backbone: geometry of the blocks.
        names: the modalities the model is built with, in order.
        options: further keywords from ``fusion.options``, for strategies of plugins.
    """

    joint: ClassVar[bool] = False
    """Whether fused layers run one joint set of blocks (key `JOINT` of ``blocks``) instead of one per stream."""

    def __init__(self, config: FusionConfig, backbone: BackboneConfig, names: list[str], **options: Any) -> None:
        super().__init__()
        if options:
            raise ConfigError(f"model.fusion.options: {config.strategy!r} takes none, got {sorted(options)}")
        self.names = names

    def start(self, streams: Streams) -> Any:
        """The state before the first fused layer."""
        return None

    @abstractmethod
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
        """Runs fused layer `index`.

        Args:
            index: of the layer, from 0.
            blocks: name -> this layer's block; call it as ``block(x, context=None, mask=None, record=None)``.
            streams: name -> [B, N, D]; not to be changed in place.
            state: what `start` or the layer before returned.
            masks: name -> bool [B, N] or None.
            present: name -> bool [B]; None: all present. An absent stream must not influence the others.
            record: if given, each block's queries and keys are to be appended under the stream's name.

        Returns:
            The new streams and state.
        """

    def sources(self, streams: Streams, name: str) -> list[tuple[str, int]]:
        """Whose tokens `name`'s keys are in a fused layer, in order: (name or `BOTTLENECKS`, how many)."""
        return [(name, streams[name].shape[1])]

    def bottlenecks_of(self, state: Any) -> Tensor | None:
        """The bottleneck tokens [B, Z, D] in a state, or None."""
        return None

    def trace(self, rows: Rows, attend: Attend, present: Presence) -> Rows:
        """Leads what rests on a fused layer's output back to its input, for pictures of attention.

        To be overridden where a block's queries are not just its own stream's tokens, or its keys not tokens.

        Args:
            rows: over the layer's output; over the bottlenecks too, if there are any.
            attend: one block's attention; its keys are those that `sources` lists.
            present: name -> bool [B]; None: all present. Rows over an absent stream are 0.
        """
        return trace_alone(rows, attend)


JOINT = "_joint"


def trace_alone(rows: Rows, attend: Attend) -> Rows:
    """`Fusion.trace` where every block's queries are its own stream's tokens."""
    return add_up(attend(name, x) for name, x in rows.items() if name != BOTTLENECKS)


def add_up(parts: Iterable[Rows]) -> Rows:
    """The sum of rows over some streams each. Raises `MBTError` where keys are not the streams' tokens themselves."""
    total: Rows = {}
    for part in parts:
        for name, x in part.items():
            if name in total and total[name].shape != x.shape:
                raise MBTError(f"attention to {name!r} is not to its tokens: the fusion strategy has to define `trace`")
            total[name] = total[name] + x if name in total else x
    return total


def recorder(record: dict[str, list[Attended]] | None, name: str) -> list[Attended] | None:
    """The list that a block of stream `name` records into."""
    return None if record is None else record.setdefault(name, [])


def key_mask(parts: list[tuple[Tensor, Tensor | None]]) -> Tensor | None:
    """One bool mask [B, K] over concatenated keys, from (tokens [B, N, D], mask [B, N] or None) each; None: all."""
    if all(mask is None for _, mask in parts):
        return None
    return torch.cat([x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask for x, mask in parts], 1)

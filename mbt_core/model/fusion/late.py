"""No exchange: streams meet only in the average of their logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mbt_core.model.block import Attended
from mbt_core.model.fusion.base import Fusion, Masks, Presence, Streams, recorder


class Late(Fusion):
    """Every layer runs each stream alone (late fusion)."""

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
        return {n: blocks[n](x, mask=masks[n], record=recorder(record, n)) for n, x in streams.items()}, state

"""Class and register tokens, positions and bottlenecks of a stream out of a ViT's, between explicit grids.

With `reference` they are the reference's (Scenic), where it goes another way.

Shapes: N tokens of a grid in row-major order, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mbt_core.errors import ConfigError
from mbt_core.modality.patch_weights import VitWeights
from mbt_core.model.position import resample_positions
from mbt_core.model.stream import Stream


def stream_tokens(vit: VitWeights, stream: Stream, reference: bool = False) -> dict[str, Tensor]:
    """`stream`'s ``pos_embed``, and ``cls_token`` and ``reg_token`` where it has them and the ViT too.

    A ViT whose prefix tokens have no positions (DeiT-3) is one whose positions for them are zero; where the stream's
    have none, the ViT's are added to the tokens themselves. Both are exact. A stream with a class token that the ViT
    lacks keeps its own, and its own position for it.

    Raises:
        ConfigError: the numbers of register tokens differ, or no rule leads from grid to grid.
    """
    source, state = vit.source, vit.state
    own = {"cls_token": stream.cls_token, "reg_token": stream.reg_token}
    wanted = {key: token for key, token in own.items() if token is not None}
    registers = [0 if token is None else token.shape[1] for token in (state.get("reg_token"), wanted.get("reg_token"))]
    if registers[0] != registers[1]:
        raise ConfigError(
            f"model.pretrained: {source} has {registers[0]} register tokens, the model {registers[1]}; set "
            "model.backbone to the source's timm name, or to a mapping of its dim, depth, heads and "
            f"registers: {registers[0]}"
        )
    tokens = {key: state[key] for key in wanted if key in state}
    slots: dict[str, Tensor] = {}
    used = 0
    for key in ("cls_token", "reg_token"):
        if key in state:
            size = state[key].shape[1] if vit.prefix else 0
            slots[key] = state["pos_embed"][:, used : used + size] if size else torch.zeros_like(state[key])
            used += size
    grid = _reference_grid(vit, stream) if reference else grid_positions(vit, stream.grid)
    if not stream.embed_prefix:
        return {key: token + slots[key] for key, token in tokens.items()} | {"pos_embed": grid[None]}
    kept, start = [], 0
    for key, token in wanted.items():
        size = token.shape[1]
        kept.append(slots[key] if key in slots else stream.pos_embed[:, start : start + size].detach())
        start += size
    return tokens | {"pos_embed": torch.cat((*kept, grid[None]), 1)}


def grid_positions(vit: VitWeights, grid: Sequence[int], align_corners: bool = False) -> Tensor:
    """The ViT's positions [N, D] on another grid; those of a video on a picture's are their mean over time.

    Raises:
        ConfigError: no rule leads there.
    """
    pos_ND, old = vit.state["pos_embed"][0, vit.prefix :], vit.grid
    if len(old) == 3 and len(grid) < 3:
        pos_ND, old = pos_ND.unflatten(0, old).mean(0).flatten(0, 1), old[1:]
    try:
        return resample_positions(pos_ND, old, grid, align_corners)
    except ValueError as error:
        raise ConfigError(f"model.pretrained: {vit.source}: {error}") from None


def bottleneck_positions(vit: VitWeights, count: int, class_slot: bool, reference: bool = False) -> Tensor:
    """Positions of a small grid as `count` bottlenecks [1, count, D] (the reference's start): as square as it gets.

    With `class_slot` the first is the position of the ViT's class token.
    """
    first = vit.state["pos_embed"][:, :1] if class_slot and vit.prefix else None
    cells = count - (first is not None)
    if cells == 0:
        assert first is not None
        return first
    rows = next(n for n in range(math.isqrt(cells), 0, -1) if cells % n == 0)
    grid = grid_positions(vit, (rows, cells // rows), align_corners=reference)[None]
    return grid if first is None else torch.cat((first, grid), 1)


def _reference_grid(vit: VitWeights, stream: Stream) -> Tensor:
    """The reference's rule: corners aligned, no anti-aliasing; per frame, on a grid guessed from the number of tokens.

    Positions as many as the source's, its class token's among them, are taken as they are, whatever the grids.
    """
    given, grid = vit.state["pos_embed"][0], stream.grid
    prefix = stream.prefix if stream.embed_prefix else 0
    if len(given) == prefix + math.prod(grid):
        return given[prefix:]
    if len(grid) < 3:
        return grid_positions(vit, grid, align_corners=True)
    cells = math.prod(grid[1:])
    rows = math.isqrt(cells)
    if rows * (cells // rows) != cells:
        raise ConfigError(f"the reference has no grid for {cells} tokens a frame")
    frame = (rows, cells // rows)
    if math.prod(vit.grid) == cells:
        frame = (vit.grid[0], vit.grid[1])
    return grid_positions(vit, frame, align_corners=True).repeat(grid[0], 1)

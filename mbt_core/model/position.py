"""Position embeddings between explicit grids; no grid is ever guessed.

Shapes: N tokens of a grid in row-major order, P prefix slots (class and register tokens), D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def resample_positions(pos_ND: Tensor, old: Sequence[int], new: Sequence[int], align_corners: bool = False) -> Tensor:
    """Resamples a grid of position embeddings [prod(old), D] to [prod(new), D], in float32.

    - Same number of axes: interpolated linearly along each (anti-aliased where it shrinks, in two dimensions).
    - An image's (rows, columns) to (time, rows, columns): per frame, then the frame is repeated over time.
    - An image's grid to (N,): its rows one after the other as a sequence, interpolated to N.

    Args:
        pos_ND: embeddings in row-major order of `old`.
        old: the grid they are for.
        new: the grid that is wanted.
        align_corners: the reference's interpolation: corners aligned, no anti-aliasing.

    Raises:
        ValueError: if `old` does not match the number of embeddings, or no rule leads to `new`.
    """
    old, new = tuple(old), tuple(new)
    if math.prod(old) != pos_ND.shape[0]:
        raise ValueError(f"{pos_ND.shape[0]} position embeddings do not fill a grid of {old}")
    if old == new:
        return pos_ND
    if len(old) == 2 and len(new) == 3:
        frame = resample_positions(pos_ND, old, new[1:], align_corners)
        return frame.repeat(new[0], 1)
    if len(old) == 2 and len(new) == 1:
        return resample_positions(pos_ND, (math.prod(old),), new, align_corners)
    if len(old) != len(new) or len(new) > 3:
        raise ValueError(f"no rule leads from a grid of {old} to one of {new}")
    grid = pos_ND.float().T.reshape(1, -1, *old)
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(new)]
    antialias = len(new) == 2 and not align_corners
    grid = F.interpolate(grid, size=new, mode=mode, align_corners=align_corners, antialias=antialias)
    return grid.reshape(grid.shape[1], -1).T.to(pos_ND.dtype).contiguous()

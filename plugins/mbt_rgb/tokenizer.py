"""The reference's tokenizer ``temporal_sampling``.

Shapes: B batch, T frames, S chosen frames, H, W size of a frame, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mbt_core import PatchTokenizer, Tokens


def sampled_frames(frames: int, count: int) -> list[int]:
    """Which of `frames` frames the reference's ``temporal_sampling`` chooses when asked for `count`.

    With step s = frames / (count + 1) these are s, 2s, 3s, ... below `frames`, computed in float32 and rounded half to
    even; rounding may yield one more than asked for. All frames if there are no more than `count`.
    """
    if count >= frames:
        return list(range(frames))
    step = frames / (count + 1)
    length = int(np.ceil((frames - step) / step))
    first, second = np.float32(step), np.float32(2 * step)
    times = first + np.arange(length, dtype=np.float32) * (second - first)
    return np.minimum(np.round(times), frames - 1).astype(int).tolist()


class SampledFramesTokenizer(PatchTokenizer):
    """Chooses frames, stacks them along the height and cuts this tall picture into 2-D patches.

    Where the height is no multiple of the patch, patches run across the border of two frames, and the grid is that of
    the tall picture; else it is (frames, rows, columns).

    Args:
        size: (T, H, W) of the input.
        patch: (height, width).
        count: number of frames to choose; S may be one more.
        dim: D.

    Attributes:
        chosen: indices of the S frames.
    """

    def __init__(self, size: Sequence[int], patch: Sequence[int], count: int, dim: int) -> None:
        frames, height, width = size
        self.chosen = sampled_frames(frames, count)
        super().__init__(3, (len(self.chosen) * height, width), patch, dim)
        self.input_shape = (3, *size)
        self.rows, self.columns = self.grid
        if height % patch[0] == 0:
            self.grid = (len(self.chosen), height // patch[0], self.columns)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tokens:
        """x: [B, 3, T, H, W] -> Tokens. `mask`: bool [B, N] of real patches, or None."""
        if tuple(x.shape[1:]) != self.input_shape:
            came, expected = (", ".join(map(str, ("B", *v))) for v in (x.shape[1:], self.input_shape))
            raise ValueError(f"the tokenizer's input is [{came}], expected [{expected}]")
        tall = torch.cat([x[:, :, frame] for frame in self.chosen], 2)
        height, width = self.patch
        tall = tall[:, :, : self.rows * height, : self.columns * width]
        tall = tall.reshape(-1, 3, self.rows, height, self.columns, width)
        x_BNP = tall.permute(0, 2, 4, 1, 3, 5).reshape(-1, self.rows * self.columns, 3 * height * width)
        return Tokens(F.linear(x_BNP, self.weight.flatten(1), self.bias), mask)

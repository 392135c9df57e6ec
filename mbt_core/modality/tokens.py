"""Tokens: what a tokenizer returns.

Shapes: B batch, N tokens, D width.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


class Tokens(NamedTuple):
    """Embedded patches of one modality, before class token and positions.

    Args:
        x: [B, N, D].
        mask: bool [B, N], True where a token is real; None: all are. Padding never influences a result.
    """

    x: Tensor
    mask: Tensor | None = None


class Tokenizer(nn.Module):
    """``(input, mask=None) -> Tokens``. Tokens are in row-major order of `grid`.

    Attributes:
        grid: number of tokens along each axis, e.g. (time, height, width). A one-dimensional grid is an upper
            limit: shorter sequences are allowed.
        dim: width D of a token.
    """

    grid: tuple[int, ...]
    dim: int

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tokens:
        raise NotImplementedError

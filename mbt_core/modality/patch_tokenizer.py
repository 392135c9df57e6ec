"""Patch embedding in any number of dimensions.

Shapes: B batch, C channels, S_i input size along axis i, P_i patch size, N_i = S_i // P_i, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mbt_core.errors import ConfigError
from mbt_core.modality.tokens import Tokenizer, Tokens


class PatchTokenizer(Tokenizer):
    """Cuts [B, C, S_1, ..., S_k] into patches and projects each linearly (ViT, arXiv 2010.11929, equation 1).

    The weight has the shape of a k-dimensional convolution's, [D, C, P_1, ..., P_k], and the result is that of a
    convolution with stride = kernel size; it is computed as one matrix product, which is several times faster on
    CPU. A remainder past the last whole patch is ignored.

    Args:
        channels: C.
        size: input size (S_1, ..., S_k).
        patch: patch size (P_1, ..., P_k).
        dim: D.

    Raises:
        ConfigError: if an axis is shorter than its patch.
    """

    def __init__(self, channels: int, size: Sequence[int], patch: Sequence[int], dim: int) -> None:
        super().__init__()
        self.channels, self.dim = channels, dim
        self.size, self.patch, self.grid = tuple(size), tuple(patch), grid_of(size, patch)
        self.weight = nn.Parameter(torch.empty(dim, channels, *patch))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """LeCun normal (truncated), as the reference."""
        std = (self.channels * math.prod(self.patch)) ** -0.5
        # 0.8796 is the deviation of a standard normal truncated at 2
        nn.init.trunc_normal_(self.weight, std=std / 0.87962566, a=-2 * std / 0.87962566, b=2 * std / 0.87962566)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tokens:
        """x: [B, C, S_1, ..., S_k] -> Tokens with N = prod(N_i). `mask`: bool [B, N] of real patches, or None."""
        check_input(x, self.channels, self.size)
        k = len(self.patch)
        for axis, (n, p) in enumerate(zip(self.grid, self.patch, strict=True), start=2):
            x = x.narrow(axis, 0, n * p)
        split = [v for n, p in zip(self.grid, self.patch, strict=True) for v in (n, p)]
        x = x.reshape(x.shape[0], self.channels, *split)
        order = [0, *range(2, 2 + 2 * k, 2), 1, *range(3, 3 + 2 * k, 2)]
        x_BNP = x.permute(order).reshape(x.shape[0], math.prod(self.grid), -1)
        return Tokens(F.linear(x_BNP, self.weight.flatten(1), self.bias), mask)


def grid_of(size: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    """How many whole patches fit along each axis. Raises `ConfigError` if an axis is shorter than its patch."""
    if any(s < p for s, p in zip(size, patch, strict=True)):
        raise ConfigError(f"an input of {tuple(size)} is smaller than one patch of {tuple(patch)}")
    return tuple(s // p for s, p in zip(size, patch, strict=True))


def check_input(x: Tensor, channels: int, size: tuple[int, ...]) -> None:
    """Raises `ValueError` unless x is [B, C, S_1, ..., S_k]."""
    if tuple(x.shape[1:]) != (channels, *size):
        came, expected = (", ".join(map(str, ("B", *v))) for v in (x.shape[1:], (channels, *size)))
        raise ValueError(f"the tokenizer's input is [{came}], expected [{expected}]")

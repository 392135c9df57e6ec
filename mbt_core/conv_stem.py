"""A convolutional stem in any number of dimensions, in place of the linear patch embedding.

Shapes: B batch, C channels, S_i input size along axis i, P_i patch size, N_i = S_i // P_i, D width, F features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mbt_core.patch import PatchTokenizer, check_input, grid_of
from mbt_core.schema import Stem
from mbt_core.tokens import Tokenizer, Tokens

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NARROWEST = 16
"""Features of a convolution at least."""


class ConvTokenizer(Tokenizer):
    """Strided convolutions down to one token per patch (Xiao et al., arXiv 2106.14881).

    Each stage is a convolution, a norm over all features and positions of an example (`GroupNorm` with one group) and a
    GELU; a last 1 x 1 convolution gives the tokens. The strides of the stages are the prime factors of the patch, the
    largest first, and their number of features doubles up to `dim`. A stage of stride s has kernels of 2 s - 1; along
    an axis that it does not stride over, of 1. An axis with few factors (a tubelet's time) is strided over by the last
    stages, where the maps are small. A remainder past the last whole patch is ignored.

    The grid is that of a `PatchTokenizer`, but tokens overlap: each sees a little of its neighbours' patches. With a
    mask nothing of a padded patch reaches a real token: the input ends where the mask does.

    Args:
        channels: C.
        size: input size (S_1, ..., S_k), k from 1 to 3.
        patch: patch size (P_1, ..., P_k).
        dim: D.

    Raises:
        ConfigError: if an axis is shorter than its patch.
    """

    def __init__(self, channels: int, size: Sequence[int], patch: Sequence[int], dim: int) -> None:
        super().__init__()
        assert len(patch) <= len(CONVOLUTIONS), patch
        self.channels, self.dim = channels, dim
        self.size, self.patch, self.grid = tuple(size), tuple(patch), grid_of(size, patch)
        stages, features = [], channels
        for number, stride in enumerate(strides := stage_strides(patch), start=1):
            width = min(dim, max(NARROWEST, dim >> (len(strides) - number)))
            stages.append(Stage(features, width, stride))
            features = width
        self.stages = nn.Sequential(*stages)
        self.proj = nn.Linear(features, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Kaiming normal before a GELU, LeCun normal for the projection; norms to the identity."""
        for stage in self.stages:
            stage.reset_parameters()  # type: ignore[operator]
        nn.init.kaiming_normal_(self.proj.weight, nonlinearity="linear")
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tokens:
        """x: [B, C, S_1, ..., S_k] -> Tokens with N = prod(N_i). `mask`: bool [B, N] of real patches, or None."""
        check_input(x, self.channels, self.size)
        for axis, (n, p) in enumerate(zip(self.grid, self.patch, strict=True), start=2):
            x = x.narrow(axis, 0, n * p)
        if mask is None:
            return Tokens(self.proj(self.stages(x).flatten(2).transpose(1, 2)), None)
        real, positions = mask.reshape(-1, 1, *self.grid), self.patch
        x = _cut(x, _spread(real, positions))
        for stage in self.stages:
            positions = tuple(p // s for p, s in zip(positions, stage.stride, strict=True))  # type: ignore[arg-type]
            x = stage(x, _spread(real, positions))
        return Tokens(self.proj(x.flatten(2).transpose(1, 2)), mask)


class Stage(nn.Module):
    """Convolution, norm and GELU: [B, C, S_1, ...] -> [B, F, S_1 / stride_1, ...].

    Args:
        channels: C.
        features: F.
        stride: along each axis, which it divides.
    """

    def __init__(self, channels: int, features: int, stride: tuple[int, ...]) -> None:
        super().__init__()
        kernel, padding = tuple(2 * s - 1 for s in stride), tuple(s - 1 for s in stride)
        convolution: Any = CONVOLUTIONS[len(stride) - 1]
        self.conv = convolution(channels, features, kernel, stride, padding, bias=False)
        self.norm = ExampleNorm(1, features)
        self.stride = stride

    def reset_parameters(self) -> None:
        """See `ConvTokenizer.reset_parameters`."""
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        self.norm.reset_parameters()

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """`real`: bool [B, 1, S_1 / stride_1, ...] of real positions, the others become zero; None: all are."""
        x = F.gelu(self.norm(self.conv(x), real))
        return x if real is None else _cut(x, real)


class ExampleNorm(nn.GroupNorm):
    """`GroupNorm` of which the statistics are those of real positions alone."""

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """x: [B, F, ...]. `real`: bool [B, 1, ...], True where a position is real; None: all are."""
        if real is None:
            return super().forward(x)
        axes, values = tuple(range(1, x.ndim)), x.float()
        count = real.sum(axes, keepdim=True).clamp(min=1) * x.shape[1]
        mean = (values * real).sum(axes, keepdim=True) / count
        variance = ((values - mean).square() * real).sum(axes, keepdim=True) / count
        shape = (1, -1, *[1] * (x.ndim - 2))
        values = (values - mean) * torch.rsqrt(variance + self.eps)
        return (values * self.weight.reshape(shape) + self.bias.reshape(shape)).to(x.dtype)


def make_tokenizer(stem: Stem, channels: int, size: Sequence[int], patch: Sequence[int], dim: int) -> Tokenizer:
    """The tokenizer that a kind's setting `stem` names: ``patch`` a `PatchTokenizer`, ``conv`` a `ConvTokenizer`."""
    return {"patch": PatchTokenizer, "conv": ConvTokenizer}[stem](channels, size, patch, dim)


def stage_strides(patch: Sequence[int]) -> list[tuple[int, ...]]:
    """The strides of each stage along each axis: prime factors, the largest first; axes with fewer start later."""
    factors = [prime_factors(p) for p in patch]
    stages = max(map(len, factors))
    return list(zip(*([1] * (stages - len(f)) + f for f in factors), strict=True))


def prime_factors(number: int) -> list[int]:
    """From the largest down; of 1, none."""
    factors = []
    for divisor in range(2, math.isqrt(number) + 1):
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
    return sorted([*factors, number] if number > 1 else factors, reverse=True)


def _spread(real: Tensor, positions: Sequence[int]) -> Tensor:
    """bool [B, 1, N_1, ...] of tokens -> of the `positions` that each token has along each axis."""
    for axis, count in enumerate(positions, start=2):
        real = real.repeat_interleave(count, axis)
    return real


def _cut(x: Tensor, real: Tensor) -> Tensor:
    """Zeros where no token is real: as convolutions pad."""
    return torch.where(real, x, 0.0)

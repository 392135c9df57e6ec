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

from mbt_core.config.schema import Auto, Stem
from mbt_core.errors import ConfigError
from mbt_core.modality.patch_tokenizer import PatchTokenizer, check_input, grid_of
from mbt_core.modality.tokens import Tokenizer, Tokens

CONVOLUTIONS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
KERNELS = (9, 3, 3)
"""Length of a kernel by the number of axes; nine taps in one dimension as in two."""
POOLS: tuple[Any, ...] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
MEMORY_FORMATS = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)
"""By the number of axes; with channels last convolutions and pools of a CPU take a little over half the time."""
NARROWEST = 16
"""Fewest features of a stage, unless `dim` is less."""
GROUPS = 8
"""Groups of a norm, where they divide the features."""


class ConvTokenizer(Tokenizer):
    """Convolutions and max pools down to one token per patch (CCT, Hassani et al., arXiv 2104.05704).

    Each stage is a convolution, a max pool, a `GroupNorm` and a GELU; a last linear layer gives the tokens. The windows
    of the pools, which do not overlap, are the prime factors of the patch, the largest first, and the number of
    features doubles from stage to stage up to `dim`. A kernel is 3 long, with one axis 9, or as long as its window;
    along an axis that a stage does not pool over it is 1. An axis with few factors (a tubelet's time) is pooled over by
    the last stages, where the maps are small. A remainder past the last whole patch is ignored.

    Pooled convolutions learn far more from few clips than strided ones, for twice the time. The norms take part in
    that: with one norm over all features, what is the same everywhere (the level of a spectrogram) drowns the rest.

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
        for number, window in enumerate(windows := stage_windows(patch), start=1):
            width = min(dim, max(NARROWEST, dim >> (len(windows) - number)))
            stages.append(Stage(features, width, window))
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
            positions = tuple(p // w for p, w in zip(positions, stage.window, strict=True))  # type: ignore[arg-type]
            x = stage(x, _spread(real, positions))
        return Tokens(self.proj(x.flatten(2).transpose(1, 2)), mask)


class Stage(nn.Module):
    """Convolution, max pool, norm and GELU: [B, C, S_1, ...] -> [B, F, S_1 / W_1, ...].

    Args:
        channels: C.
        features: F.
        window: W_i, of the pool along each axis, which it divides.
    """

    def __init__(self, channels: int, features: int, window: tuple[int, ...]) -> None:
        super().__init__()
        kernel = tuple(1 if w == 1 else max(KERNELS[len(window) - 1], w) for w in window)
        convolution = CONVOLUTIONS[len(window) - 1]
        self.conv = convolution(channels, features, kernel, padding=tuple(k // 2 for k in kernel), bias=False)
        self.norm = ExampleNorm(math.gcd(GROUPS, features), features)
        self.window = window

    def reset_parameters(self) -> None:
        """See `ConvTokenizer.reset_parameters`."""
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        self.norm.reset_parameters()

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """`real`: bool [B, 1, S_1 / W_1, ...] of real positions, the others become zero; None: all are."""
        axes = len(self.window)
        x = self.conv(x.contiguous(memory_format=MEMORY_FORMATS[axes - 1]))
        # PyTorch's norm of channels last sums up with errors of 1e-4 where an input is even, and more where it is large
        x = POOLS[axes - 1](x, self.window).contiguous()
        x = F.gelu(self.norm(x, real))
        return x if real is None else _cut(x, real)


class ExampleNorm(nn.GroupNorm):
    """`GroupNorm` of which the statistics are those of real positions alone."""

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """x: [B, F, ...]. `real`: bool [B, 1, ...], True where a position is real; None: all are."""
        if real is None:
            return super().forward(x)
        values, real = x.float().unflatten(1, (self.num_groups, -1)), real[:, None]
        axes = tuple(range(2, values.ndim))
        count = real.sum(axes, keepdim=True).clamp(min=1) * values.shape[2]
        mean = (values * real).sum(axes, keepdim=True) / count
        variance = ((values - mean).square() * real).sum(axes, keepdim=True) / count
        values = ((values - mean) * torch.rsqrt(variance + self.eps)).flatten(1, 2)
        shape = (1, -1, *[1] * (x.ndim - 2))
        return (values * self.weight.reshape(shape) + self.bias.reshape(shape)).to(x.dtype)


def make_tokenizer(stem: Stem | Auto, channels: int, size: Sequence[int], patch: Sequence[int], dim: int) -> Tokenizer:
    """The tokenizer that a kind's setting `stem` names: ``patch`` a `PatchTokenizer`, ``conv`` a `ConvTokenizer`.

    Raises `ConfigError` while it is ``auto``.
    """
    if stem == "auto":
        raise ConfigError("stem is still 'auto': it follows from model.pretrained; set it to patch or conv")
    return {"patch": PatchTokenizer, "conv": ConvTokenizer}[stem](channels, size, patch, dim)


def stage_windows(patch: Sequence[int]) -> list[tuple[int, ...]]:
    """The window of each stage along each axis: prime factors, the largest first; axes with fewer start later."""
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

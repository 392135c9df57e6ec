"""A ViT's weights in one common form, and its patch kernel made to fit another tokenizer.

Shapes: D width, C channels of the target, S channels of the source, h, w patch of the source, P_i patch of the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mbt_core.errors import ConfigError

Statistics = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class VitWeights:
    """A ViT, or one stream of an MBT, whatever file it came from.

    Args:
        state: timm's keys (``patch_embed.proj.weight``, ``pos_embed``, ``cls_token``, ``blocks.0.attn.qkv.weight``
            ...); `kernel` may have any number of axes, and be absent where the input is not cut into patches.
        grid: of its position embedding, an image ViT's being (rows, columns).
        prefix: how many class and register slots precede the grid in ``pos_embed``.
        mean, std: by which it wants pixels in [0, 1] normalised, per channel; None: unknown, or no pixels.
        heads, act, eps: attention heads, activation and epsilon of the layer norms, if known.
        kind: the kind of modality it was trained on; None: images.
        tokenizer: the tokenizer's own state, where it has no patch kernel.
        settings: of a stream, the configuration of its modality.
        architecture: the timm model that a file is said to be of, if it is.
        source: where it came from, for messages.
    """

    state: dict[str, Tensor]
    grid: tuple[int, ...]
    prefix: int
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    heads: int | None = None
    act: str | None = None
    eps: float | None = None
    kind: str | None = None
    tokenizer: Mapping[str, Tensor] | None = None
    settings: Any = None
    architecture: str = ""
    source: str = ""

    @property
    def patch(self) -> int | tuple[int, int] | None:
        """Side of an image's patch, or (height, width) where they differ; None where there is none."""
        kernel = self.state.get("patch_embed.proj.weight")
        if kernel is None or kernel.ndim < 4:
            return None
        height, width = kernel.shape[-2:]
        return height if height == width else (height, width)

    @property
    def kernel(self) -> Tensor:
        """[D, S, h, w], or [D, S, *patch] of a stream."""
        return self.state["patch_embed.proj.weight"]

    @property
    def bias(self) -> Tensor:
        """[D]; zeros for a ViT without (CLIP)."""
        bias = self.state.get("patch_embed.proj.bias")
        return torch.zeros(self.dim) if bias is None else bias

    @property
    def dim(self) -> int:
        return self.state["pos_embed"].shape[-1]

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return 1 + max((int(key.split(".")[1]) for key in self.state if key.startswith("blocks.")), default=-1)


def adapt_kernel(
    vit: VitWeights,
    channels: int,
    patch: Sequence[int],
    statistics: Statistics | None = None,
    inflate: str = "central",
) -> dict[str, Tensor]:
    """`vit`'s patch kernel for a `PatchTokenizer` of `channels` and `patch`.

    1. Normalisation (`statistics` and the source's known): folded into kernel and bias, exactly.
    2. Channels: `match_channels`.
    3. Tubelets of another length are first summed to one frame: the source on a still.
    4. Patch size: resized by the pseudo-inverse of bilinear interpolation (FlexiViT, arXiv 2212.08013). For a 1-D
       patch the kernel is first summed over its rows: the source on an image whose rows are all the signal.
    5. Tubelets: the kernel in the central frame t // 2 and zeros elsewhere (``central``), or divided by t in all
       (``average``; ViViT, arXiv 2103.15691).

    Args:
        vit: the source.
        channels: C.
        patch: (P_1,), (height, width) or (time, height, width).
        statistics: (mean, std) per channel by which the target's pixels in [0, 1] are normalised.
        inflate: ``central`` or ``average``.

    Returns:
        ``{"weight": [D, C, *patch], "bias": [D]}``.

    Raises:
        ConfigError: no rule leads from a 1-D kernel to one of more axes.
    """
    kernel, bias = vit.kernel.float(), vit.bias.float()
    if statistics is not None and vit.mean is not None and vit.std is not None:
        kernel, bias = fold_normalisation(kernel, bias, (vit.mean, vit.std), statistics)
    kernel = match_channels(kernel, channels)
    patch = tuple(patch)
    if tuple(kernel.shape[2:]) == patch:
        return {"weight": kernel, "bias": bias}
    if kernel.ndim == 5 and len(patch) == 3 and kernel.shape[2] == patch[0]:
        frames = [_resize(frame, patch[1:]) for frame in kernel.unbind(2)]
        return {"weight": torch.stack(frames, 2), "bias": bias}
    if kernel.ndim == 5:
        kernel = kernel.sum(2)
    if len(patch) == 1:
        rows = kernel.sum(2, keepdim=True) if kernel.ndim == 4 else kernel.unsqueeze(2)
        return {"weight": _resize(rows, (1, patch[0])).squeeze(2), "bias": bias}
    if kernel.ndim != 4:
        raise ConfigError(f"{vit.source}: no rule makes a patch of {list(patch)} from one of {list(kernel.shape[2:])}")
    kernel = _resize(kernel, patch[-2:])
    if len(patch) == 3:
        kernel = inflate_kernel(kernel, patch[0], inflate)
    return {"weight": kernel.contiguous(), "bias": bias}


def match_channels(kernel: Tensor, channels: int) -> Tensor:
    """[D, S, ...] -> [D, channels, ...]: the sum over the source's channels divided by the number of targets.

    With one target channel this is exactly the source on a grey image; equal numbers leave the kernel as it is.
    """
    if kernel.shape[1] == channels:
        return kernel
    folded = kernel.double().sum(1, keepdim=True) / channels
    return folded.to(kernel.dtype).expand(-1, channels, *kernel.shape[2:]).contiguous()


def fold_normalisation(kernel: Tensor, bias: Tensor, source: Statistics, target: Statistics) -> tuple[Tensor, Tensor]:
    """Kernel and bias that do on (p - mean_t) / std_t what the given ones do on (p - mean_s) / std_s."""
    mean_s, std_s = (torch.as_tensor(v, dtype=torch.float64) for v in source)
    mean_t, std_t = (torch.as_tensor(v, dtype=torch.float64) for v in target)
    kernel64 = kernel.double()
    shift_S = ((mean_t - mean_s) / std_s).expand(kernel.shape[1])
    scale_S = (std_t / std_s).expand(kernel.shape[1])
    bias = bias.double() + (kernel64.flatten(2).sum(2) * shift_S).sum(1)
    scale = scale_S.reshape(-1, *[1] * (kernel.ndim - 2))
    return (kernel64 * scale).to(kernel.dtype), bias.to(kernel.dtype)


def inflate_kernel(kernel: Tensor, frames: int, how: str) -> Tensor:
    """[D, C, h, w] -> [D, C, frames, h, w]."""
    if how == "average":
        return kernel.unsqueeze(2).expand(-1, -1, frames, -1, -1) / frames
    inflated = kernel.new_zeros(*kernel.shape[:2], frames, *kernel.shape[2:])
    inflated[:, :, frames // 2] = kernel
    return inflated


def _resize(kernel: Tensor, size: Sequence[int]) -> Tensor:
    """The kernel w' on a resized patch that answers as w does on the patch itself: w' = pinv(B^T) w."""
    old = (kernel.shape[2], kernel.shape[3])
    size = tuple(size)
    if old == size:
        return kernel
    basis = torch.eye(old[0] * old[1], dtype=torch.float64).reshape(-1, 1, *old)
    resized = F.interpolate(basis, size=size, mode="bilinear", antialias=True, align_corners=False)
    inverse = torch.linalg.pinv(resized.reshape(basis.shape[0], -1))  # [new, old]
    flat = kernel.double().flatten(2)
    return (flat @ inverse.T).reshape(*kernel.shape[:2], *size).to(kernel.dtype)

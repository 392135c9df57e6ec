"""Attention in bf16 on a processor, as matrix products.

PyTorch's fused attention is slower there in bf16 than in fp32: it does without the processor's bf16 products, unless it
has AMX. Here every head's scores are a product of their own, small enough to stay in the cache, and computed again in
the backward pass; they are rounded to bf16, as autocast does where attention is not fused.

Shapes: B batch, H heads, N queries, K keys, E head width, G = B * H.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

SCORES = 2_500_000
"""Largest number of scores at a time and thread."""
HAS_PRODUCTS = (
    platform.machine() in ("x86_64", "AMD64")
    and torch.cpu._is_avx512_bf16_supported()
    and not torch.cpu._is_amx_tile_supported()
)
"""Whether the processor multiplies in bf16, but not by AMX, which PyTorch's fused attention makes use of."""


def attend(q_BHNE: Tensor, k_BHKE: Tensor, v_BHKE: Tensor, mask_BK: Tensor | None, dropout: float) -> Tensor:
    """Scaled dot-product attention, by whatever is fastest: [B, H, N, E].

    Args:
        q_BHNE, k_BHKE, v_BHKE: queries, keys, values; of any strides.
        mask_BK: bool, True for keys to attend to, at least one in each row; None: all.
        dropout: on the attention weights.
    """
    in_bf16 = q_BHNE.dtype == k_BHKE.dtype == v_BHKE.dtype == torch.bfloat16
    if HAS_PRODUCTS and in_bf16 and q_BHNE.device.type == "cpu" and mask_BK is None and dropout == 0:
        return _attend_bf16(q_BHNE, k_BHKE, v_BHKE)
    mask = None if mask_BK is None else mask_BK[:, None, None, :]
    return F.scaled_dot_product_attention(q_BHNE, k_BHKE, v_BHKE, attn_mask=mask, dropout_p=dropout)


def _some(q_GNE: Tensor, k_GKE: Tensor) -> Iterator[slice]:
    """Heads to be computed together."""
    heads = SCORES * torch.get_num_threads() // (q_GNE.shape[1] * k_GKE.shape[1])
    return (slice(i, i + max(1, heads)) for i in range(0, len(q_GNE), max(1, heads)))


def _flat(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[G, N, E] and [G, K, E]; queries are scaled."""
    q = q * q.shape[3] ** -0.5
    return q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)


@torch.library.custom_op("mbt::attend_bf16", mutates_args=())
def _attend_bf16(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q_GNE, k_GKE, v_GKE = _flat(q, k, v)
    out_GNE = torch.empty_like(q_GNE)
    for g in _some(q_GNE, k_GKE):
        torch.bmm(torch.bmm(q_GNE[g], k_GKE[g].mT).softmax(-1), v_GKE[g], out=out_GNE[g])
    return out_GNE.unflatten(0, q.shape[:2])


@torch.library.custom_op("mbt::attend_bf16_backward", mutates_args=())
def _attend_bf16_backward(d_out: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q_GNE, k_GKE, v_GKE = _flat(q, k, v)
    d_out_GNE = d_out.flatten(0, 1)
    dq_GNE, dk_GKE, dv_GKE = torch.empty_like(q_GNE), torch.empty_like(k_GKE), torch.empty_like(v_GKE)
    for g in _some(q_GNE, k_GKE):
        p_GNK = torch.bmm(q_GNE[g], k_GKE[g].mT).softmax(-1)
        torch.bmm(p_GNK.mT, d_out_GNE[g], out=dv_GKE[g])
        d_p_GNK = torch.bmm(d_out_GNE[g], v_GKE[g].mT)
        d_scores_GNK = torch._softmax_backward_data(d_p_GNK, p_GNK, -1, p_GNK.dtype)
        torch.bmm(d_scores_GNK, k_GKE[g], out=dq_GNE[g])
        torch.bmm(d_scores_GNK.mT, q_GNE[g], out=dk_GKE[g])
    dq_GNE *= q.shape[3] ** -0.5
    return dq_GNE.unflatten(0, q.shape[:2]), dk_GKE.unflatten(0, k.shape[:2]), dv_GKE.unflatten(0, v.shape[:2])


@_attend_bf16.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


@_attend_bf16_backward.register_fake
def _(d_out: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))  # type: ignore[return-value]


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _attend_bf16_backward(d_out, *ctx.saved_tensors)


_attend_bf16.register_autograd(_backward, setup_context=_save)

"""The one transformer block of every stream.

Shapes: B batch, N tokens, M context tokens, K = N + M keys, H heads, E head width, D = H * E.
"""

from __future__ import annotations

from functools import partial

import torch
from timm.layers import DropPath as TimmDropPath
from timm.layers import get_act_layer
from timm.models.vision_transformer import Attention as TimmAttention
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn
from torch.nn import functional as F

from mbt_core.config import BackboneConfig, ModelConfig
from mbt_core.model.attention import attend

Attended = tuple[Tensor, Tensor]
"""Queries and keys of one attention, each [B, H, N, E] and [B, H, K, E]."""
VARIANTS = 64
"""Most ways of calling a block that are compiled: with mask, with context, in training, of varying lengths, frozen."""


class Attention(TimmAttention):
    """timm's attention with context: queries from x, keys and values from [x; context]."""

    def forward(
        self,
        x_BND: Tensor,
        context_BMD: Tensor | None = None,
        mask_BK: Tensor | None = None,
        record: list[Attended] | None = None,
    ) -> Tensor:
        B, N, D = x_BND.shape
        if context_BMD is None:
            # taken apart along the axis they lie on: their gradients go back into one tensor with a single copy
            q, k, v = (y.transpose(1, 2) for y in self.qkv(x_BND).view(B, N, 3, self.num_heads, -1).unbind(2))
        else:
            # queries for the own tokens only: projecting the context's would waste a third of the step
            weight, bias = self.qkv.weight, self.qkv.bias
            q = F.linear(x_BND, weight[:D], None if bias is None else bias[:D])
            kv = F.linear(torch.cat((x_BND, context_BMD), 1), weight[D:], None if bias is None else bias[D:])
            q = q.view(B, N, self.num_heads, -1).transpose(1, 2)
            k, v = (y.transpose(1, 2) for y in kv.view(B, kv.shape[1], 2, self.num_heads, -1).unbind(2))
        q, k = self.q_norm(q), self.k_norm(k)
        if record is not None:
            record.append((q, k))
        if mask_BK is not None:  # without any real key a softmax is undefined; such a result is never used
            mask_BK = mask_BK | ~mask_BK.any(1, keepdim=True)
        y = attend(q, k, v, mask_BK, self.attn_drop.p if self.training else 0.0)
        return self.proj_drop(self.proj(y.transpose(1, 2).reshape(B, N, D)))


class DropPath(TimmDropPath):
    """timm's stochastic depth, one graph for all rates: compiled, a number would make each layer a graph of its own."""

    keep: Tensor

    def __init__(self, drop_prob: float, scale_by_keep: bool) -> None:
        super().__init__(drop_prob, scale_by_keep)
        self.register_buffer("keep", torch.tensor(1 - drop_prob), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not torch.compiler.is_compiling():
            return super().forward(x)
        keep = self.keep.to(x.dtype)
        kept = torch.bernoulli(keep.expand(x.shape[0], *[1] * (x.ndim - 1)))
        return x * (kept / keep if self.scale_by_keep else kept)


class Block(TimmBlock):
    """timm's pre-norm block, with its state-dict keys, that may attend to a context.

    Context tokens are normalised and projected by this block's own weights, as in the reference.
    """

    def __init__(self, backbone: BackboneConfig, model: ModelConfig, drop_path: float) -> None:
        super().__init__(
            backbone.dim,
            backbone.heads,
            # timm rounds dim * ratio down, and dim * (width / dim) may come out below the width
            mlp_ratio=(backbone.mlp_width + 0.5) / backbone.dim,
            qkv_bias=backbone.qkv_bias,
            qk_norm=backbone.qk_norm,
            proj_drop=model.dropout,
            attn_drop=model.attention_dropout,
            init_values=backbone.layer_scale,
            act_layer=get_act_layer(backbone.act),
            norm_layer=partial(nn.LayerNorm, eps=backbone.eps),
            attn_layer=Attention,
        )
        if drop_path > 0:
            self.drop_path1 = DropPath(drop_path, scale_by_keep=model.drop_path_rescale)
            self.drop_path2 = DropPath(drop_path, scale_by_keep=model.drop_path_rescale)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier uniform kernels (query, key and value each as D x D), zero attention biases, as the reference."""
        D = self.attn.qkv.weight.shape[1]
        for part in self.attn.qkv.weight.split(D):
            nn.init.xavier_uniform_(part)
        for layer in (self.attn.proj, self.mlp.fc1, self.mlp.fc2):
            nn.init.xavier_uniform_(layer.weight)
        for bias in (self.attn.qkv.bias, self.attn.proj.bias):
            if bias is not None:
                nn.init.zeros_(bias)
        for layer in (self.mlp.fc1, self.mlp.fc2):
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        record: list[Attended] | None = None,
    ) -> Tensor:
        """x: [B, N, D]; context: [B, M, D] or None; mask: bool [B, N + M] of keys to attend to, or None (all).

        `record`, if given, receives this attention's queries and keys. Returns [B, N, D].
        """
        normed = None if context is None else self.norm1(context)
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), normed, mask, record)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


def compile_blocks(model: nn.Module) -> None:
    """Compiles every block in place, at its first call; blocks that are called alike share what is compiled.

    By default torch gives up after 8 ways of calling a function, with a warning, and runs what is left uncompiled.
    """
    import torch._dynamo  # a second that only this takes

    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, VARIANTS)
    for block in model.modules():
        if isinstance(block, Block):
            block.compile()

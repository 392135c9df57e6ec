"""One modality's way into the encoder: class and register tokens, positions.

Shapes: B batch, N tokens, P prefix (class, registers), K kept tokens, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mbt_core.config import BackboneConfig
from mbt_core.modality.tokens import Tokenizer, Tokens


class Stream(nn.Module):
    """Tokenizer, class and register tokens, and learned positions of one modality instance.

    Args:
        tokenizer: its `grid` fixes the number of positions.
        backbone: width, registers, whether prefix tokens have positions, norm before the blocks.
        class_token: whether the stream has one (pool ``cls``).
        patch_drop: share of the tokens that training leaves out, in [0, 1).
    """

    def __init__(
        self, tokenizer: Tokenizer, backbone: BackboneConfig, class_token: bool, patch_drop: float = 0.0
    ) -> None:
        super().__init__()
        self.tokenizer, self.patch_drop = tokenizer, patch_drop
        dim = backbone.dim
        self.prefix = int(class_token) + backbone.registers
        self.embed_prefix = backbone.embed_prefix
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, backbone.registers, dim)) if backbone.registers else None
        slots = math.prod(tokenizer.grid) + (self.prefix if self.embed_prefix else 0)
        self.pos_embed = nn.Parameter(torch.empty(1, slots, dim))
        self.norm_pre = nn.LayerNorm(dim, eps=backbone.eps) if backbone.pre_norm else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Class tokens zero, positions N(0, 0.02), as the reference; registers N(0, 0.02)."""
        nn.init.normal_(self.pos_embed, std=0.02)
        if self.reg_token is not None:
            nn.init.normal_(self.reg_token, std=0.02)

    @property
    def grid(self) -> tuple[int, ...]:
        return self.tokenizer.grid

    def forward(self, tokens: Tokens) -> Tokens:
        """Tokens [B, N, D] -> [B, P + N, D] with prefix and positions; the mask grows with it.

        In training N becomes `kept_tokens`.
        """
        x_BND, mask_BN = tokens
        if mask_BN is not None:  # padding may hold anything, not-a-numbers too
            x_BND = torch.where(mask_BN[..., None], x_BND, 0)
        B, N, _ = x_BND.shape
        capacity = math.prod(self.grid)
        if capacity < N or (len(self.grid) > 1 and capacity > N):
            raise ValueError(f"got {N} tokens, the grid {self.grid} holds {capacity}")
        slots = self.prefix if self.embed_prefix else 0
        x_BND = x_BND + self.pos_embed[:, slots : slots + N]
        if self.training and self.patch_drop:
            x_BND, mask_BN = keep_some(x_BND, mask_BN, kept_tokens(N, self.patch_drop))
        given: list[Tensor] = [p for p in (self.cls_token, self.reg_token) if p is not None]
        if given:
            prefix_1PD = torch.cat(given, 1)
            if slots:
                prefix_1PD = prefix_1PD + self.pos_embed[:, :slots]
            x_BND = torch.cat((prefix_1PD.expand(B, -1, -1), x_BND), 1)
        if mask_BN is not None and self.prefix:
            mask_BN = torch.cat((mask_BN.new_ones(B, self.prefix), mask_BN), 1)
        return Tokens(self.norm_pre(x_BND), mask_BN)


def kept_tokens(count: int, drop: float) -> int:
    """How many of `count` tokens stay if the share `drop` is left out; at least one."""
    return max(1, round(count * (1 - drop)))


def keep_some(x_BND: Tensor, mask_BN: Tensor | None, kept: int) -> tuple[Tensor, Tensor | None]:
    """Each example's own random choice of `kept` tokens [B, K, D], in their order; padding is left out first."""
    rank_BN = torch.rand(x_BND.shape[:2], device=x_BND.device)
    if mask_BN is not None:
        rank_BN = rank_BN + ~mask_BN
    index_BK = rank_BN.argsort(1)[:, :kept].sort(1).values
    x_BKD = x_BND.gather(1, index_BK[..., None].expand(-1, -1, x_BND.shape[2]))
    return x_BKD, None if mask_BN is None else mask_BN.gather(1, index_BK)

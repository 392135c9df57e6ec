"""One modality's way into the encoder: class and register tokens, positions.

Shapes: B batch, N tokens, P prefix (class, registers), D width.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from mbt_core.config import BackboneConfig
from mbt_core.tokens import Tokenizer, Tokens


class Stream(nn.Module):
    """Tokenizer, class and register tokens, and learned positions of one modality instance.

    Args:
        tokenizer: its `grid` fixes the number of positions.
        backbone: width, registers, whether prefix tokens have positions, norm before the blocks.
        class_token: whether the stream has one (pool ``cls``).
    """

    def __init__(self, tokenizer: Tokenizer, backbone: BackboneConfig, class_token: bool) -> None:
        super().__init__()
        self.tokenizer = tokenizer
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
        """Tokens [B, N, D] -> [B, P + N, D] with prefix and positions; the mask grows with it."""
        x_BND, mask_BN = tokens
        if mask_BN is not None:  # padding may hold anything, not-a-numbers too
            x_BND = torch.where(mask_BN[..., None], x_BND, 0)
        B, N, _ = x_BND.shape
        capacity = math.prod(self.grid)
        if capacity < N or (len(self.grid) > 1 and capacity > N):
            raise ValueError(f"{N} tokens came, the grid {self.grid} holds {capacity}")
        given = (self.cls_token, self.reg_token)
        prefix = [p.expand(B, -1, -1) for p in given if p is not None]
        if self.embed_prefix:
            x_BND = torch.cat((*prefix, x_BND), 1) if prefix else x_BND
            x_BND = x_BND + self.pos_embed[:, : x_BND.shape[1]]
        else:
            x_BND = x_BND + self.pos_embed[:, :N]
            x_BND = torch.cat((*prefix, x_BND), 1) if prefix else x_BND
        if mask_BN is not None and self.prefix:
            mask_BN = torch.cat((mask_BN.new_ones(B, self.prefix), mask_BN), 1)
        return Tokens(self.norm_pre(x_BND), mask_BN)

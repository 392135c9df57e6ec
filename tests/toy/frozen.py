"""A modality whose tokenizer has parts that are not to be trained, as a pretrained backbone in a plugin has.

Shapes: B batch, C channels, S samples, D width.
"""

from typing import Any

from torch import Tensor, nn

from mbt_core import PatchTokenizer, Tokens
from toy.modalities import Alpha


class Frozen(Alpha):
    kind = "frozen"

    def tokenizer(self, dim: int) -> PatchTokenizer:
        return Pretrained(self.config, dim)


class Pretrained(PatchTokenizer):
    """Frozen layers with statistics and dropout, a norm that keeps its statistics and learns its scale, and patches."""

    def __init__(self, config: Any, dim: int) -> None:
        super().__init__(config.channels, (config.samples,), (config.patch,), dim)
        channels = config.channels
        conv = nn.Conv1d(channels, channels, 3, padding=1)
        self.backbone = nn.Sequential(conv, nn.BatchNorm1d(channels), nn.Dropout(0.5)).requires_grad_(False)
        self.still = nn.BatchNorm1d(channels).eval()
        self.moving = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tokens:
        return super().forward(self.moving(self.still(self.backbone(x))), mask)

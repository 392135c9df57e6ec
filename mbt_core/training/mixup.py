"""Mixup of embedded tokens with the reversed batch (arXiv 1710.09412; partner and weights as in the reference).

For a linear patch embedding, mixing tokens before class token and positions equals mixing the inputs. Behind a
convolutional stem it does not: there the embeddings are mixed (manifold mixup, arXiv 1806.05236). For other kinds
(text) it is the only way that is defined.

Shapes: B batch, N tokens, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mbt_core.modality.tokens import Tokens


@dataclass(frozen=True)
class Mixup:
    """The drawn weights of one batch: w * own + (1 - w) * partner's, the partner being the reversed batch.

    Args:
        weights: modality -> w; all equal unless mixed per modality. ``""`` -> that of the fused logits' targets.
    """

    weights: Mapping[str, float]

    @classmethod
    def draw(cls, rng: np.random.Generator, alpha: float, names: list[str], per_modality: bool) -> Mixup:
        """One w ~ Beta(alpha, alpha) for the batch, or one for each modality."""
        if per_modality:
            return cls({name: float(rng.beta(alpha, alpha)) for name in names})
        w = float(rng.beta(alpha, alpha))
        return cls(dict.fromkeys([*names, ""], w))

    def own_weight(self, name: str, present_B: Tensor | None) -> float | Tensor:
        """w of modality `name`; 1, for a sample whose partner lacks it: it stays unmixed. Float or [B]."""
        w = self.weights[name]
        return w if present_B is None else torch.where(present_B.flip(0), w, 1.0)

    def tokens(self, tokens: dict[str, Tokens], present: Mapping[str, Tensor] | None) -> dict[str, Tokens]:
        """Mixes every modality's tokens [B, N, D]."""
        return {n: self._mix(t, self.own_weight(n, None if present is None else present[n])) for n, t in tokens.items()}

    @staticmethod
    def _mix(tokens: Tokens, w: float | Tensor) -> Tokens:
        x, mask = tokens
        # a number stays one: as a tensor it would have to be copied to the device, which waits for it
        mixed_B1 = (w < 1)[:, None] if isinstance(w, Tensor) else w < 1
        w = w[:, None, None].to(x.dtype) if isinstance(w, Tensor) else w
        if mask is None:
            return Tokens(w * x + (1 - w) * x.flip(0))
        x = torch.where(mask[..., None], x, 0)  # padding must add nothing to the partner's tokens
        return Tokens(w * x + (1 - w) * x.flip(0), mask | (mask.flip(0) & mixed_B1))

    def targets(
        self, targets: Mapping[str, Tensor], names: list[str], present: Mapping[str, Tensor] | None
    ) -> dict[str, dict[str, Tensor]]:
        """Task -> [B, C] becomes modality (and ``""``) -> task -> [B, C], each mixed by its own weight."""
        mixed = {}
        if present is not None:  # the fused label is mixed only with that of a partner something was mixed with
            shared_B = torch.stack([present[n] & present[n].flip(0) for n in names]).any(0)
            present = {**present, "": shared_B}
        for name in [n for n in (*names, "") if n in self.weights]:
            w = self.own_weight(name, None if present is None else present[name])
            w = w[:, None] if isinstance(w, Tensor) else w
            mixed[name] = {task: w * y + (1 - w) * y.flip(0) for task, y in targets.items()}
        return mixed

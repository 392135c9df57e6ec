"""From streams to logits: final norm, pooling, classifiers, average over the present modalities.

Shapes: B batch, N tokens of a stream with its prefix, P prefix, D width, C classes of a task.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mbt_core.config import BackboneConfig, HeadConfig
from mbt_core.config.schema import Scale
from mbt_core.model.fusion.base import Masks, Presence, Streams

SHARED = "_shared"


class Regressor(nn.Linear):
    """A linear layer that answers in the units of the numbers it learns, while what it learns is near 0 and of size 1.

    The configuration keeps the scale: it is no weight, and there is none in a state.

    Args:
        width: of its input.
        outputs: C.
        scale: mean and deviation of each number.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, outputs: int, scale: Scale) -> None:
        super().__init__(width, outputs)
        self.register_buffer("mean", torch.tensor(scale.mean), persistent=False)
        self.register_buffer("std", torch.tensor(scale.std), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.std + self.mean


class HeadOutput(NamedTuple):
    """All by task, and by modality where it has its own.

    Args:
        logits: task -> [B, C], mean over present modalities; zeros where none is present.
        modality_logits: name -> task -> [B, C]; empty for pool ``mean-joint``.
        tokens: name -> [B, N, D] after the final norm.
        embedding: [B, R] what the classifier sees (mean over present modalities).
        modality_embeddings: name -> [B, R]; empty for pool ``mean-joint``.
    """

    logits: dict[str, Tensor]
    modality_logits: dict[str, dict[str, Tensor]]
    tokens: dict[str, Tensor]
    embedding: Tensor
    modality_embeddings: dict[str, Tensor]


class Head(nn.Module):
    """Final norm, pooling, optional tanh representation, one linear classifier a task.

    Args:
        config: tasks and what is shared.
        backbone: width, epsilon.
        pool: ``cls``, ``mean`` (over a stream's own tokens) or ``mean-joint`` (over all tokens of all streams).
        names: the modalities the model is built with.
    """

    def __init__(self, config: HeadConfig, backbone: BackboneConfig, pool: str, names: list[str]) -> None:
        super().__init__()
        self.pool, self.shared = pool, config.shared
        keys = [SHARED] if config.shared else names
        width = config.representation or backbone.dim
        self.norms = nn.ModuleDict({key: nn.LayerNorm(backbone.dim, eps=backbone.eps) for key in keys})
        self.representations = nn.ModuleDict()
        if config.representation:
            self.representations.update({key: nn.Linear(backbone.dim, width) for key in keys})
        self.classifiers = nn.ModuleDict(
            {key: nn.ModuleDict({task: _classifier(config, task, width) for task in config.outputs}) for key in keys}
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Classifiers start at zero, the representation LeCun normal, as the reference."""
        for module in self.representations.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5 / 0.87962566)
                nn.init.zeros_(module.bias)
        for module in self.classifiers.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, streams: Streams, masks: Masks, present: Presence, prefix: int) -> HeadOutput:
        """streams: name -> [B, N, D]; masks: bool [B, N] or None; present: bool [B] or None; prefix: P."""
        tokens = {name: self.norms[self._key(name)](x) for name, x in streams.items()}
        if self.pool == "mean-joint":
            embedding = self._represent(SHARED, _joint_mean(tokens, masks, present, prefix))
            if present is not None:
                present = {SHARED: torch.stack([present[name] for name in tokens]).any(0)}
            logits = {task: average({SHARED: x}, present) for task, x in self._classify(SHARED, embedding).items()}
            return HeadOutput(logits, {}, tokens, average({SHARED: embedding}, present), {})
        pooled = {name: self._pool(x, masks[name], prefix) for name, x in tokens.items()}
        embeddings = {name: self._represent(self._key(name), x) for name, x in pooled.items()}
        by_name = {name: self._classify(self._key(name), x) for name, x in embeddings.items()}
        tasks = next(iter(by_name.values()))
        logits = {task: average({n: out[task] for n, out in by_name.items()}, present) for task in tasks}
        return HeadOutput(logits, by_name, tokens, average(embeddings, present), embeddings)

    def _key(self, name: str) -> str:
        return SHARED if self.shared else name

    def _pool(self, x_BND: Tensor, mask_BN: Tensor | None, prefix: int) -> Tensor:
        if self.pool == "cls":
            return x_BND[:, 0]
        total, count = _masked_sum(x_BND[:, prefix:], None if mask_BN is None else mask_BN[:, prefix:])
        return total / count.clamp(min=1)

    def _represent(self, key: str, x_BD: Tensor) -> Tensor:
        return self.representations[key](x_BD).tanh() if key in self.representations else x_BD

    def _classify(self, key: str, x_BR: Tensor) -> dict[str, Tensor]:
        # never in bf16: of logits rounded to 8 bits many are equal, and metrics that rank them lose
        layers: Any = self.classifiers[key]
        with nullcontext() if x_BR.is_meta else torch.autocast(x_BR.device.type, enabled=False):
            return {task: layer(x_BR.to(layer.weight.dtype)) for task, layer in layers.items()}


def _classifier(config: HeadConfig, task: str, width: int) -> nn.Linear:
    outputs, scale = config.outputs[task], config.scale_of(task)
    return nn.Linear(width, outputs) if scale is None else Regressor(width, outputs, scale)


def average(by_name: dict[str, Tensor], present: Presence) -> Tensor:
    """Mean over the modalities present in each sample of [B, C]; zeros where none is."""
    stacked = torch.stack(list(by_name.values()))
    if present is None:
        return stacked.mean(0)
    here = torch.stack([present[name] for name in by_name])[:, :, None]
    return torch.where(here, stacked, 0).sum(0) / here.sum(0).clamp(min=1)


def _masked_sum(x_BND: Tensor, mask_BN: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sum over real tokens [B, D] and their number, int64 [B, 1]."""
    if mask_BN is None:
        return x_BND.sum(1), torch.full((x_BND.shape[0], 1), x_BND.shape[1], device=x_BND.device)
    return torch.where(mask_BN[..., None], x_BND, 0).sum(1), mask_BN.sum(1, keepdim=True)


def _joint_mean(tokens: Streams, masks: Masks, present: Presence, prefix: int) -> Tensor:
    totals, counts = [], []
    for name, x in tokens.items():
        mask = masks[name]
        total, count = _masked_sum(x[:, prefix:], None if mask is None else mask[:, prefix:])
        if present is not None:
            here = present[name][:, None]
            total, count = torch.where(here, total, 0), torch.where(here, count, 0)
        totals.append(total)
        counts.append(count)
    return torch.stack(totals).sum(0) / torch.stack(counts).sum(0).clamp(min=1)

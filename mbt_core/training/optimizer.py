"""Optimiser, its parameter groups, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from mbt_core.config import TrainConfig
from mbt_core.distributed.sharding import is_sharded
from mbt_core.errors import ConfigError
from mbt_core.modality.tokens import Tokenizer
from mbt_core.model import MBT
from mbt_core.model.block import Block
from mbt_core.model.fusion.base import Fusion

NO_DECAY = ("cls_token", "reg_token", "pos_embed", "bottlenecks")
MODALITY_AT = {"streams": 1, "blocks": 1, "head": 2}
"""First part of a parameter's name -> which part names its modality."""


def lr_factor(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up over ``warmup * steps`` updates times cosine to zero over the rest.

    min(1, s / w) * (1 + cos(pi * max(0, s - w) / (steps - w))) / 2 with s completed steps, as the reference: the first
    update has a rate of 0 if there is a warm-up.
    """
    ramp = round(warmup * steps)
    rise = min(1.0, step / ramp) if ramp else 1.0
    return rise * 0.5 * (1 + math.cos(math.pi * max(0, step - ramp) / max(1, steps - ramp)))


def freeze(model: MBT, config: TrainConfig) -> None:
    """Sets `requires_grad` by ``train.tune`` and ``train.freeze``; what a plugin has frozen itself stays so.

    Raises:
        ConfigError: for a pattern that matches no parameter, or if nothing is left to train.
    """
    if config.tune == "auto":
        raise ConfigError(
            "train.tune is still 'auto': it is chosen when a training begins; set it to all, fused or head"
        )
    first = model.config.fusion.first
    for name, parameter in model.named_parameters():
        above = is_above(name, first) if config.tune == "fused" else name.startswith("head.")
        trained = config.tune == "all" or (above and not (config.tune == "head" and name.startswith("head.norms.")))
        parameter.requires_grad_(trained and name not in model.never_trained)
    names = [name for name, _ in model.named_parameters()]
    for pattern in config.freeze:
        matched = [name for name in names if fnmatch(name, pattern)]
        if not matched:
            raise ConfigError(
                f"train.freeze: {pattern!r} matches no parameter; names look like {names[0]!r}, {names[-1]!r}"
            )
        for name in matched:
            model.get_parameter(name).requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError("train.freeze: nothing is left to train")


def set_training(model: nn.Module) -> None:
    """Training mode, but for what is not trained: it draws nothing, its statistics stay, as when its result is kept.

    That is blocks, and in tokenizers and the fusion strategy every module with parameters none of which is trained.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, Block):
            _rest(module, whole=True)
        elif isinstance(module, Tokenizer | Fusion):
            _rest(module)


def _rest(module: nn.Module, whole: bool = False) -> None:
    """Evaluation mode for a module in which nothing is trained; else, unless it counts as a `whole`, for such parts."""
    parameters = list(module.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        module.eval()
    elif not whole:
        for child in module.children():
            _rest(child)


def is_above(name: str, layer: int) -> bool:
    """Whether a parameter belongs to the fusion, the head, or a block from `layer` on."""
    parts = name.split(".")
    return parts[0] in ("fusion", "head") or (parts[0] == "blocks" and int(parts[2]) >= layer)


def make_optimizer(model: MBT, config: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """SGD with momentum (not Nesterov) or AdamW over `parameter_groups`. Each group's ``scale`` multiplies the rate."""
    groups = parameter_groups(model, config)
    fused = device.type in ("cpu", "cuda") and not is_sharded(model)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)


def parameter_groups(model: MBT, config: TrainConfig) -> list[dict[str, Any]]:
    """Trained parameters by (learning-rate scale, weight decay).

    Biases, norms and learned tokens are not decayed. The scale is ``layer_decay`` to the power of the layers above,
    times the factor of the modality a parameter belongs to, and of the head.
    """
    depth = model.backbone.depth
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        parts = name.split(".")
        layer = {"streams": 0, "blocks": 1}.get(parts[0], depth + 1)
        if parts[0] == "blocks":
            layer += int(parts[2])
        scale = config.layer_decay ** (depth + 1 - layer)
        scale *= config.head_lr_factor if parts[0] == "head" else 1.0
        if parts[0] in MODALITY_AT:
            scale *= config.lr_factors.get(parts[MODALITY_AT[parts[0]]], 1.0)
        decay = 0.0 if parameter.ndim <= 1 or parts[-1] in NO_DECAY else config.weight_decay
        groups.setdefault((scale, decay), []).append(parameter)
    return [
        {"params": parameters, "scale": scale, "weight_decay": decay} for (scale, decay), parameters in groups.items()
    ]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets every group's rate to `lr` times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]


def named_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterable[tuple[str, nn.Parameter]]:
    """(name, parameter) of everything the optimiser trains."""
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [(name, p) for name, p in model.named_parameters() if id(p) in trained]

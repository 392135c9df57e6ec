"""Image ViTs under timm's keys: of its hub, a folder that the hub publishes, or a file."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
import torch
from huggingface_hub import constants
from timm.models import get_pretrained_cfg
from torch import Tensor

from mbt_core.errors import ConfigError, DataError, MBTError
from mbt_core.io.files import read_safetensors
from mbt_core.modality.patch_weights import VitWeights
from mbt_core.model.backbone import resolve_backbone
from mbt_core.pretrained.files import looks_like
from mbt_core.pretrained.names import listed

_NEEDED = ("patch_embed.proj.weight", "pos_embed", "blocks.0.norm1.weight")
_KNOWN = ("patch_embed.proj.", "pos_embed", "cls_token", "reg_token", "blocks.", "norm.", "norm_pre.")
_UNUSED = ("head.", "fc_norm.", "pre_logits.", "attn_pool.", "mask_token")
_WRAPPERS = ("model", "state_dict", "model_ema")


def from_hub(name: str) -> VitWeights:
    """The weights that timm's hub has for `name`, ``MODEL`` or ``MODEL.TAG``.

    Raises:
        ConfigError: for a model that is no ViT or has no weights.
        MBTError: they cannot be fetched.
    """
    resolve_backbone(name)
    config = get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise ConfigError(f"model.pretrained: timm has no weights for {name!r}; give a file: {name}@FILE")
    try:
        with _cache_if_unreachable() as unreachable:
            vit = timm.create_model(name, pretrained=True)
    except Exception as error:  # whatever the hub's client raises for want of network, space or permission
        reason = unreachable or " ".join(str(error).split())[:300] or type(error).__name__
        raise MBTError(
            f"model.pretrained: the weights of {name!r} could not be fetched: {reason}. Fetch them elsewhere and "
            f"give the file: model.pretrained={name}@FILE"
        ) from error
    return _known(vit.state_dict(), name, name)


@contextmanager
def _cache_if_unreachable() -> Iterator[str]:
    """Where the hub's host has no address, its client would retry for a minute: it gets only what it has in its cache.

    Yields why, or an empty string.
    """
    host, before = urlsplit(constants.ENDPOINT).hostname, constants.HF_HUB_OFFLINE
    reason = ""
    if not getproxies():
        try:
            socket.getaddrinfo(host, None)
        except OSError:
            reason = f"{host} cannot be reached, and they are not in its cache"
    constants.HF_HUB_OFFLINE = before or bool(reason)
    try:
        yield reason
    finally:
        constants.HF_HUB_OFFLINE = before


def from_folder(path: Path, content: Mapping[str, Any]) -> VitWeights:
    """A folder as timm's hub publishes it; `content` is its ``config.json``."""
    config = content.get("pretrained_cfg") or {}
    mean, std = config.get("mean"), config.get("std")
    return _known(read_safetensors(path / "model.safetensors"), content["architecture"], str(path), mean, std)


def from_file(path: Path, architecture: str) -> VitWeights:
    """A file with timm's keys; `architecture` is the timm model it is of, or ``""`` if nobody knows.

    Raises:
        DataError: the file is damaged, holds pickled objects or no ViT.
    """
    kind = looks_like(path)
    if kind == "a safetensors file":
        state = read_safetensors(path)
    elif kind in ("a torch file (.pth)", "a Python pickle"):
        state = _read_torch(path)
    else:
        raise DataError(f"{path}: {kind or 'unknown content'}, where weights with timm's keys are expected")
    return _known(state, architecture, str(path)) if architecture else vit_weights(state, str(path))


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file torch says what it likes
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: damaged, or not weights alone (objects are never unpickled): {reason}") from None
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise DataError(f"{path}: expected a dictionary of tensors, as timm's files are")
    return content


def _known(
    state: Mapping[str, Tensor],
    architecture: str,
    source: str,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> VitWeights:
    """A ViT of a known architecture: its heads, activation and, if not given, normalisation."""
    geometry, config = resolve_backbone(architecture), get_pretrained_cfg(architecture)
    if config is not None and mean is None:
        mean, std = config.mean, config.std
    vit = vit_weights(state, source, mean, std, heads=geometry.heads, act=geometry.act, eps=geometry.eps)
    return replace(vit, architecture=architecture)


def vit_weights(
    state: Mapping[str, Tensor],
    source: str,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    heads: int | None = None,
    act: str | None = None,
    eps: float | None = None,
) -> VitWeights:
    """The common form of an image ViT's state, in float32. Image ViTs are square, so is their grid.

    Raises:
        DataError: the state is not that of a ViT, or its positions are of no square image.
    """
    unknown = [key for key in state if not key.startswith(_KNOWN + _UNUSED)]
    absent = [key for key in _NEEDED if key not in state]
    if problems := listed(absent, unknown):
        raise DataError(f"{source}: no VisionTransformer of timm: {problems}")
    kept = {key: value.float() for key, value in state.items() if key.startswith(_KNOWN)}
    for name in ("weight", "bias"):
        # models that pool by the mean have their norm after it, under another name
        if f"norm.{name}" not in kept and f"fc_norm.{name}" in state:
            kept[f"norm.{name}"] = state[f"fc_norm.{name}"].float()
    if kept["pos_embed"].ndim != 3:
        raise DataError(f"{source}: pos_embed is {list(kept['pos_embed'].shape)}, expected [1, N, D]")
    slots = kept["pos_embed"].shape[1]
    tokens = (kept["cls_token"].shape[1] if "cls_token" in kept else 0) + (
        kept["reg_token"].shape[1] if "reg_token" in kept else 0
    )
    for prefix in (tokens, 0):
        side = math.isqrt(max(slots - prefix, 0))
        if side and side**2 == slots - prefix:
            return VitWeights(kept, (side, side), prefix, mean, std, heads, act, eps, source=source)
    raise DataError(f"{source}: {slots} position embeddings, {tokens} for class and registers, are of no square image")

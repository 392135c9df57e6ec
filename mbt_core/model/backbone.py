"""The geometry of a timm VisionTransformer, by its name."""

from __future__ import annotations

from functools import lru_cache

import torch
from timm import create_model, is_model, list_models
from timm.layers import GELUTanh, LayerScale, Mlp, QuickGELU
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import nn

from mbt_core.config import BackboneConfig
from mbt_core.errors import ConfigError, nearest


def resolve_backbone(backbone: str | BackboneConfig) -> BackboneConfig:
    """The geometry that `backbone` names, or itself.

    Raises:
        ConfigError: for an unknown name (with the nearest known one), or a timm model of another kind.
    """
    if backbone == "auto":
        raise ConfigError(
            "model.backbone is still 'auto': a training takes the geometry of the weights in model.pretrained; without "
            "weights, and elsewhere, set model.backbone to a timm name or a geometry"
        )
    return backbone if isinstance(backbone, BackboneConfig) else _of_timm(backbone)


@lru_cache(maxsize=8)
def _of_timm(name: str) -> BackboneConfig:
    architecture = name.partition(".")[0]
    if not is_model(architecture):
        hint = nearest(architecture, list_models("*vit*"))
        raise ConfigError(f"model.backbone: timm knows no model {name!r}.{hint}")
    with torch.device("meta"):
        vit = create_model(architecture, pretrained=False)
    if type(vit) is not VisionTransformer:
        raise ConfigError(f"model.backbone: {name!r} is a {type(vit).__name__}; expected a timm VisionTransformer")
    return geometry(vit, name)


def geometry(vit: VisionTransformer, name: str) -> BackboneConfig:
    """Reads the geometry off a timm VisionTransformer. Raises `ConfigError` for blocks we do not have."""
    block = vit.blocks[0]
    activation = getattr(getattr(block, "mlp", None), "act", None)
    names = {nn.GELU: "gelu", GELUTanh: "gelu_tanh", QuickGELU: "quick_gelu", nn.SiLU: "silu", nn.ReLU: "relu"}
    act = names.get(type(activation))
    if act == "gelu" and activation.approximate == "tanh":  # type: ignore[union-attr]
        act = "gelu_tanh"
    plain = act is not None and [type(m) for m in (block, block.attn, block.mlp)] == [Block, Attention, Mlp]
    inner = plain and [type(m) for m in (block.attn.norm, block.mlp.norm)]
    if inner != [nn.Identity, nn.Identity] or not isinstance(block.norm1, nn.LayerNorm):
        raise ConfigError(
            f"model.backbone: {name!r} has blocks of another form; expected timm's pre-norm Block with layer norms, "
            "plain attention and a two-layer MLP"
        )
    return BackboneConfig(
        dim=vit.embed_dim,
        depth=len(vit.blocks),
        heads=block.attn.num_heads,
        mlp=block.mlp.fc1.out_features,
        act=act,
        eps=block.norm1.eps,
        qkv_bias=block.attn.qkv.bias is not None,
        qk_norm=not isinstance(block.attn.q_norm, nn.Identity),
        # the value is only where training starts from; timm's DINOv2 and DeiT-3 use 1e-5 and 1e-6
        layer_scale=1e-5 if isinstance(block.ls1, LayerScale) else None,
        registers=vit.num_reg_tokens,
        embed_prefix=not vit.no_embed_class,
        pre_norm=not isinstance(vit.norm_pre, nn.Identity),
    )

"""What a model leaves to the weights it starts from: the geometry of its blocks, its pool, its inputs' patches."""

from __future__ import annotations

from typing import TypeVar

from mbt_core.config import BackboneConfig, Modalities, ModelConfig
from mbt_core.config.schema import ModalityConfig, PatchedConfig, Stem
from mbt_core.errors import ConfigError
from mbt_core.modality.patch_weights import VitWeights
from mbt_core.model.backbone import resolve_backbone
from mbt_core.plugins import registry
from mbt_core.pretrained.start import choose_weights

HEAD_WIDTH = 64
"""Of timm's ViTs, but for the next."""
OTHER_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}
"""Width -> heads of the families so400m, huge, giant and gigantic."""
ModelT = TypeVar("ModelT", bound=ModelConfig)
ConfigT = TypeVar("ConfigT", bound=ModalityConfig)


def follow_weights(model: ModelT, modalities: Modalities) -> tuple[ModelT, Modalities]:
    """Both with what follows from the weights in ``model.pretrained`` in place of ``auto``.

    That is ``backbone``, ``pool``, ``fusion.layer`` and fields of the modalities (`Modality.fit_weights`). What the
    weights do not tell of a modality stays ``auto``. Without weights only stems, fusion layer and pool are filled.

    Raises:
        ConfigError: there are no weights to take the backbone from, or they are of several geometries, or not of the
            model that their name says.
        DataError: a file is not what it should be.
    """
    weights: dict[str, VitWeights] = {}
    asks = "auto" in (model.backbone, model.pool) or any(config.auto_fields() for config in modalities.values())
    if asks and model.pretrained is not None:
        kinds = {name: registry().modality_class(config.kind)(name, config) for name, config in modalities.items()}
        weights, _ = choose_weights(kinds, model.pretrained, model.backbone)
    if model.backbone == "auto" and weights:
        model = model.model_copy(update={"backbone": _common(weights)})
    if model.pool == "auto" and weights and not any("cls_token" in vit.state for vit in weights.values()):
        model = model.model_copy(update={"pool": "mean"})
    filled = {
        name: _with_stem(registry().modality_class(config.kind).fit_weights(config, weights[name]), "patch")
        if name in weights
        else _with_stem(config, "conv")
        for name, config in modalities.items()
    }
    return model.of_depth(resolve_backbone(model.backbone).depth), filled


def with_stems(modalities: Modalities, pretrained: object) -> Modalities:
    """With the stems that `follow_weights` would fill, as far as they are known without opening the weights: a run's
    may be another."""
    stem: Stem = "conv" if pretrained is None else "patch"
    return {name: _with_stem(config, stem) for name, config in modalities.items()}


def _with_stem(config: ConfigT, stem: Stem) -> ConfigT:
    """With `stem` where ``auto`` is left."""
    asks = isinstance(config, PatchedConfig) and config.stem == "auto"
    return config.model_copy(update={"stem": stem}) if asks else config


def differences(one: BackboneConfig, other: BackboneConfig) -> str:
    """What two geometries differ in, in words."""
    ours, theirs = one.model_dump(), other.model_dump()
    return ", ".join(f"{key} {ours[key]} and {theirs[key]}" for key in ours if ours[key] != theirs[key])


def _common(weights: dict[str, VitWeights]) -> BackboneConfig:
    geometries = {name: backbone_of(vit) for name, vit in weights.items()}
    (first, wanted), *others = geometries.items()
    for name, other in others:
        if other != wanted:
            raise ConfigError(
                f"model.pretrained: {weights[first].source} and {weights[name].source} are of different models "
                f"({differences(wanted, other)}), and all streams have one geometry; give weights of one model"
            )
    return wanted


def backbone_of(vit: VitWeights, layer_scale: bool = True) -> BackboneConfig:
    """The geometry of a ViT's blocks, from its keys and shapes and what is known of it besides.

    Its number of heads is in no shape: it is that of the timm model it is said to be of, else of the family of its
    width, else one for each 64 numbers.

    Args:
        vit: the weights.
        layer_scale: whether blocks have LayerScale if the ViT's do, or have it folded in.

    Raises:
        ConfigError: it is not of the model that its name says, or its width is no multiple of its heads.
    """
    state = vit.state
    _check_architecture(vit)
    heads = vit.heads or OTHER_HEADS.get(vit.dim) or max(1, vit.dim // HEAD_WIDTH)
    if vit.dim % heads:
        raise ConfigError(
            f"model.pretrained: {vit.source} is {vit.dim} wide, which is no multiple of {heads} heads; if it is a "
            "model of timm, name it: NAME@FILE"
        )
    scaled = layer_scale and "blocks.0.ls1.gamma" in state
    known = {name: value for name, value in (("act", vit.act), ("eps", vit.eps)) if value is not None}
    return BackboneConfig.model_validate(
        {
            **{"dim": vit.dim, "depth": vit.depth, "heads": heads, **known},
            "mlp": state["blocks.0.mlp.fc1.weight"].shape[0],
            "qkv_bias": "blocks.0.attn.qkv.bias" in state,
            "qk_norm": "blocks.0.attn.q_norm.weight" in state,
            # where it is copied its first value is none; a stream that stays fresh begins with whole blocks
            "layer_scale": 1.0 if scaled else None,
            "registers": state["reg_token"].shape[1] if "reg_token" in state else 0,
            "embed_prefix": vit.prefix > 0,
            "pre_norm": "norm_pre.weight" in state,
        }
    )


def _check_architecture(vit: VitWeights) -> None:
    if not vit.architecture:
        return
    named = resolve_backbone(vit.architecture)
    if named.dim != vit.dim:
        raise ConfigError(
            f"model.pretrained: {vit.source} is said to be a {vit.architecture}, which is {named.dim} wide, but its "
            f"weights are {vit.dim} wide; name the timm model that they are of, NAME@FILE, or rename the file"
        )

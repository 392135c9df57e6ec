"""Fills a fresh model from its sources: tokenizers, tokens and positions, blocks, final norm, bottlenecks.

Classifiers and representations stay fresh.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mbt_core.config import BackboneConfig
from mbt_core.errors import ConfigError
from mbt_core.modality import Modality
from mbt_core.modality.conv_tokenizer import ConvTokenizer
from mbt_core.modality.patch_weights import VitWeights
from mbt_core.model import MBT
from mbt_core.model.fusion import JOINT
from mbt_core.model.head import SHARED
from mbt_core.model.stream import Stream
from mbt_core.pretrained.positions import bottleneck_positions, stream_tokens
from mbt_core.pretrained.report import InitReport
from mbt_core.pretrained.sources import IMAGE, Source, open_source

State = dict[str, Tensor]
Note = tuple[str, str]
"""Source, and what was done to it."""


def initialise(model: MBT, pretrained: str | Mapping[str, str | None] | None, reference: bool = False) -> InitReport:
    """Fills `model` from its sources, in place.

    Where several streams share blocks or the final norm, these come from the first stream that has a source.

    Args:
        model: a fresh one.
        pretrained: a source for all modalities, or one each; see `open_source`. An image ViT serves every modality;
            a stream of an MBT serves the modality of its name, else of its kind. A run for all leaves modalities
            without a counterpart fresh.
        reference: follow the reference's rules where they differ: positions are interpolated with aligned corners, on a
            grid guessed from the number of tokens; only the first modality's class token is filled.

    Raises:
        ConfigError: a source does not fit the model.
        DataError: a file is not what it should be.
    """
    if pretrained is None:
        return InitReport.of(model, {})
    vits, sources = choose_weights(model.modalities, pretrained, model.config.backbone)
    return fill(model, vits, sources, reference)


def choose_weights(
    modalities: Mapping[str, Modality], pretrained: str | Mapping[str, str | None], backbone: str | BackboneConfig
) -> tuple[dict[str, VitWeights], list[Source]]:
    """The weights that each modality's stream starts from, without those that stay fresh, and the sources of them.

    Args:
        modalities: of the model, in its order.
        pretrained: as for `initialise`.
        backbone: as for `open_source`.

    Raises:
        ConfigError, DataError: as `initialise`.
    """
    opened: dict[str, Source] = {}
    for given in [pretrained] if isinstance(pretrained, str) else pretrained.values():
        if given is not None and given not in opened:
            opened[given] = open_source(given, backbone)
    if isinstance(pretrained, str):
        vits = _choose_for_all(modalities, opened[pretrained])
    else:
        vits = {
            name: _choose(modalities[name], opened[given], only=True)
            for name, given in pretrained.items()
            if given is not None
        }
    return {name: vit for name in modalities if (vit := vits.get(name)) is not None}, list(opened.values())


def _choose_for_all(modalities: Mapping[str, Modality], source: Source) -> dict[str, VitWeights | None]:
    chosen = {name: _choose(m, source, only=False) for name, m in modalities.items()}
    if any(chosen.values()):
        return chosen
    return {name: _choose(m, source, only=True) for name, m in modalities.items()}


def _choose(modality: Modality, source: Source, only: bool) -> VitWeights | None:
    """The stream of `source` for a modality: an image ViT; else of its name; else the only one of its kind.

    With `only`, the only stream there is serves any modality, and none is an error.
    """
    streams = source.streams
    for name in (IMAGE, modality.name):
        if name in streams:
            return streams[name]
    alike = [vit for vit in streams.values() if vit.kind == modality.kind]
    if len(alike) == 1:
        return alike[0]
    if only and len(streams) == 1:
        return next(iter(streams.values()))
    if only:
        raise ConfigError(
            f"model.pretrained: {source.name} has the streams {', '.join(streams)}: none for {modality.name!r} of the "
            f"kind {modality.kind!r}"
        )
    return None


def fill(
    model: MBT, vits: Mapping[str, VitWeights], sources: Sequence[Source] = (), reference: bool = False
) -> InitReport:
    """Fills `model`'s streams from `vits`, by the names of its modalities, and its bottlenecks from `sources`."""
    state: State = {}
    notes: dict[str, Note] = {}
    for name, vit in vits.items():
        _check_geometry(model, vit)
        _fill_stream(model, name, vit, reference, state, notes)
        for key in {SHARED, JOINT, name} & set(model.blocks):
            if f"blocks.{key}" not in notes:
                _fill_blocks(model, key, vit, state, notes)
        key = name if name in model.head.norms else SHARED
        if f"head.norms.{key}" not in notes:
            state |= _of(vit, "norm", f"head.norms.{key}")
            notes[f"head.norms.{key}"] = (vit.source, "copied")
    if vits:
        _fill_bottlenecks(model, next(iter(vits.values())), sources, reference, state, notes)
    own = model.state_dict()
    wrong = [
        f"{k} is {list(v.shape)}, expected {list(own[k].shape)}" for k, v in state.items() if v.shape != own[k].shape
    ]
    if wrong:
        raise ConfigError(
            f"model.pretrained does not fit the model: {'; '.join(wrong[:5])}. Set model.backbone to the source's "
            "architecture"
        )
    model.load_state_dict(state, strict=False)
    return InitReport.of(model, notes)


def _check_geometry(model: MBT, vit: VitWeights) -> None:
    ours = model.backbone
    for what, came, expected in (
        ("width", vit.dim, ours.dim),
        ("number of heads", vit.heads or ours.heads, ours.heads),
        ("depth", min(vit.depth, ours.depth), ours.depth),
        ("norm before the blocks", "norm_pre.weight" in vit.state, ours.pre_norm),
    ):
        if came != expected:
            raise ConfigError(
                f"model.pretrained: {vit.source} has another {what} than the model: {came}, expected {expected}. Set "
                "model.backbone to the source's architecture"
            )


def _of(vit: VitWeights, prefix: str, target: str) -> State:
    """The source's norm `prefix` under `target`. Raises `ConfigError` if it is missing."""
    missing = [f"{prefix}.{key}" for key in ("weight", "bias") if f"{prefix}.{key}" not in vit.state]
    if missing:
        raise ConfigError(f"model.pretrained: {vit.source} has no {', '.join(missing)}")
    return {f"{target}.{key}": vit.state[f"{prefix}.{key}"] for key in ("weight", "bias")}


def _fill_stream(model: MBT, name: str, vit: VitWeights, reference: bool, state: State, notes: dict[str, Note]) -> None:
    stream, modality, prefix = cast(Stream, model.streams[name]), model.modalities[name], f"streams.{name}"
    own = stream.tokenizer.state_dict()
    if isinstance(stream.tokenizer, ConvTokenizer) and "patch_embed.proj.weight" in vit.state:
        raise ConfigError(
            f"modalities.{name}.stem: 'conv' has no patch embedding for the weights of {vit.source} "
            f"(model.pretrained); set modalities.{name}.stem=patch, or leave the pre-trained weights out"
        )
    if vit.tokenizer is not None:
        fits = {k: v.shape for k, v in vit.tokenizer.items()} == {k: v.shape for k, v in own.items()}
        tokenizer = dict(vit.tokenizer) if fits else {}
    else:
        tokenizer = modality.adapt(vit) if "patch_embed.proj.weight" in vit.state else {}
    state |= {f"{prefix}.tokenizer.{key}": value for key, value in tokenizer.items()}
    if tokenizer:
        notes[f"{prefix}.tokenizer"] = (vit.source, _kernel_note(vit, tokenizer, modality))
    tokens = stream_tokens(vit, stream, reference)
    if reference and len(model.modalities) > 1 and modality.card.foreign_keys.get("scenic_suffix") != "":
        tokens.pop("cls_token", None)  # the reference looks for another name than it gave
    grids = [" x ".join(map(str, grid)) for grid in (vit.grid, stream.grid)]
    for key, value in tokens.items():
        state[f"{prefix}.{key}"] = value
        changed = key == "pos_embed" and _still(vit.grid) != _still(stream.grid)
        notes[f"{prefix}.{key}"] = (vit.source, f"resampled from {grids[0]} to {grids[1]}" if changed else "copied")
    if isinstance(stream.norm_pre, nn.LayerNorm):
        state |= _of(vit, "norm_pre", f"{prefix}.norm_pre")
        notes[f"{prefix}.norm_pre"] = (vit.source, "copied")


def _still(axes: Sequence[int]) -> tuple[int, ...]:
    """Without a time axis of length 1."""
    return tuple(axes[1:] if len(axes) == 3 and axes[0] == 1 else axes)


def _kernel_note(vit: VitWeights, tokenizer: State, modality: Modality) -> str:
    if vit.tokenizer is not None:
        return "copied"
    done = []
    if vit.kernel.shape[1] != tokenizer["weight"].shape[1]:
        done.append(f"channels folded from {vit.kernel.shape[1]} to {tokenizer['weight'].shape[1]}")
    if _still(vit.kernel.shape[2:]) != _still(tokenizer["weight"].shape[2:]):
        old, new = (" x ".join(map(str, kernel.shape[2:])) for kernel in (vit.kernel, tokenizer["weight"]))
        done.append(f"kernel fitted from {old} to {new}")
    if modality.image_statistics is not None:
        known = vit.mean is not None and vit.std is not None
        if not known:
            done.append("its normalisation is unknown, taken for ours")
        elif [list(v) for v in (vit.mean, vit.std)] != [list(v) for v in modality.image_statistics]:  # type: ignore[arg-type]
            done.append("its normalisation folded in")
    return ", ".join(done) or "copied"


def _fill_blocks(model: MBT, key: str, vit: VitWeights, state: State, notes: dict[str, Note]) -> None:
    ours, done = model.backbone, []
    for layer, block in cast(nn.ModuleDict, model.blocks[key]).items():
        found, how = block_state(vit, int(layer), block)
        state |= {f"blocks.{key}.{layer}.{name}": value for name, value in found.items()}
        done += [how] if how and how not in done else []
    if vit.depth > ours.depth:
        done.insert(0, f"the first {ours.depth} of {vit.depth}")
    for what, theirs, value in (("activation", vit.act, ours.act), ("epsilon", vit.eps, ours.eps)):
        if theirs not in (None, value):
            done.append(f"{what} was {theirs}, is {value}")
    notes[f"blocks.{key}"] = (vit.source, ", ".join(done) or "copied")


def block_state(vit: VitWeights, layer: int, block: nn.Module) -> tuple[State, str]:
    """The state of one block out of the source's, and what was done to it.

    LayerScale is folded into the weights before it where `block` has none, and is 1 where the source has none; a query,
    key and value bias that the source lacks is 0. All are exact.

    Raises:
        ConfigError: naming what is missing or has no place.
    """
    prefix = f"blocks.{layer}."
    given = {key.removeprefix(prefix): value for key, value in vit.state.items() if key.startswith(prefix)}
    wanted, done = block.state_dict(), ""
    for scale, dense in (("ls1.gamma", "attn.proj"), ("ls2.gamma", "mlp.fc2")):
        if scale in given and scale not in wanted:
            gamma, done = given.pop(scale), "LayerScale folded in"
            given[f"{dense}.weight"] = given[f"{dense}.weight"] * gamma[:, None]
            given[f"{dense}.bias"] = given[f"{dense}.bias"] * gamma
        elif scale in wanted and scale not in given:
            given[scale], done = torch.ones_like(wanted[scale]), "LayerScale is 1"
    if "attn.qkv.bias" in wanted and "attn.qkv.bias" not in given:
        given["attn.qkv.bias"] = torch.zeros_like(wanted["attn.qkv.bias"])
    problems = [f"{prefix}{key} is missing" for key in wanted if key not in given]
    problems += [f"{prefix}{key} has no place" for key in given if key not in wanted]
    if problems:
        raise ConfigError(
            f"model.pretrained: the blocks of {vit.source} do not fit the model's: {'; '.join(problems[:5])}. Set "
            "model.backbone to the source's architecture"
        )
    return given, done


def _fill_bottlenecks(
    model: MBT, vit: VitWeights, sources: Sequence[Source], reference: bool, state: State, notes: dict[str, Note]
) -> None:
    own = dict(model.fusion.named_parameters()).get("bottlenecks")
    if own is None:
        return
    for source in sources:
        if source.bottlenecks is not None and source.bottlenecks.shape == own.shape:
            state["fusion.bottlenecks"] = source.bottlenecks
            notes["fusion.bottlenecks"] = (source.name, "copied")
            return
    if model.config.fusion.bottleneck_init == "positions":
        state["fusion.bottlenecks"] = bottleneck_positions(vit, own.shape[1], model.config.pool == "cls", reference)
        notes["fusion.bottlenecks"] = (vit.source, "from position embeddings")

"""What `model.pretrained` may name, told apart by what is there, and read into one form: a ViT's weights per stream."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from timm import is_model, list_models
from torch import Tensor, nn

from mbt_core.config import BackboneConfig
from mbt_core.errors import ConfigError, DataError, nearest
from mbt_core.io.files import read_json
from mbt_core.modality.patch_tokenizer import PatchTokenizer
from mbt_core.modality.patch_weights import VitWeights
from mbt_core.model import MBT
from mbt_core.model.fusion import JOINT
from mbt_core.model.head import SHARED
from mbt_core.model.stream import Stream
from mbt_core.pretrained import augreg, timm_weights
from mbt_core.pretrained.files import looks_like
from mbt_core.pretrained.names import Flat, vit_to_timm

IMAGE = ""
"""The stream of an image ViT, which serves every modality."""


@dataclass(frozen=True)
class Source:
    """Weights to start from.

    Args:
        name: as given, for messages.
        streams: of an MBT by the names of its modalities; an image ViT is the one stream `IMAGE`.
        bottlenecks: [1, Z, D] of an MBT that has some.
    """

    name: str
    streams: Mapping[str, VitWeights]
    bottlenecks: Tensor | None = None


def open_source(given: str, backbone: str | BackboneConfig) -> Source:
    """Reads a source.

    Args:
        given: one of

            - a timm name, whose weights are fetched from the hub (``vit_base_patch16_224.augreg_in21k``);
            - a file with timm's keys, ``.safetensors`` or ``.pth``, or ``NAME@FILE``: NAME, a timm model, tells the
              mean and deviation the weights want; without it the file's own name, if it begins with one, else
              `backbone`;
            - a folder that timm's hub publishes (``config.json``, ``model.safetensors``);
            - an AugReg ``.npz``;
            - a Scenic ViT or MBT checkpoint (of sizes other than the released ones: convert it first);
            - the folder of an earlier run.
        backbone: of the model that is to start from it.

    Raises:
        ConfigError: it is nothing of these.
        DataError: the file is damaged or of another model.
    """
    name, _, file = given.rpartition("@")
    if name and is_model(name.partition(".")[0]):
        if not Path(file).expanduser().is_file():
            raise ConfigError(f"model.pretrained: {given!r} is read as NAME@FILE, but there is no file {file!r}")
        return _image(given, timm_weights.from_file(Path(file).expanduser(), name))
    path = Path(given).expanduser()
    if path.is_dir():
        return _from_folder(given, path)
    if path.exists():
        return _from_file(given, path, backbone)
    if is_model(given.partition(".")[0]):
        return _image(given, timm_weights.from_hub(given))
    if os.sep in given or path.suffix in (".safetensors", ".pth", ".pt", ".npz"):
        raise ConfigError(f"model.pretrained: no such file or folder: {given}")
    hint = nearest(given, list_models("vit*"))
    raise ConfigError(f"model.pretrained: {given!r} is neither a file, nor a folder, nor a timm model.{hint}")


def _image(given: str, vit: VitWeights) -> Source:
    return Source(given, {IMAGE: vit})


def _from_folder(given: str, path: Path) -> Source:
    config = path / "config.json"
    content = read_json(config) if config.is_file() else {}
    if isinstance(content, dict) and "model" in content:
        return _of_mbt(given, MBT.from_pretrained(path))
    if isinstance(content, dict) and "architecture" in content:
        return _image(given, timm_weights.from_folder(path, content))
    if any(path.glob("checkpoint_*")):
        return _from_flax(given, path)
    raise DataError(
        f"model.pretrained: {given} holds no weights; expected a run (config.json and model.safetensors), a model of "
        "timm's hub (the same names) or checkpoints of Scenic (checkpoint_N)"
    )


def _from_file(given: str, path: Path, backbone: str | BackboneConfig) -> Source:
    kind = looks_like(path)
    if kind == "a numpy archive (.npz)":
        return _image(given, _of_flax(augreg.read_params(path), given))
    if kind is None:
        return _from_flax(given, path)
    architecture = path.name.partition(".")[0]
    if not is_model(architecture):
        architecture = backbone if isinstance(backbone, str) and backbone != "auto" else ""
    return _image(given, timm_weights.from_file(path, architecture))


def _from_flax(given: str, path: Path) -> Source:
    from mbt_core.pretrained.flax import read_params
    from mbt_core.pretrained.scenic import model_from_arrays

    flat = read_params(path)
    if _is_vit(flat):
        return _image(given, _of_flax(flat, given))
    return _of_mbt(given, model_from_arrays(flat, given)[1])


def _is_vit(flat: Flat) -> bool:
    """Whether these are an image ViT's arrays; an MBT has others, or a kernel with a time axis."""
    kernel, positions = flat.get("embedding/kernel"), flat.get("Transformer/posembed_input/pos_embedding")
    other = any(path.startswith(("embedding_", "bottleneck", "Transformer/posembed_input_")) for path in flat)
    if other or kernel is None or kernel.ndim != 4 or positions is None or positions.ndim != 3:
        return False
    return math.isqrt(positions.shape[1] - ("cls" in flat)) ** 2 == positions.shape[1] - ("cls" in flat)


def _of_flax(flat: Flat, given: str) -> VitWeights:
    """A ViT of AugReg or Scenic: both want pixels in [-1, 1] and have Flax's approximated GELU."""
    try:
        state = {key: torch.from_numpy(array) for key, array in vit_to_timm(flat).items()}
    except DataError as error:
        raise DataError(f"{given}: {error}") from None
    heads = next(array.shape[1] for path, array in flat.items() if path.endswith("/query/kernel"))
    half = (0.5, 0.5, 0.5)
    return timm_weights.vit_weights(state, given, mean=half, std=half, heads=heads, act="gelu_tanh", eps=1e-6)


def _of_mbt(given: str, model: MBT) -> Source:
    """Every stream of a model of ours with the blocks it runs through."""
    streams = {name: _stream(model, name, given) for name in model.modalities}
    bottlenecks = getattr(model.fusion, "bottlenecks", None)
    return Source(given, streams, None if bottlenecks is None else bottlenecks.detach())


def _stream(model: MBT, name: str, given: str) -> VitWeights:
    modality, geometry = model.modalities[name], model.backbone
    stream = cast(Stream, model.streams[name])
    state = {key: v for key, v in stream.state_dict().items() if not key.startswith("tokenizer.")}
    tokenizer = stream.tokenizer.state_dict()
    patches = isinstance(stream.tokenizer, PatchTokenizer)
    if patches:
        state |= {f"patch_embed.proj.{key}": value for key, value in tokenizer.items()}
    for layer in range(geometry.depth):
        block = next(layers[str(layer)] for layers in _layers(model, name) if str(layer) in layers)
        state |= {f"blocks.{layer}.{key}": value for key, value in block.state_dict().items()}
    norm = model.head.norms[name if name in model.head.norms else SHARED]
    state |= {f"norm.{key}": value for key, value in norm.state_dict().items()}
    mean, std = modality.image_statistics or (None, None)
    return VitWeights(
        state,
        stream.grid,
        stream.prefix if stream.embed_prefix else 0,
        mean,
        std,
        heads=geometry.heads,
        act=geometry.act,
        eps=geometry.eps,
        kind=modality.kind,
        tokenizer=None if patches else tokenizer,
        settings=modality.config,
        source=f"{given} ({name})",
    )


def _layers(model: MBT, name: str) -> list[nn.ModuleDict]:
    """The sets of blocks that modality `name` runs through."""
    return [cast(nn.ModuleDict, model.blocks[key]) for key in (name, SHARED, JOINT) if key in model.blocks]

"""The paper's ablations as axes, relative to the experiment they are laid on."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

from mbt_core.config import BackboneConfig, Experiment
from mbt_core.errors import ConfigError, unknown
from mbt_core.pretrained.follow import follow_weights, with_stems
from mbt_core.sweep.grid import MODALITIES, Axis, Point, as_yaml

LAYER = "model.fusion.layer"
MOST_LAYERS = 7
LARGER = {"vit_tiny": "vit_small", "vit_small": "vit_base", "vit_base": "vit_large"}
PRETRAINING = "augreg_in21k"
"""timm's tag of ViTs trained on ImageNet-21k as in the paper."""

Overrides = dict[str, Any]


def preset(name: str, experiment: Experiment) -> Axis:
    """A preset's axis.

    Raises:
        ConfigError: for an unknown one, or an experiment it cannot be laid on.
    """
    if name not in PRESETS:
        raise ConfigError(f"--preset: {unknown('preset', name, PRESETS)}")
    points = PRESETS[name](experiment)
    return Axis(name, tuple(Point(label, overrides) for label, overrides in points.items()))


def depth_of(experiment: Experiment) -> int:
    """Number of blocks; a timm name is looked up."""
    backbone = experiment.model.backbone
    if isinstance(backbone, BackboneConfig):
        return backbone.depth
    from mbt_core.model.backbone import resolve_backbone

    return resolve_backbone(backbone).depth


def _each(key: str, *values: Any) -> Callable[[Experiment], dict[str, Overrides]]:
    return lambda experiment: {as_yaml(value): {key: value} for value in values}


def _fusion_layer(experiment: Experiment) -> dict[str, Overrides]:
    """From early (0) to late (the depth), every second or further layer of deep models."""
    depth = depth_of(experiment)
    step = -(-depth // (MOST_LAYERS - 1))
    return {str(layer): {LAYER: layer} for layer in sorted({*range(0, depth + 1, step), depth})}


def _window(experiment: Experiment) -> dict[str, Overrides]:
    """A quarter, half, three quarters and all of every modality's window: 2, 4, 6 and 8 s of the paper's."""
    seconds = {name: getattr(config, "seconds", None) for name, config in experiment.modalities.items()}
    if open_ := [name for name, value in seconds.items() if value == "auto"]:
        raise ConfigError(
            f"--preset window: it takes shares of the windows' lengths; give modalities.{open_[0]}.seconds by --set"
        )
    known = {name: value for name, value in seconds.items() if isinstance(value, (int, float))}
    if not known:
        raise ConfigError("--preset window: no modality of this experiment has a window in seconds")
    longest = max(known.values())
    return {
        f"{longest * share:g} s": {f"modalities.{name}.seconds": value * share for name, value in known.items()}
        for share in (0.25, 0.5, 0.75, 1.0)
    }


def _mixup(experiment: Experiment) -> dict[str, Overrides]:
    alpha = experiment.train.mixup or 0.3
    on, each = "train.mixup", "train.mixup_per_modality"
    return {
        "off": {on: 0.0, each: False},
        "per batch": {on: alpha, each: False},
        "per modality": {on: alpha, each: True},
    }


def _init(experiment: Experiment) -> dict[str, Overrides]:
    """None; the experiment's own weights, else ImageNet-21k's; the next larger ViT's."""
    model = experiment.model
    if not isinstance(model.backbone, str):
        if model.pretrained is None:
            raise ConfigError(
                "--preset init: this backbone has no published weights; name a timm model, e.g. "
                "--set model.backbone=vit_tiny_patch16_224, or give weights by --set model.pretrained=SOURCE"
            )
        fresh = {"model.pretrained": None, **_stems(experiment)}
        return {"none": fresh, "given": {"model.pretrained": model.pretrained}}
    own = model.pretrained or f"{model.backbone.partition('.')[0]}.{PRETRAINING}"
    points: dict[str, Overrides] = {"none": {"model.pretrained": None, **_stems(experiment)}}
    points[own if isinstance(own, str) else "given"] = {"model.pretrained": own}
    family, _, rest = model.backbone.partition(".")[0].partition("_patch")
    if family in LARGER:
        name = f"{LARGER[family]}_patch{rest}"
        larger = experiment.model_copy(update={"model": model.model_copy(update={"backbone": name})})
        layer = round(model.fusion.first * depth_of(larger) / depth_of(experiment))
        points[name] = {"model.backbone": name, "model.pretrained": f"{name}.{PRETRAINING}", LAYER: layer}
    return points


def _stems(experiment: Experiment) -> Overrides:
    """Those that the weights come to where they are ``auto``: a fresh start is to be the same model."""
    model, modalities = experiment.model, experiment.modalities
    auto = [name for name, config in modalities.items() if getattr(config, "stem", None) == "auto"]
    if auto and model.pretrained is not None:
        modalities = follow_weights(model, modalities)[1]
    filled: Any = with_stems(modalities, PRETRAINING)  # weights that are named after the backbone are those of a ViT
    return {f"modalities.{name}.stem": filled[name].stem for name in auto}


def _modalities(experiment: Experiment) -> dict[str, Overrides]:
    """Every subset, a single one first."""
    named = {n: n if n == c.kind else f"{n}={c.kind}" for n, c in experiment.modalities.items()}
    subsets = [subset for size in range(1, len(named) + 1) for subset in combinations(named, size)]
    return {"+".join(subset): {MODALITIES: [named[name] for name in subset]} for subset in subsets}


PRESETS: dict[str, Callable[[Experiment], dict[str, Overrides]]] = {
    "fusion-layer": _fusion_layer,
    "bottlenecks": _each("model.fusion.bottlenecks", 4, 36, 64, 256, 1024),
    "update": _each("model.fusion.strategy", "bottleneck", "bottleneck-sequential"),
    "shared": _each("model.shared_encoder", False, True),
    "window": _window,
    "sync": _each("data.sync", True, False),
    "mixup": _mixup,
    "dataset-size": _each("data.fraction", 0.125, 0.25, 0.5, 1.0),
    "init": _init,
    "modalities": _modalities,
}
"""Name -> label of a point -> the settings it changes."""

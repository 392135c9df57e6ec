"""Recipes: YAML files of plugins or users, and how they and the command line's flags become an experiment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from mbt_core.config import Experiment, TrainConfig, check_name
from mbt_core.config.assets import find_attached
from mbt_core.config.schema import validate
from mbt_core.config.settings import apply_sets, merge, read_yaml
from mbt_core.errors import ConfigError, unknown
from mbt_core.io.remote import address, ask_for, is_there, require_asked
from mbt_core.plugins import registry

DEFAULT_WITHOUT_DATA = "demo"
DEFAULT_WITH_DATA = "small"
DEFAULT_WITH_WEIGHTS = "fine-tune"
LENGTHS = ("train.steps", "train.epochs")
"""Settings that say how long to train: one of them counts, a user's before a recipe's."""


@dataclass(frozen=True)
class Recipe:
    """A recipe as its file says it.

    Args:
        name: of the recipe, or its file.
        header: the first comment lines: command, cost, score.
        tree: the configuration; `modalities` holds settings by instance name or kind, to choose from.
    """

    name: str
    header: str
    tree: dict[str, Any]


def read_recipe(name: str) -> Recipe:
    """A registered recipe by its name, or a YAML file by its path.

    Raises:
        ConfigError: listing the known ones, if it is neither.
        DataError: if it is a run's ``config.yaml``, and a file that belongs to the model is gone or has changed.
    """
    recipes = registry().recipes
    path = recipes[name].spec.path if name in recipes else Path(name)
    if name not in recipes and not path.is_file():
        if path.suffix in (".yaml", ".yml"):
            raise ConfigError(f"--recipe {name}: no such file")
        raise ConfigError(unknown("recipe", name, recipes) + "; or give a YAML file")
    tree = find_attached(read_yaml(path), path.parent, only_copies=False)
    header = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return Recipe(name, "\n".join(line.lstrip("#").strip() for line in header).strip(), tree)


def parse_instances(text: str) -> dict[str, str]:
    """``"x,left=y"`` -> {"x": "x", "left": "y"}: name -> kind.

    Raises:
        ConfigError: for an empty or repeated name.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        name, _, kind = (p.strip() for p in part.partition("="))
        if not name:
            raise ConfigError(f"--modalities {text!r}: expected NAME or NAME=KIND, separated by commas")
        check_name(name, "--modalities")
        if name in found:
            raise ConfigError(
                f"--modalities {text!r}: {name!r} comes twice; give instances names, e.g. left={name},right={name}"
            )
        found[name] = kind or name
    for kind in found.values():
        registry().modality(kind)
    return found


def assemble(
    modalities: str | None = None,
    recipe: str | None = None,
    data: str | None = None,
    sets: Sequence[str] = (),
    overrides: Iterable[tuple[str, Any]] = (),
    pretrained: str | None = None,
) -> tuple[Experiment, Recipe]:
    """The experiment that flags ask for, and the recipe it is based on.

    Args:
        modalities: ``NAME[=KIND],...``; all of the recipe's by default.
        recipe: by default ``fine-tune`` with `pretrained`, ``demo`` without `data`, else ``small``.
        data: manifest, folder or shards.
        sets: ``KEY.PATH=VALUE`` each, applied last.
        overrides: (``KEY.PATH``, value) of further flags; None is skipped.
        pretrained: weights to start from; the model has their geometry, whatever the recipe's is, unless `sets` say
            another.

    Raises:
        ConfigError: before any work.
    """
    if data is not None and not is_there(data):
        raise ConfigError(f"--data {data}: no such file or folder")
    default = DEFAULT_WITH_WEIGHTS if pretrained else DEFAULT_WITH_DATA if data else DEFAULT_WITHOUT_DATA
    chosen = read_recipe(recipe or default)
    offered = _offered(chosen)
    if modalities is None and ((recipe is None and data is not None) or not offered):
        known = ", ".join(sorted(registry().modalities))
        raise ConfigError(
            f"--modalities: missing; known: {known}. For example: --modalities {','.join(offered) or 'NAME'}"
        )
    own = {name: settings.get("kind", name) for name, settings in offered.items()}
    instances = own if modalities is None else parse_instances(modalities)
    tree = merge(chosen.tree, {}) if pretrained is None else _of_weights(chosen, pretrained, sets)
    tree["modalities"] = {
        name: {"kind": kind, **offered.get(name if own.get(name) == kind else kind, {})}
        for name, kind in instances.items()
    }
    if data is not None:
        tree = apply_sets(tree, ["data.dataset=null"])
        tree["data"]["path"] = address(data)
        ask_for(data)
    tree = apply_sets(tree, [f"{key}={value}" for key, value in overrides if value is not None])
    tree = apply_sets(_with_one_length(tree, sets), sets)
    _check_asked(tree, chosen)
    for name in tree["modalities"] if isinstance(tree["modalities"], dict) else ():
        if name not in instances:
            raise ConfigError(f"--set modalities.{name}: {unknown('modality', name, instances)}; see --modalities")
    experiment = validate(Experiment, tree)
    check_length(experiment.train)
    return experiment, chosen


def _of_weights(recipe: Recipe, pretrained: str, sets: Sequence[str]) -> dict[str, Any]:
    """A recipe's tree with the weights and, but where `sets` say otherwise, their geometry in place of its own."""
    own = {} if any(text.strip().startswith("model.backbone.") for text in sets) else {"backbone": "auto"}
    tree = merge({"model": {}}, recipe.tree)
    tree["model"] = {**tree["model"], **own, "pretrained": pretrained}
    return merge(tree, {"model": {"fusion": {"layer": "auto"}}})


def check_length(train: TrainConfig) -> None:
    """Raises `ConfigError` if both `steps` and `epochs` say how long to train. In runs of before, epochs counted."""
    if train.epochs is not None and isinstance(train.steps, int):
        raise ConfigError(
            f"train.steps={train.steps} and train.epochs={passes(train)} are both given; leave out one of them"
        )


def passes(train: TrainConfig) -> str:
    """``train.epochs`` for people."""
    return f"{train.epochs:g}" if isinstance(train.epochs, (int, float)) else str(train.epochs)


def says_length(assignment: str) -> bool:
    """Whether ``KEY.PATH=VALUE`` says how long to train."""
    key, _, value = assignment.partition("=")
    return key.strip() in LENGTHS and value.strip() not in ("", "~", "null")


def _with_one_length(tree: dict[str, Any], sets: Sequence[str]) -> dict[str, Any]:
    """A recipe's tree without how long it trains, if `sets` say it."""
    train = tree.get("train")
    if not isinstance(train, dict) or not any(map(says_length, sets)):
        return tree
    return tree | {"train": {key: value for key, value in train.items() if f"train.{key}" not in LENGTHS}}


def _check_asked(tree: dict[str, Any], recipe: Recipe) -> None:
    """Raises `ConfigError` for data on another machine that a file names, and not the user or an installed recipe."""
    named, final = ({} if not isinstance(data, dict) else data for data in (recipe.tree.get("data"), tree.get("data")))
    for key in ("path", "root"):
        place = final.get(key)
        if not isinstance(place, str):
            continue
        if named.get(key) == place and recipe.name not in registry().recipes:
            require_asked(place, f"{recipe.name}: data.{key}")
        else:
            ask_for(place)


def _offered(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The recipe's settings by instance name or kind. Raises `ConfigError` if they are no settings."""
    offered = recipe.tree.get("modalities") or {}
    if not isinstance(offered, dict):
        raise ConfigError(f"{recipe.name}: modalities: expected NAME: settings, got {offered!r}")
    for name, settings in offered.items():
        if settings is not None and not isinstance(settings, dict):
            raise ConfigError(f"{recipe.name}: modalities.{name}: expected settings as KEY: VALUE, got {settings!r}")
    return {str(name): settings or {} for name, settings in offered.items()}

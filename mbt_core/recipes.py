"""Recipes: YAML files of plugins or users, and how they and the command line's flags become an experiment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbt_core.config import Experiment, apply_sets, check_name, merge, read_yaml
from mbt_core.errors import ConfigError, unknown
from mbt_core.plugins import registry
from mbt_core.schema import validate

DEFAULT_WITHOUT_DATA = "demo"
DEFAULT_WITH_DATA = "small"


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
    """
    recipes = registry().recipes
    path = recipes[name].spec.path if name in recipes else Path(name)
    if name not in recipes and not path.is_file():
        if path.suffix in (".yaml", ".yml"):
            raise ConfigError(f"--recipe {name}: no such file")
        raise ConfigError(unknown("recipe", name, recipes) + "; or give a YAML file")
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    header = []
    for line in lines:
        if not line.startswith("#"):
            break
        header.append(line.lstrip("#").strip())
    return Recipe(name, "\n".join(header).strip(), read_yaml(Path(path)))


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
) -> tuple[Experiment, Recipe]:
    """The experiment that flags ask for, and the recipe it is based on.

    Args:
        modalities: ``NAME[=KIND],...``; all of the recipe's by default.
        recipe: by default ``demo`` without `data`, else ``small``.
        data: manifest, folder or shards.
        sets: ``KEY.PATH=VALUE`` each, applied last.
        overrides: (``KEY.PATH``, value) of further flags; None is skipped.

    Raises:
        ConfigError: before any work.
    """
    chosen = read_recipe(recipe or (DEFAULT_WITH_DATA if data else DEFAULT_WITHOUT_DATA))
    offered: dict[str, Any] = chosen.tree.get("modalities") or {}
    if modalities is None and ((recipe is None and data is not None) or not offered):
        known = ", ".join(sorted(registry().modalities))
        raise ConfigError(
            f"--modalities: missing; known: {known}. For example: --modalities {','.join(offered) or 'NAME'}"
        )
    instances = parse_instances(modalities) if modalities else {n: (s or {}).get("kind", n) for n, s in offered.items()}
    tree = merge(chosen.tree, {})
    tree["modalities"] = {
        name: {"kind": kind, **(offered.get(name) or offered.get(kind) or {})} for name, kind in instances.items()
    }
    if data is not None:
        path = Path(data)
        if not path.exists():
            raise ConfigError(f"--data {data}: no such file or folder")
        tree["data"] = {**(tree.get("data") or {}), "path": str(path.resolve()), "dataset": None}
    tree = apply_sets(tree, [f"{key}={value}" for key, value in overrides if value is not None])
    return validate(Experiment, apply_sets(tree, sets)), chosen

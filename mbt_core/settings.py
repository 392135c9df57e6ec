"""Trees of settings: YAML in and out, ``KEY.PATH=VALUE``, one tree laid on another. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mbt_core.errors import ConfigError
from mbt_core.schema import StrictModel


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping. Raises `ConfigError` naming the line."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected KEY: VALUE at the top, came {type(tree).__name__}")
    return tree


def to_yaml(config: StrictModel) -> str:
    """The resolved configuration as YAML that loads again to the same."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def apply_sets(tree: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Applies ``KEY.PATH=VALUE`` (the value as YAML) to a copy of `tree`. Raises `ConfigError` for a malformed one."""
    result = _copy(tree)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(f"--set {assignment!r}: expected KEY.PATH=VALUE, e.g. model.fusion.layer=4")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {assignment!r}: {text!r} is not a YAML value") from None
        node = result
        for key in keys[:-1]:
            if not isinstance(node.get(key), dict):
                node[key] = {}
            node = node[key]
        node[keys[-1]] = value
    return result


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, mapping by mapping."""
    result = _copy(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def _copy(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in tree.items()}

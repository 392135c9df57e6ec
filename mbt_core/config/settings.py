"""Trees of settings: YAML in and out, ``KEY.PATH=VALUE``, one tree laid on another. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mbt_core.config.schema import StrictModel
from mbt_core.errors import ConfigError
from mbt_core.io.files import open_regular

LARGEST = 100_000
"""Most values in a document, those of an alias counted wherever it stands."""
LARGEST_FILE = 1 << 24
"""Bytes of a YAML file."""


def load_yaml(text: str) -> Any:
    """A document of plain values. Raises `yaml.YAMLError`, also for one without end: aliases can make it so."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > LARGEST:
            raise yaml.YAMLError(f"its aliases make more than {LARGEST:,} values of it")
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("too many brackets within brackets") from None
    # a date that is none, a number of too many digits; the others where a tag's value is empty
    except (ValueError, IndexError, AttributeError) as error:
        raise yaml.YAMLError(f"a value is not what it is written or tagged as: {error}") from None
    finally:
        loader.dispose()


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of nodes below and with `node`; `known`: of nodes by their id, 0 where it is being counted."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = 0
        pairs = isinstance(node, yaml.MappingNode)
        children = [child for pair in node.value for child in pair] if pairs else node.value
        known[id(node)] = 1 + sum(_size(child, known) for child in children)
    if not known[id(node)]:
        raise yaml.YAMLError(f"an alias stands within what it is an alias of,{node.start_mark}")
    return known[id(node)]


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping. Raises `ConfigError` naming the line."""
    try:
        with open_regular(path, LARGEST_FILE) as file:
            tree = load_yaml(file.read().decode())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected KEY: VALUE at the top, got {type(tree).__name__}")
    return tree


def to_yaml(config: StrictModel | Mapping[str, Any]) -> str:
    """The resolved configuration, or what it is as a tree for JSON, as YAML that loads again to the same."""
    tree = dict(config) if isinstance(config, Mapping) else config.model_dump(mode="json")
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def apply_sets(tree: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Applies ``KEY.PATH=VALUE`` (the value as YAML) to a copy of `tree`.

    Raises:
        ConfigError: for a malformed one, or one that leads into a value without keys.
    """
    result = _copy(tree)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(f"--set {assignment!r}: expected KEY.PATH=VALUE, e.g. model.fusion.layer=4")
        try:
            value = load_yaml(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {assignment!r}: {text!r} is not a YAML value") from None
        node = result
        for depth, key in enumerate(keys[:-1], 1):
            old = node.get(key)
            if old and not isinstance(old, dict):
                where = ".".join(keys[:depth])
                raise ConfigError(
                    f"{where} is {old!r}: it has no key {keys[depth]!r}; set a mapping in its place: "
                    f"{where}={{{keys[depth]}: VALUE, ...}}"
                )
            node[key] = old or {}
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

"""What a sweep trains: the flags of ``mbt train``, axes of overrides laid on them, and the cells of their grid."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import yaml

from mbt_core.config import Experiment
from mbt_core.config.recipes import assemble, parse_instances
from mbt_core.config.settings import load_yaml
from mbt_core.errors import ConfigError

MODALITIES = "modalities"
"""The key of an override that is no setting but the flag ``--modalities``."""
SEED = "train.seed"
LONGEST_NAME = 200


@dataclass(frozen=True)
class Flags:
    """The flags of ``mbt train``.

    Args:
        modalities: ``NAME[=KIND],...``.
        recipe: name or file.
        data: manifest, folder or shards.
        sets: ``KEY.PATH=VALUE`` each; a later one wins.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
    """

    modalities: str | None = None
    recipe: str | None = None
    data: str | None = None
    sets: tuple[str, ...] = ()
    device: str = "auto"

    def experiment(self) -> Experiment:
        """The experiment they ask for. Raises `ConfigError`."""
        return assemble(self.modalities, self.recipe, self.data, self.sets)[0]

    def over(self, overrides: Mapping[str, Any]) -> Flags:
        """These flags with settings changed.

        `MODALITIES` changes the flag, and settings of modalities that are then left out go with them: as ``--set`` they
        would bring them back.
        """
        changed = dict(overrides)
        varied, chosen = MODALITIES in changed, changed.pop(MODALITIES, None)
        sets = [*self.sets, *(f"{key}={as_yaml(value)}" for key, value in changed.items())]
        if not varied:
            return replace(self, sets=tuple(sets))
        names = [chosen] if isinstance(chosen, str) else chosen
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"modalities={as_yaml(chosen)}: expected names, e.g. modalities=one,[one, two]")
        text = ",".join(names)
        kept = [s for s in sets if not s.startswith("modalities.") or s.split(".")[1] in parse_instances(text)]
        return replace(self, modalities=text, sets=tuple(kept))

    def command(self, out: Path) -> str:
        """The command that trains this into `out`, quoted for a shell."""
        words = ["mbt", "train"]
        for flag, value in (("modalities", self.modalities), ("recipe", self.recipe), ("data", self.data)):
            words += [f"--{flag}", value] if value is not None else []
        words += [word for assignment in self.sets for word in ("--set", assignment)]
        words += ["--device", self.device] if self.device != "auto" else []
        return shlex.join([*words, "--out", str(out)])


@dataclass(frozen=True)
class Point:
    """One value of an axis: its label, and the settings (``KEY.PATH`` -> value) it stands for."""

    label: str
    overrides: Mapping[str, Any]


@dataclass(frozen=True)
class Axis:
    """One thing that is varied."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Cell:
    """One training.

    Args:
        name: of its folder; depends on nothing but the cell itself, so that others can be added later.
        labels: axis -> label of its point.
        seed: of the training.
        flags: of ``mbt train``.
        experiment: what they ask for.
    """

    name: str
    labels: Mapping[str, str]
    seed: int
    flags: Flags = field(repr=False)
    experiment: Experiment = field(repr=False)

    @property
    def title(self) -> str:
        """For people: the labels and the seed."""
        return ", ".join(f"{short(axis)} {label}" for axis, label in (*self.labels.items(), ("seed", self.seed)))


def short(name: str) -> str:
    """An axis's name without the groups of its key: ``model.fusion.layer`` -> ``fusion.layer``."""
    return ".".join(name.split(".")[-2:])


def parse_over(text: str) -> Axis:
    """``KEY.PATH=V1,V2`` (the values as YAML) -> an axis.

    Raises:
        ConfigError: for a malformed one, or a value that comes twice.
    """
    key, equals, values = text.partition("=")
    key = key.strip()
    if not equals or not values.strip() or not all(key.split(".")):
        raise ConfigError(f"--over {text!r}: expected KEY.PATH=V1,V2,..., e.g. model.fusion.layer=0,2,4")
    try:
        parsed = load_yaml(f"[{values}]")
    except yaml.YAMLError:
        raise ConfigError(f"--over {text!r}: {values!r} is not a list of YAML values") from None
    return Axis(key, tuple(Point(as_yaml(value), {key: value}) for value in parsed))


def as_yaml(value: Any) -> str:
    """A value in one line, as ``--set`` reads it."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, sort_keys=False, allow_unicode=True)
    return text.strip().removesuffix("...").strip()


def make_cells(flags: Flags, axes: Sequence[Axis], seeds: int) -> list[Cell]:
    """The grid of all axes, for as many seeds from ``train.seed`` on; all of the first seed come first.

    Raises:
        ConfigError: naming the cell whose configuration is wrong, before any work.
    """
    for axis in axes:
        _check_distinct(axis)
    names = [axis.name for axis in axes]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"{', '.join(sorted(twice))} is varied twice; give all its values in one --over")
    for one, other in combinations(axes, 2):
        _check_apart(one, other)
    if SEED in names:
        raise ConfigError(f"{SEED}: the seeds are varied by --seeds N; the first is --set {SEED}=FIRST")
    first = flags.experiment().train.seed
    cells = []
    for seed in range(first, first + seeds):
        for points in product(*(axis.points for axis in axes)):
            labels = {axis.name: point.label for axis, point in zip(axes, points, strict=True)}
            overrides = {key: value for point in points for key, value in point.overrides.items()}
            varied = flags.over(overrides | {SEED: seed})
            name = cell_name({**labels, "seed": str(seed)})
            try:
                cells.append(Cell(name, labels, seed, varied, varied.experiment()))
            except ConfigError as error:
                raise ConfigError(f"cell {name}: {error}") from None
    return cells


def _check_apart(one: Axis, other: Axis) -> None:
    """Two axes that set the same thing: the later one would win, and the other's labels be untrue."""
    ours, theirs = ({key for point in axis.points for key in point.overrides} for axis in (one, other))
    for a, b in sorted(product(ours, theirs)):
        within = MODALITIES not in (a, b) and (a.startswith(f"{b}.") or b.startswith(f"{a}."))
        if a == b or within:
            raise ConfigError(f"{max(a, b, key=len)} is varied twice, by {one.name} and by {other.name}; leave one out")


def _check_distinct(axis: Axis) -> None:
    if not axis.points:
        raise ConfigError(f"{axis.name}: no value is given")
    labels = [point.label for point in axis.points]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise ConfigError(f"{axis.name}: the value {twice} comes twice")


def cell_name(labels: Mapping[str, str]) -> str:
    """A folder's name: readable, and with a digest where a character or the length had to go."""
    from hashlib import sha256

    text = ",".join(f"{name}={label}" for name, label in labels.items())
    safe = re.sub(r"[^A-Za-z0-9._+=,-]", "_", text)[:LONGEST_NAME]
    return safe if safe == text else f"{safe}-{sha256(text.encode()).hexdigest()[:8]}"

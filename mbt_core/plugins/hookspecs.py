"""The hooks a plugin may implement, and the light records they return.

Records name classes and functions by import path (``"package.module:Name"``), so that loading a plugin
imports nothing heavy: what a user does not choose is never imported.
A plugin is any object with functions marked `hookimpl`, registered under the entry-point group ``mbt``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pluggy

GROUP = "mbt"
hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@dataclass(frozen=True)
class ModalitySpec:
    """A kind of modality.

    Args:
        kind: what users write in ``--modalities``, ``[a-z][a-z0-9_]*``.
        config: import path of its `ModalityConfig`; that module imports no torch.
        modality: import path of its `Modality`.
        extra: the extra of its distribution to install for `requires`.
        requires: modules that must be importable before it can be used.
    """

    kind: str
    config: str
    modality: str
    extra: str | None = None
    requires: tuple[str, ...] = ()


@dataclass(frozen=True)
class FusionSpec:
    """A fusion strategy: its name, the import path of its `Fusion` class and a line of help."""

    name: str
    fusion: str
    help: str = ""


@dataclass(frozen=True)
class DatasetSpec:
    """A data set.

    Args:
        name: what users write in ``mbt data build NAME`` and ``data.dataset``.
        help: a line.
        build: import path of ``build(annotations: Path, media: Path, subset: str | None, seed: int) -> BuiltData``,
            from the folder of the official annotation files and the folder of media files.
        make: import path of ``make() -> Path`` of a manifest, for a data set that makes itself on first use.
    """

    name: str
    help: str = ""
    build: str | None = None
    make: str | None = None


@dataclass
class BuiltData:
    """What the `build` of a `DatasetSpec` returns: the rows of a manifest, which are all those of the annotation files.

    Args:
        columns: of the manifest, all of one length: ``id``, ``split``, ``label`` or ``label.TASK``, optional ``start``,
            ``end`` and ``fps`` (numbers or None), columns of files, and any others.
        files: which columns name files, relative to the media folder; ``""`` for what is not there.
        expected: by row, a name under which its file would have been found.
        classes: task -> names in the official order.
        notes: what the user should know of how the files were read.
    """

    columns: dict[str, list[Any]]
    files: tuple[str, ...]
    expected: list[str]
    classes: dict[str, list[str]]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RecipeSpec:
    """A YAML file whose first comment lines give the exact command, the expected cost and the expected score."""

    name: str
    path: Path


@dataclass(frozen=True)
class CommandSpec:
    """A command (a function) or group of commands (a `typer.Typer`) of ``mbt``, with its place in the help."""

    name: str
    help: str
    target: str
    panel: str | None = None


@dataclass(frozen=True)
class LoggerSpec:
    """A listener to the events of a run (`mbt_core.training.events.Listener`), chosen by ``train.loggers``."""

    name: str
    listener: str
    extra: str | None = None
    requires: tuple[str, ...] = ()


@hookspec
def mbt_modalities() -> Iterable[ModalitySpec]:
    """The kinds of modality this plugin provides."""
    return ()


@hookspec
def mbt_fusions() -> Iterable[FusionSpec]:
    """The fusion strategies this plugin provides."""
    return ()


@hookspec
def mbt_datasets() -> Iterable[DatasetSpec]:
    """The data sets ``mbt data build NAME`` can build."""
    return ()


@hookspec
def mbt_recipes() -> Iterable[RecipeSpec]:
    """The recipes ``mbt train --recipe NAME`` can run."""
    return ()


@hookspec
def mbt_commands() -> Iterable[CommandSpec]:
    """The commands this plugin adds to ``mbt``."""
    return ()


@hookspec
def mbt_loggers() -> Iterable[LoggerSpec]:
    """The loggers ``train.loggers`` can name."""
    return ()

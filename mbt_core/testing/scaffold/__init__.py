"""Writes the package of a new modality from templates: complete, installable, and it trains at once."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from string import Template

from mbt_core.config import check_name
from mbt_core.errors import ConfigError, MBTError
from mbt_core.plugins import registry
from mbt_core.version import __version__

TEMPLATES = Path(__file__).parent / "template"
SUFFIX = ".tmpl"
PLACE = "NAME"
"""What the kind's name replaces in the names of files and folders."""


def write_package(name: str, parent: Path) -> Path:
    """Writes ``PARENT/mbt-NAME``: the distribution ``mbt-NAME`` with the package ``mbt_NAME`` and the kind ``NAME``.

    Args:
        name: ``[a-z][a-z0-9_]*``, of the kind.
        parent: an existing folder.

    Returns:
        The new folder.

    Raises:
        ConfigError: for a name that cannot be used or is taken, or a folder that exists.
        MBTError: if it cannot be written.
    """
    check_usable(name)
    folder = parent / f"mbt-{name}"
    if folder.exists():
        raise ConfigError(f"{folder} exists already; move it away, or choose another name")
    values = {"name": name, "title": "".join(map(str.capitalize, name.split("_"))), "version": __version__}
    try:
        for source in sorted(TEMPLATES.rglob(f"*{SUFFIX}")):
            relative = str(source.relative_to(TEMPLATES)).removesuffix(SUFFIX)
            target = folder / relative.replace(PLACE, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            text = Template(source.read_text(encoding="utf-8")).substitute(values)
            target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MBTError(f"{folder} cannot be written: {error.strerror or error}") from None
    return folder


def check_usable(name: str) -> None:
    """Raises `ConfigError` unless a new kind can have this name."""
    from torch import nn

    from mbt_core.data.columns import COLUMNS

    check_name(name, "plugins new")
    if name in registry().modalities:
        raise ConfigError(
            f"the kind {name!r} exists already, in {registry().modalities[name].plugin!r}; choose another"
        )
    if name.endswith("_"):
        raise ConfigError(f"the name {name!r} ends in '_', which a distribution's name cannot; choose another")
    if name in COLUMNS or hasattr(nn.ModuleDict, name):
        raise ConfigError(f"the name {name!r} is reserved; choose another, e.g. my_{name}")
    if importlib.util.find_spec(f"mbt_{name}") is not None:
        raise ConfigError(f"a package mbt_{name} is installed already; choose another name")

"""Files that belong to a model (a vocabulary): settings name them, folders of runs and models hold copies of them.

A copy is called ``files/SETTING-DIGEST.SUFFIX``: the digest, of its content, tells whether it is still the same file.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mbt_core.config import Experiment, MBTConfig
from mbt_core.errors import ConfigError, DataError
from mbt_core.io.files import write_atomically
from mbt_core.plugins import registry

COPY = re.compile(r"files/[a-z]\w*-([0-9a-f]{16})(\.\w+)?", re.ASCII)


def portable(config: MBTConfig | Experiment) -> dict[str, Any]:
    """The configuration as it is saved: attached files are called as their copies are.

    Raises:
        ConfigError: if one of them cannot be read.
    """
    tree = config.model_dump(mode="json")
    for where, settings, key in _attached(tree):
        path = Path(settings[key])
        try:
            digest = _digest(path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"{where}: {path}: cannot be read: {reason}") from None
        suffix = path.suffix if re.fullmatch(r"\.\w+", path.suffix, re.ASCII) else ""
        settings[key] = f"files/{key}-{digest}{suffix}"
    return tree


def copy_attached(config: MBTConfig | Experiment, saved: Mapping[str, Any], folder: Path) -> None:
    """Copies the attached files of a configuration into a folder, atomically each.

    Args:
        config: names the files.
        saved: what `portable` made of it.
        folder: of a run or a model.

    Raises:
        DataError: if a file is gone, or has another content than when `portable` read it.
        MBTError: if it cannot be written.
    """
    given = config.model_dump(mode="json")
    for (where, settings, key), (_, names, _) in zip(_attached(given), _attached(saved), strict=True):
        source, target = Path(settings[key]), folder / names[key]
        _check(source, names[key], where)
        if not (target.exists() and target.samefile(source)):
            write_atomically(target, lambda path, source=source: shutil.copyfile(source, path))  # type: ignore[misc]


def find_attached(saved: Any, folder: Path, only_copies: bool = True) -> Any:
    """A configuration as it was saved, with the paths of the attached files in `folder`; not validated yet.

    Args:
        saved: the configuration's tree; changed in place.
        folder: of the run or model.
        only_copies: every path must be that of a copy; else others stay as they are: a recipe may name its own.

    Raises:
        DataError: if it names another place, or a file is gone or has another content than when it was saved.
    """
    for where, settings, key in _attached(saved):
        name = settings[key]
        if not isinstance(name, str) or not COPY.fullmatch(name):
            if not only_copies:
                continue
            raise DataError(f"{where}: {name!r} is no file of {folder}; expected files/{key}-DIGEST, as saving writes")
        path = folder / name
        _check(path, name, where)
        settings[key] = str(path.absolute())
    return saved


def _attached(tree: Any) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(path of the setting for messages, settings of a modality, key in them) of each file that is named."""
    modalities = tree.get("modalities") if isinstance(tree, Mapping) else None
    for name, settings in modalities.items() if isinstance(modalities, Mapping) else ():
        kind = settings.get("kind", name) if isinstance(settings, dict) else None
        if kind in registry().modalities:
            for key in registry().config_class(kind).attached:
                if settings.get(key) is not None:
                    yield f"modalities.{name}.{key}", settings, key


def _check(path: Path, name: str, where: str) -> None:
    """Raises `DataError` if a file is not the one that `name`, that of its copy, tells of."""
    found = COPY.fullmatch(name)
    try:
        same = found is not None and _digest(path) == found[1]
    except OSError as error:
        raise DataError(f"{where}: {path}: cannot be read: {error.strerror}; it belongs to the model") from None
    if not same:
        raise DataError(f"{where}: {path}: has changed; the model was made with another file of this name: put it back")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]

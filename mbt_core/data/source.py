"""Which manifest a configuration means, and which of its splits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from mbt_core.config import DataConfig, HeadConfig
from mbt_core.data.labels import Classes
from mbt_core.data.manifest import Manifest
from mbt_core.data.splits import TEST, TRAIN, VAL, split_name
from mbt_core.errors import ConfigError, DataError, nearest, unknown
from mbt_core.io.remote import address, ask_for, is_there, require_asked
from mbt_core.modality import Modality
from mbt_core.plugins import load_object, registry


def open_manifest(
    config: DataConfig,
    modalities: Mapping[str, Modality],
    head: HeadConfig,
    classes: Classes | None = None,
    labelled: bool = True,
) -> Manifest:
    """The manifest that a configuration names, made first if it makes itself.

    Args:
        config: path or data set, root, split rules.
        modalities: that will read it.
        head: kinds of the tasks, where it says them.
        classes: of a trained model.
        labelled: False: without its labels.

    Raises:
        ConfigError: if none is named, there is none of that name, or it is on another machine and the user has not
            named it; see `mbt_core.io.remote.require_asked`.
        DataError: if it is not as expected.
    """
    path = config.path
    if path is None and config.dataset is not None:
        path = str(make_dataset(config.dataset))
    if path is None:
        raise ConfigError("data.path: no data given; give --data MANIFEST, or data.path in the configuration")
    for setting, place in (("data.path", path), ("data.root", config.root)):
        if place is not None:
            require_asked(place, setting)
    if not is_there(path):
        raise ConfigError(f"data.path: {path}: no such file or folder")
    kinds = head.task if "task" in head.model_fields_set or head.outputs else None
    return Manifest.read(path, {name: m.reads for name, m in modalities.items()}, config, classes, kinds, labelled)


def make_dataset(name: str) -> Path:
    """The manifest of a data set that makes itself. Raises `ConfigError` for one that does not."""
    known = {n: p.spec for n, p in registry().datasets.items() if p.spec.make}
    if name not in known:
        raise ConfigError(f"data.dataset: {unknown('data set that makes itself', name, known)}")
    path: Path = load_object(known[name].make)()
    return path


def ask_for_data(config: DataConfig, lasting: bool = False) -> None:
    """Notes that the user has named these data; see `mbt_core.io.remote.ask_for`."""
    for place in (config.path, config.root):
        if place is not None:
            ask_for(place, lasting)


def other_data(config: DataConfig, path: str | Path) -> DataConfig:
    """`config` for another manifest, which the user names and whose splits are taken as they are.

    Raises:
        ConfigError: if it is no path or URL, or not there.
    """
    if not isinstance(path, str | PathLike):
        raise ConfigError(
            f"data: expected the path or URL of a manifest, got {_article(type(path).__name__)}; write it to a file "
            "first, .csv or .parquet"
        )
    ask_for(path)
    return evaluated_data(config, path)


def evaluated_data(config: DataConfig, path: str | Path) -> DataConfig:
    """As `other_data`, of a manifest that a file names. The manifest of the run itself keeps its rules."""
    if not is_there(path):
        raise ConfigError(f"--data {path}: no such file or folder")
    if address(path) == config.path:  # what was trained on must not be tested on
        return config
    own = {"path": str(path), "root": None, "dataset": None}
    rules = {"group": None, "folds": None, "fold": 0, "fraction": 1.0, "val_fraction": 0.0, "test_fraction": 0.0}
    return config.model_copy(update=own | rules)


def media_paths(files: Any) -> Iterable[Path]:
    """Paths of media files and folders: of one, of some, or of a stream of them, which are looked at as they come.

    Raises:
        ConfigError: for anything else, naming what came: at once, but for a stream's items.
    """
    if isinstance(files, str | PathLike):
        return [Path(files)]
    what = _article(type(files).__name__)
    if isinstance(files, Mapping | bytes) or hasattr(files, "columns"):  # whose items are names, not files
        raise _no_path(what)
    try:
        items = iter(files)
    except TypeError:
        raise _no_path(what) from None

    def path_of(item: Any) -> Path:
        if isinstance(item, str | PathLike):
            return Path(item)
        raise _no_path(f"{what} of {type(item).__name__}")

    paths = map(path_of, items)
    return list(paths) if isinstance(files, Sized) else paths


def _no_path(what: str) -> ConfigError:
    return ConfigError(
        f"predict: expected the path of a media file or folder, or several paths, got {what}. Where the modalities of "
        "an example lie in files of their own, a row of a manifest names them: predict_rows; an array is first written "
        "to a file, e.g. by numpy.save"
    )


def _article(name: str) -> str:
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def split_or_all(manifest: Manifest, split: str | None) -> tuple[Manifest, str]:
    """`split`, or all rows as one, with the manifest that has it. Raises `ConfigError` listing the splits there are."""
    if split:
        return manifest, choose_split(manifest, split)
    return replace(manifest, splits={"all": np.arange(len(manifest))}), "all"


def choose_split(manifest: Manifest, split: str | None) -> str:
    """`split`, or test, or val. Raises `ConfigError` listing the splits there are."""
    for name in [TEST, VAL] if split is None else [split_name(split)]:
        if name in manifest.splits:
            return name
    if split is not None:
        raise ConfigError(f"--split: {manifest.path}: {unknown('split', split, manifest.splits)}")
    known = ", ".join(manifest.splits)
    raise ConfigError(f"{manifest.path} has neither a test nor a val split; give --split; it has: {known}")


def require_train(manifest: Manifest) -> None:
    """Raises `DataError` if there is nothing to train on."""
    if TRAIN not in manifest.splits:
        known = ", ".join(manifest.splits)
        raise DataError(
            f"{manifest.path}: no row of the split 'train'; its splits are: {known}.{nearest(TRAIN, manifest.splits)} "
            "Rows without a split are of train"
        )
    if not len(manifest.usable(TRAIN)):
        raise DataError(
            f"{manifest.path}: no row of the split {TRAIN!r} names a file; are the media where it was built?"
        )

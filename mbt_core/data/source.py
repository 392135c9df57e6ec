"""Which manifest a configuration means, and which of its splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from mbt_core.config import DataConfig, HeadConfig
from mbt_core.data.labels import Classes
from mbt_core.data.manifest import Manifest
from mbt_core.data.splits import TEST, TRAIN, VAL, split_name
from mbt_core.errors import ConfigError, DataError, nearest, unknown
from mbt_core.modality import Modality
from mbt_core.plugins import load_object, registry
from mbt_core.remote import ask_for, is_there, require_asked


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
            named it; see `mbt_core.remote.require_asked`.
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
    """Notes that the user has named these data; see `mbt_core.remote.ask_for`."""
    for place in (config.path, config.root):
        if place is not None:
            ask_for(place, lasting)


def other_data(config: DataConfig, path: str | Path) -> DataConfig:
    """`config` for another manifest, which the user names and whose splits are taken as they are.

    Raises:
        ConfigError: if it is not there.
    """
    ask_for(path)
    return evaluated_data(config, path)


def evaluated_data(config: DataConfig, path: str | Path) -> DataConfig:
    """As `other_data`, of a manifest that a file names."""
    if not is_there(path):
        raise ConfigError(f"--data {path}: no such file or folder")
    own = {"path": str(path), "root": None, "dataset": None}
    return config.model_copy(update={**own, "group": None, "folds": None, "fold": 0, "fraction": 1.0})


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

"""Several instances of one kind of modality, and whether one file may be meant for more than one of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mbt_core.data.manifest import Manifest
from mbt_core.errors import ConfigError

NONE = "none"
Kinds = Mapping[str, str]
"""Instance -> its kind, in the order of the model."""


def sharing(manifest: Manifest, kinds: Kinds) -> dict[str, list[list[str]]]:
    """Column of files -> the instances of one kind that all read it, for each kind with several."""
    found = {column: _of_one_kind(names, kinds) for column, names in manifest.served().items()}
    return {column: groups for column, groups in found.items() if groups}


def as_note(manifest: Manifest, kinds: Kinds) -> str:
    """What a run notes of `sharing`, ``left+right, ...``; empty where no kind has several instances."""
    if not _of_one_kind(kinds, kinds):
        return ""
    return ", ".join("+".join(group) for groups in sharing(manifest, kinds).values() for group in groups) or NONE


def require_own_files(manifest: Manifest, kinds: Kinds, noted: str | None) -> None:
    """Raises `ConfigError` if instances read one column that had a file each in training.

    Args:
        manifest: to be evaluated or classified.
        kinds: of the run's modalities.
        noted: by the run (`as_note`); None: it did not.
    """
    for column, groups in sharing(manifest, kinds).items():
        for group in groups:
            if noted is not None and not _shared(group, noted):
                raise ConfigError(
                    f"{manifest.path}: {_listed(group)} would both read the column {column!r}, but had a file each in "
                    f"the training; give the columns {_listed(group)}"
                )


def require_one_file(kinds: Kinds, noted: str | None) -> None:
    """Raises `ConfigError` if a single file does not say which instance of a kind it is; as `require_own_files`."""
    for group in _of_one_kind(kinds, kinds):
        if not _shared(group, noted or NONE):
            columns = ",".join(group)
            raise ConfigError(
                f"{_listed(group)} are of one kind, {kinds[group[0]]!r}, and a single file does not say which of them "
                f"it is; name a file for each in a manifest with the columns id,{columns}: "
                "mbt predict RUN --data MANIFEST. Where the model looks in rows of its data is on the page "
                "of mbt report RUN"
            )


def _of_one_kind(names: Iterable[str], kinds: Kinds) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(kinds[name], []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _shared(group: Sequence[str], noted: str) -> bool:
    return any(set(group) <= set(told.split("+")) for told in noted.split(", "))


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(map(repr, names[:-1]))} and {names[-1]!r}"

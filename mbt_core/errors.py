"""What can go wrong for a user, and how it is said: what came, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MBTError(Exception):
    """The work failed for a reason the user can understand; the command line prints it and exits with 1."""

    exit_code = 1


class MBTWarning(UserWarning):
    """Something the user should know while the work goes on; the command line prints it in a line."""


class ConfigError(MBTError, ValueError):
    """Wrong usage or configuration, found before any work; the command line exits with 2."""

    exit_code = 2


class InUseError(ConfigError):
    """Another process is training in this run folder, or writing to this file."""


class DataError(MBTError, ValueError):
    """A file or a manifest is not what it should be."""


def nearest(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the known name nearest to `name`, or an empty string."""
    match = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
    return f" Did you mean {match[0]!r}?" if match else ""


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """A message for an unknown `name`: the nearest known one and all that exist."""
    known = sorted(known)
    listed = ", ".join(known) or "none"
    return f"unknown {what} {str(name)!r}.{nearest(str(name), known)} Known: {listed}"

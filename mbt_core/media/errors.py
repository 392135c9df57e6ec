"""The one error of reading media."""

from __future__ import annotations

from mbt_core.errors import DataError


class MediaError(DataError):
    """A media file cannot be read: it is missing, truncated, corrupt, or does not hold what was asked for.

    The message names the file and what failed.
    """


def reason(error: BaseException) -> str:
    """Why `error` happened, in one line and without error numbers."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())

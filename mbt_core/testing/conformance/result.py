"""The outcome of a check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Result:
    """The outcome of one check.

    Args:
        check: its name.
        status: ``skipped`` where an earlier check's fault leaves nothing to check.
        message: what is checked; of a fault, what is wrong and what to do.
    """

    check: str
    status: Literal["ok", "fault", "skipped"]
    message: str

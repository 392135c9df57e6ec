"""The list of checks, and running them."""

from __future__ import annotations

import traceback
from collections.abc import Callable

from mbt_core.errors import ConfigError, MBTError
from mbt_core.testing.conformance.case import Case, Fault
from mbt_core.testing.conformance.declarations import check_card, check_contract, check_fit, check_help, check_imports
from mbt_core.testing.conformance.reading import (
    check_collate,
    check_determinism,
    check_evaluation,
    check_preprocessor,
    check_samples,
)
from mbt_core.testing.conformance.result import Result
from mbt_core.testing.conformance.tokens import (
    check_absence,
    check_adapt,
    check_gradients,
    check_grid,
    check_padding,
    check_pictures,
)

Check = Callable[[Case], None]

CHECKS: dict[str, Check] = {
    check.__name__.removeprefix("check_"): check
    for check in (
        check_contract,
        check_imports,
        check_help,
        check_card,
        check_fit,
        check_samples,
        check_collate,
        check_determinism,
        check_evaluation,
        check_preprocessor,
        check_grid,
        check_padding,
        check_absence,
        check_gradients,
        check_adapt,
        check_pictures,
    )
}
"""Name -> check, in the order in which a fault of one explains those of the next; each raises `Fault`."""


def run(case: Case) -> list[Result]:
    """Runs every check. An error that an earlier check met already is not told again.

    Raises:
        ConfigError: for wrong settings, or if something that the kind requires is not installed.
    """
    try:
        assert case.given
        assert case.modality_class
    except ConfigError:
        raise
    except MBTError:  # what cannot be loaded is for the checks to tell
        pass
    results: list[Result] = []
    seen: dict[str, str] = {}
    for name, check in CHECKS.items():
        try:
            check(case)
        except Fault as fault:
            results.append(Result(name, "fault", str(fault)))
        except Exception as error:  # a bug of the plugin may be anything
            message = _told(error)
            if message in seen:
                results.append(Result(name, "skipped", f"not possible, see {seen[message]}"))
                continue
            seen[message] = name
            results.append(Result(name, "fault", message))
        else:
            results.append(Result(name, "ok", (check.__doc__ or "").strip()))
    return results


def _told(error: Exception) -> str:
    """An error, and where it was raised unless it is one that is made for users."""
    if isinstance(error, MBTError):
        return str(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"

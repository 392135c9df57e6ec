"""What pytest loads (entry point ``pytest11``): the checks as parameters, and the case they share.

It costs nothing where no test asks for it: everything heavy is imported on use.
"""

from __future__ import annotations

from typing import Any

import pytest


def pytest_generate_tests(metafunc: Any) -> None:
    """Parametrises ``mbt_check`` over the checks."""
    if "mbt_check" in metafunc.fixturenames:
        from mbt_core.testing.conformance.suite import CHECKS

        metafunc.parametrize("mbt_check", list(CHECKS.values()), ids=list(CHECKS))


@pytest.fixture(scope="class")
def mbt_case(request: Any, tmp_path_factory: Any) -> Any:
    """The kind that the test class names by `kind` (and `settings`), fitted to small real files."""
    from mbt_core.testing.conformance.case import Case

    kind, settings = getattr(request.cls, "kind", None), getattr(request.cls, "settings", {})
    if not isinstance(kind, str):
        raise pytest.UsageError(f"{request.cls}: mbt_case needs a test class with `kind`, the name of a modality")
    return Case(kind, settings, tmp_path_factory.mktemp(kind))

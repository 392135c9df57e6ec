"""The conformance suite: whether a kind of modality keeps to the contract, with small real files.

Three ways in: `check_kind` here, ``mbt plugins check KIND`` on the command line, and `ConformanceTests` for a
plugin's own tests. Importing this package imports neither torch nor pydantic.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from mbt_core.plugins import registry
from mbt_core.testing.conformance.result import Result


class ConformanceTests:
    """The suite as tests of pytest, one a check::

        class TestAccel(ConformanceTests):
            kind = "accel"

    The fixture ``mbt_case`` (`mbt_core.testing.conformance.case.Case`) serves further tests in such a class.

    Attributes:
        kind: the registered kind.
        settings: of the kind; what is not given keeps its default or is fitted to the example files.
    """

    kind: ClassVar[str]
    settings: ClassVar[Mapping[str, Any]] = {}

    def test_conformance(self, mbt_case: Any, mbt_check: Any) -> None:
        """One check; parametrised over all of them."""
        mbt_check(mbt_case)


def check_kind(kind: str, settings: Mapping[str, Any] | None = None) -> list[Result]:
    """Runs every check on a registered kind.

    Args:
        kind: of the modality.
        settings: of the kind; what is not given keeps its default or is fitted to the example files.

    Raises:
        ConfigError: for an unknown kind, or wrong settings.
    """
    from mbt_core.testing.conformance.case import Case
    from mbt_core.testing.conformance.suite import run

    registry().modality(kind)
    with tempfile.TemporaryDirectory(prefix="mbt-check-") as folder:
        return run(Case(kind, settings or {}, Path(folder)))

"""Fixtures of the whole suite."""

import os
from collections.abc import Iterator
from types import ModuleType

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes with several threads each would only wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def toys() -> Iterator[ModuleType]:
    """Anonymous modalities: alpha (a series), beta (a picture), gamma (a padded sequence of any length)."""
    import toy
    from mbt_core import registry

    registry().register(toy, "toy")
    try:
        yield toy
    finally:
        registry().unregister(toy)

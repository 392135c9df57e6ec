"""Fixtures of the whole suite."""

from collections.abc import Iterator
from types import ModuleType

import pytest


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

"""Fixtures that tests/cli and tests/e2e share: made once a session, whichever asks first."""

import os
from pathlib import Path
from typing import Any

import pytest

from small import make_small_demo, tiny_run


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest of the small demo. Not to be changed."""
    return make_small_demo(tmp_path_factory.getbasetemp() / "small_demo")


@pytest.fixture(scope="session")
def run(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny trained run on the small demo. Not to be changed."""
    from mbt_core.run import load

    folder = tmp_path_factory.getbasetemp() / "small_run"
    return load(folder) if folder.exists() else tiny_run(demo, folder)


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of the recipe `demo`, for slow tests: that in the folder MBT_DEMO_RUN, or trained here in minutes."""
    from mbt_core.config.recipes import assemble
    from mbt_core.run import load, train

    if folder := os.environ.get("MBT_DEMO_RUN"):
        return load(folder)
    return train(assemble("rgb,audio")[0], tmp_path_factory.mktemp("demo") / "run")

import pytest

from small_fixtures import demo, demo_run, run

__all__ = ["demo", "demo_run", "elsewhere", "run"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Whatever is written without a place of its own lands in the test's folder."""
    monkeypatch.chdir(tmp_path)

import pytest

from small_fixtures import demo, run

__all__ = ["demo", "elsewhere", "run"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Whatever is written without a place of its own lands in the test's folder."""
    monkeypatch.chdir(tmp_path)

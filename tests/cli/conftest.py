import pytest

from small import clips_of
from small_fixtures import demo, run

__all__ = ["clip", "demo", "elsewhere", "run"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Whatever is written without a place of its own lands in the test's folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def clip(demo):
    """The first file of the small demo's test split."""
    return clips_of(demo)[0]

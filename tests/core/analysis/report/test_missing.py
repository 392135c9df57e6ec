"""The curves of missing modalities as files: which metric is drawn, and what is left where there is none."""

from dataclasses import asdict

import pytest

from mbt_core.analysis.report import missing
from mbt_core.analysis.report.missing import drawn_curves, write_missing
from mbt_core.config import HeadConfig
from mbt_core.evaluate.missing_modalities import Point
from mbt_core.evaluate.table import About

HEAD = HeadConfig(tasks={"size": 1}, task="regression")


def about(*metrics):
    points = [Point("alpha", i / (len(metrics) - 1), 4, 0, 0, 0, of) for i, of in enumerate(metrics)]
    return About(missing=[asdict(point) for point in points])


@pytest.fixture
def left(monkeypatch):
    """Says what an evaluation left."""
    return lambda of: monkeypatch.setattr(missing, "read_about", lambda folder: of)


def test_the_first_metric_that_all_points_have(tmp_path, left):
    of = about({"size/r2": 0.5, "size/mae": 1.0}, {"size/mae": 2.0})
    left(of)
    assert [path.name for path in write_missing(tmp_path, HEAD)] == ["missing.csv", "missing.png", "missing.svg"]
    assert "mae" in (tmp_path / "missing.svg").read_text()
    assert "alpha" in (tmp_path / "missing.csv").read_text()
    assert [drawn.title for drawn in drawn_curves(of, HEAD)] == ["size/mae"]


def test_without_such_a_metric_there_is_a_table_alone(tmp_path, left):
    of = about({"size/r2": 0.5}, {"size/mae": 2.0})
    left(of)
    assert write_missing(tmp_path, HEAD) == [tmp_path / "missing.csv"]
    assert [path.name for path in tmp_path.iterdir()] == ["missing.csv"]
    assert drawn_curves(of, HEAD) == []

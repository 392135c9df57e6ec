"""``mbt train`` and ``mbt eval`` leave a report; ``mbt report`` writes it again."""

import shutil

import pytest

from browser import look_at, needs_browser
from small import mbt, tiny_sets


@pytest.fixture
def copied(run, tmp_path):
    return shutil.copytree(run.path, tmp_path / "run")


def test_training_leaves_a_report(demo, tmp_path):
    sets = [
        word for setting in tiny_sets("audio", "train.steps=2", "train.eval_every=2") for word in ("--set", setting)
    ]
    done = mbt("train", "--modalities", "audio", "--data", demo, "--out", tmp_path / "run", *sets)
    assert done.err.endswith(f"wrote {tmp_path / 'run/report.html'}\n")
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert "Task kind" in page
    assert "Where it looks" in page


@pytest.mark.slow
def test_evaluations_leave_reports_of_their_own(copied, demo):
    own = copied / "predictions.parquet"
    before = own.read_bytes()
    done = mbt("eval", copied, "--split", "val", "--data", demo, "--json")
    folder = copied / "eval-small-val"
    assert done.err == f"wrote {folder / 'report.html'}\n"
    assert done.out.startswith("{")
    assert {path.name for path in folder.iterdir()} == {"predictions.parquet", "report.html"}
    assert own.read_bytes() == before
    assert "eval-small-val" in (folder / "report.html").read_text(encoding="utf-8")
    done = mbt("eval", copied, "--subsets")
    assert done.err == f"wrote {copied / 'report.html'}\n"
    page = (copied / "report.html").read_text(encoding="utf-8")
    assert "What adding a modality does" in page
    assert "rgb+audio" in page


@needs_browser
@pytest.mark.parametrize("width", [390, 1400])
def test_the_report_of_real_clips_in_a_browser(copied, tmp_path, width):
    done = mbt("report", copied)
    assert done.out == f"wrote {copied / 'report.html'}\n"
    (tmp_path / "browser").mkdir()
    seen = look_at((copied / "report.html").read_text(encoding="utf-8"), width, tmp_path / "browser")
    assert seen.width <= width
    assert seen.images == seen.shown >= 10
    assert seen.requests == 0
    assert seen.complaints == []

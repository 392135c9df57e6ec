"""The page on signals: its snippet makes the manifest that it says, and its commands train on it."""

import numpy as np
import pytest

import mbt_core as mbt
from pages import BLOCK, DOCS
from small import read_csv, tiny_run

CLASSES = ("Standing", "Walking", "Running", "Badminton")


@pytest.fixture
def arrays(tmp_path, monkeypatch):
    """The array file, with recordings of the page's layout: the class is how fast and how far both sensors swing."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    found = {}
    for split, count in (("train", 40), ("test", 40)):
        labels = np.arange(count) % 4
        hertz = np.array([0, 1, 2, 4])[labels, None, None]
        swing = np.sin(2 * np.pi * hertz * np.arange(100) / 10 + rng.uniform(0, 2 * np.pi, (count, 3, 1)))
        for name in ("accelerometer", "gyroscope"):
            noise = rng.normal(0, 0.1, (count, 3, 100))
            found[f"{name}_{split}"] = (2 * labels[:, None, None] * swing + noise).astype(np.float32)
        found[f"label_{split}"] = np.array(CLASSES)[labels]
    np.savez("basic_motions.npz", **found)
    return found


def test_the_snippet_makes_a_manifest(arrays, tmp_path):
    code = next(code for language, _, code in BLOCK.findall((DOCS / "signals.md").read_text()) if language == "python")
    exec(compile(code, "signals.md", "exec"), {})
    rows = read_csv(tmp_path / "motions.csv")
    assert [row["split"] for row in rows] == ["train"] * 40 + ["test"] * 40
    assert [row["label"] for row in rows if row["split"] == "test"] == [*CLASSES] * 10
    np.testing.assert_array_equal(np.load(tmp_path / rows[41]["gyro"]), arrays["gyroscope_test"][1])
    run = tiny_run(tmp_path / "motions.csv", tmp_path / "run", modalities="accel=signal,gyro=signal")
    accel = run.experiment.modalities["accel"]
    assert (accel.channels, accel.seconds, len(accel.mean)) == (3, 100, 3)
    assert run.results.keys() >= {"top1", "top1[accel]", "top1[gyro]"}


@pytest.mark.slow
@pytest.mark.usefixtures("arrays")
def test_the_page(run_page, tmp_path):
    run_page("signals.md")
    assert mbt.load("runs/motions").results["top1"] >= 0.95
    assert mbt.load("runs/pictures").experiment.modalities["gyro"].view == "spectrogram"

"""``mbt train --folds`` on the command line."""

import json
import statistics

import numpy as np
import pyarrow.parquet as pq
import pytest

from mbt_core.run import load
from small import flags_of_signals, mbt, read_csv, write_csv

TINY = (
    "model.backbone={dim: 16, depth: 2, heads: 2}",
    "model.fusion.layer=1",
    "train.steps=4",
    "train.batch_size=8",
    "data.workers=0",
)


@pytest.fixture
def flags(tmp_path):
    """Of an experiment on 20 rows of two signals, without splits; one value of `accel` is far from all others."""
    cells = [{"who": f"p{number // 4}"} for number in range(20)]
    return flags_of_signals(tmp_path, cells, TINY, {"accel7.npy": 1000})


def test_it_trains_shows_and_goes_on(flags, tmp_path):
    out = tmp_path / "cv"
    words = ["train", *flags, "--set", "data.group=who", "--folds", 2, "--out", out]
    done = mbt(*words)
    assert done.code == 0, done.err
    assert "2 folds of 20 rows: each run is scored on about 10\n" in done.err
    assert "[2/2] fold 1, seed 0: top1 " in done.err
    assert "val: each row once, by the fold that was not trained on it" in done.out
    assert "95 % interval" in done.out
    document = json.loads((out / "results.json").read_text())
    each = [fold["splits"]["val"]["metrics"]["top1"] for fold in document["folds"]]
    assert document["splits"]["val"]["top1"]["mean"] == pytest.approx(statistics.fmean(each))
    people = {}
    for row in pq.read_table(out / "predictions.parquet").to_pylist():
        people.setdefault(row["group"], []).append((row["fold"], row["id"]))
    assert all(len({fold for fold, _ in rows}) == 1 and len(rows) == 4 for rows in people.values())
    # what is far off counts in the mean of the fold that was trained on it, and in no other
    [(fold, _)] = [pair for pairs in people.values() for pair in pairs if pair[1] == "7"]
    means = [load(out / f"fold{number}").experiment.modalities["accel"].mean for number in range(2)]
    assert max(np.abs(means[fold])) < 2 < 50 < min(means[1 - fold])

    assert mbt(*words).code == 2
    before = {path: path.stat().st_mtime_ns for path in out.glob("fold*/**/*")}
    for again in ([*words, "--resume", out], ["train", "--resume", out, "--device", "cpu"]):
        done = mbt(*again)
        assert done.code == 0, done.err
        assert "2 folds, 2 finished already" in done.err
    assert {path: path.stat().st_mtime_ns for path in out.glob("fold*/**/*")} == before
    assert "runs in it: fold0, fold1" in mbt("eval", out).err


def test_a_failing_fold_is_exit_1(flags, tmp_path):
    # a row of which nothing can be read: above the limit of what may be missing in the fold that holds it
    rows = read_csv(tmp_path / "data.csv")
    (tmp_path / "accel7.npy").unlink()
    (tmp_path / "gyro7.npy").unlink()
    write_csv(tmp_path / "data.csv", rows)
    done = mbt(
        "train",
        *flags,
        "--set",
        "data.max_missing=0.06",
        "--set",
        "train.steps=1",
        "--folds",
        2,
        "--out",
        tmp_path / "cv",
    )
    assert done.code == 1
    assert f"2 folds failed (mbt train --resume {tmp_path}/cv tries them again)" in done.err


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        (["--folds", 1], "--folds", 2),
        (["--folds", 21], "21 folds of 20 training rows; expected at most 20", 1),
        (["--folds", 6, "--set", "data.group=who"], "6 folds of 5 training groups; expected at most 5", 1),
        (["--folds", 3, "--set", "data.fold=1"], "leave out --set data.fold=1", 2),
        (["--folds", 3, "--devices", 2, "--show-init"], "leave out --devices, --show-init", 2),
    ],
)
def test_what_cannot_be_is_refused(flags, tmp_path, words, message, code):
    done = mbt("train", *flags, *words, "--out", tmp_path / "cv")
    assert done.code == code
    assert message in done.err
    assert not (tmp_path / "cv").exists()


def test_a_launcher_is_refused(flags, tmp_path, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    done = mbt("train", *flags, "--folds", 3, "--out", tmp_path / "cv")
    assert done.code == 2
    assert "a launcher has started several that belong together" in done.err
    assert not (tmp_path / "cv").exists()


def test_folds_of_nothing(tmp_path):
    done = mbt("train", "--resume", tmp_path, "--folds", 3)
    assert (done.code, done.err) == (
        2,
        f"Error: {tmp_path} holds no folds: it has no folds.yaml; --folds with --out begins some\n",
    )

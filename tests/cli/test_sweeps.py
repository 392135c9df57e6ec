"""``mbt compare`` and ``mbt transfer`` on the command line."""

import json
import re
import shlex
import subprocess
import sys
import time

import pytest

from mbt_core.training.state import FILE, read_progress
from small import flags_of_signals, mbt, read_csv

TINY = (
    "model.backbone={dim: 16, depth: 2, heads: 2}",
    "model.fusion.layer=1",
    "train.steps=4",
    "train.eval_every=4",
    "train.batch_size=8",
    "data.workers=0",
)


@pytest.fixture
def flags(tmp_path):
    """Of an experiment on 24 rows of two signals."""
    cells = [{"split": ("train", "test", "train")[number // 2 % 3]} for number in range(24)]
    return flags_of_signals(tmp_path, cells, TINY)


def test_compare_trains_shows_and_goes_on(flags, tmp_path):
    out = tmp_path / "sweep"
    grid = ["compare", "--preset", "modalities", *flags, "--out", out]
    done = mbt(*grid)
    assert done.code == 0, done.err
    assert "3 cells, 0 finished already" in done.err
    assert "[3/3] modalities accel+gyro, seed 0: top1 " in done.err
    assert all(name in done.out for name in ("accel+gyro", "GFLOPs", "clips/s"))
    assert {p.name for p in out.iterdir()} >= {"cells", "results.csv", "results.md"}
    again = mbt(*grid, "--json", "--quiet")
    assert (again.code, again.err) == (0, "")
    document = json.loads(again.out)
    assert [point["labels"]["modalities"] for point in document["points"]] == ["accel", "gyro", "accel+gyro"]
    assert all(cell["status"] == "finished" and "top1" in cell["metrics"] for cell in document["cells"])
    more = mbt(*grid, "--seeds", 2, "--dry-run")
    assert len(more.out.splitlines()) == 3
    assert all("seed=1" in line for line in more.out.splitlines())


@pytest.mark.slow  # a process of its own, killed
def test_killed_and_started_again_it_loses_nothing(flags, tmp_path):
    grid = ["compare", "--preset", "modalities", *flags, "--set", "train.steps=400", "--set", "train.eval_every=10"]
    grid = [*map(str, grid), "--out", str(tmp_path / "sweep")]
    first, second, third = (
        tmp_path / "sweep/cells" / f"modalities={n},seed=0" for n in ("accel", "gyro", "accel+gyro")
    )
    process = subprocess.Popen([sys.executable, "-m", "mbt_cli", *grid], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 240
    while not (second / "state" / FILE).exists() and time.monotonic() < until and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    said = process.communicate()[1]
    assert (second / "state").exists(), said
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    reached = read_progress(second / "state")
    assert read_progress(first / "state").finished
    assert reached is None or not reached.finished
    assert not third.exists()

    done = mbt(*grid)
    assert done.code == 0, done.err
    assert "3 cells, 1 finished already" in done.err
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before
    unbroken = mbt(*grid[:-1], tmp_path / "unbroken")
    assert unbroken.code == 0, unbroken.err
    killed, whole = (read_csv(tmp_path / name / "results.csv") for name in ("sweep", "unbroken"))
    for rows in (killed, whole):
        for row in rows:
            assert row.pop("status") == "finished"
            row.pop("clips_per_second")
    assert killed == whole


def test_a_printed_command_trains_a_cell(flags, tmp_path):
    grid = ["compare", "--over", "model.fusion.strategy=bottleneck,late", *flags, "--out", tmp_path / "sweep"]
    first, second = mbt(*grid, "--dry-run").out.splitlines()
    assert not (tmp_path / "sweep").exists()
    done = mbt(*shlex.split(first)[1:])
    assert done.code == 0, done.err
    assert mbt(*grid, "--dry-run").out.splitlines() == [second]


def test_a_failing_cell_is_exit_1(flags, tmp_path):
    # a rate so high that the loss is no number
    rates = ["--over", "train.lr=0.001,1e30", "--set", "train.optimizer=sgd"]
    done = mbt("compare", *rates, *flags, "--out", tmp_path / "sweep")
    assert done.code == 1
    assert "1 of 2 cells failed" in done.err
    assert "train.lr=1e30,seed=0: the loss is" in done.err
    assert "finished" in (tmp_path / "sweep/results.csv").read_text()
    assert "Failed:" in (tmp_path / "sweep/results.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --over KEY.PATH=V1,V2 or --preset, one of fusion-layer"),
        (["--over", "model.fusion.layer=1,7"], "cell model.fusion.layer=7,seed=0: model.fusion.layer: 7 is above"),
        (["--over", "model.fusion.layr=1"], "Did you mean 'layer'"),
        (
            ["--preset", "fusion-layer", "--over", "model.fusion.layer=0,1"],
            "model.fusion.layer is varied twice, by fus",
        ),
        (["--over", "modalities=1,2"], "modalities=1: expected names"),
        (["--over", "modalities=null,rgb"], "modalities=null: expected names"),
    ],
)
def test_wrong_usage_is_exit_2(flags, words, message):
    done = mbt("compare", *words, *flags)
    assert done.code == 2
    assert message in done.err


def test_a_launcher_is_refused(flags, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    done = mbt("compare", *flags, "--over", "train.lr=0.1,0.2")
    assert done.code == 2
    assert "a launcher has started several that belong together" in done.err


def test_the_commands_as_json(flags):
    done = mbt("compare", "--over", "model.fusion.layer=0,1", *flags, "--dry-run", "--json")
    commands = json.loads(done.out)["commands"]
    assert ["model.fusion.layer=0" in commands[0], "model.fusion.layer=1" in commands[1]] == [True, True]


@pytest.mark.parametrize("empty", ["--tune", "--fractions"])
def test_a_study_of_nothing_is_refused(flags, tmp_path, empty):
    done = mbt("transfer", "--init", "none,vit_tiny_patch16_224", empty, ",", *flags, "--out", tmp_path / "study")
    assert done.code == 2
    assert "no value is given" in done.err


@pytest.mark.slow
def test_transfer_from_an_earlier_run(flags, tmp_path):
    assert mbt("train", *flags, "--out", tmp_path / "run").code == 0
    study = ["transfer", "--init", f"none,{tmp_path / 'run'}", "--tune", "head", "--fractions", "1", *flags]
    study += ["--seeds", 2, "--out", tmp_path / "study"]
    done = mbt(*study)
    assert done.code == 0, done.err
    assert "all starts: dim 16, depth 2, fusion from layer 1" in done.err
    assert "against a fresh start, mean over 1 conditions and 2 seeds" in done.out
    document = json.loads(mbt(*study, "--json", "--quiet").out)
    assert [point["labels"]["init"] for point in document["points"]] == ["none", "run"]
    assert len(document["effects"][0]["differences"]) == 2
    default = mbt("transfer", "--init", f"none,{tmp_path / 'run'}", *flags, "--dry-run", "--out", tmp_path / "more")
    assert len(default.out.splitlines()) == 24
    for number, flag in enumerate((["--cache-lower"], ["--set", "train.cache_lower=true"])):
        place = tmp_path / f"kept{number}"
        kept = mbt(*study[:-1], place, "--tune", "head,all", *flag, "--dry-run").out.splitlines()
        assert len(kept) == 8
        asked = ["=" + re.findall(r"train\.cache_lower=(\w+)", line)[-1] for line in kept]
        assert asked == ["=true" if "train.tune=head" in line else "=false" for line in kept]


def test_transfer_wants_numbers(flags):
    done = mbt("transfer", "--init", "none,x", "--fractions", "all", *flags)
    assert done.code == 2
    assert "--fractions all: expected numbers" in done.err

"""``mbt bench --data`` and ``--world`` by the real command line."""

import json

import pytest

from mbt_core.analysis.measure.scale import GRADIENT
from small import mbt, tiny_sets

TINY = ["-m", "rgb,audio", *(word for setting in tiny_sets() for word in ("--set", setting)), "--device", "cpu"]


def test_what_limits_a_manifest(demo):
    done = mbt("bench", "--data", demo, *TINY, "--seconds", "0.2", "--json")
    assert done.code == 0, done.err
    limit = json.loads(done.out)["limit"]
    assert limit["shared"] is True
    assert limit["reading"]["clips_per_second"] > 0
    assert limit["step"] > 0
    assert 1_000 < limit["reading"]["bytes_per_clip"] < 1_000_000
    assert limit["limiting"] in ("input", "step", "both")
    assert limit["together"] < min(limit["step"], limit["input"])


def test_one_line_and_the_cost_for_people(demo):
    done = mbt("bench", "--data", demo, *TINY, "--seconds", "0.1", "--world", "4")
    assert done.code == 0, done.err
    assert "reading takes" in done.out
    assert "in the first epoch only" in done.out
    assert "on 4 devices" in done.out


@pytest.mark.slow
def test_cost_without_data_or_device():
    """The paper's model on 64 devices; nothing is trained for it."""
    done = mbt("bench", "--world", 64, "--clips", 20_000, "--speed", 100, "--set", "train.batch_size=512", "--json",
               "--set", "train.epochs=50")  # fmt: skip
    assert done.code == 0, done.err
    scale = json.loads(done.out)["scale"]
    assert (scale["world"], scale["batch"], scale["clips"]) == (64, 512, 20_000)
    assert scale["steps"] == -(-50 * 20_000 // 512)
    assert scale["tokens"] == 512 * (8 * 14 * 14 + 50 * 8)
    counted = json.loads(mbt("bench", "--no-time", "--json").out)["strategies"][0]
    assert scale["step_gflops"] == pytest.approx(3 * 512 * counted["gflops"]["all"], rel=0.01)
    assert scale["exchanged_bytes"] == pytest.approx(2 * 63 / 64 * GRADIENT * counted["parameters"]["all"])
    assert scale["seconds"] == pytest.approx(scale["steps"] * 512 / 6400)
    assert scale["bytes_per_second"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--world", 4], "how many clips"),
        (["--clips", 100], "--world N"),
        (
            ["--world", 48, "--clips", 100, "--set", "train.batch_size=64"],
            "of the 48 devices, e.g. 48 or 96",
        ),
        (
            ["--world", 48, "--clips", 9, "--set", "train.batch_size=8"],
            "a multiple of the 48 devices, e.g. 48",
        ),
        (["--world", 4, "--clips", 9, "--plot", "x.png"], "--plot draws GFLOPs; leave out --data"),
        (["--speed", 100], "--world N"),
        (["--world", 4, "--clips", 9, "--speed", 0], "--speed 0: expected clips a second, above 0"),
        (["--data", "here.csv", "--clips", 100], "leave out one"),
        (["--data", "here.csv", "--no-time"], "--no-time"),
        (["--data", "gone.csv"], "gone.csv: no such file"),
    ],
)
def test_options_that_do_not_fit(options, message):
    done = mbt("bench", *options)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1

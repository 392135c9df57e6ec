"""What is said of the channels of array files."""

import json
from pathlib import Path

import numpy as np
import pytest

from core.data.fakes import Series, read, write_csv
from mbt_core.data.channels import Channels, ChannelTally, channel_lines, doubt_of
from mbt_core.data.check import channel_notes, check
from mbt_core.errors import DataError
from mbt_core.media import Clip

RNG = np.random.default_rng(0)


def test_a_channel_that_rises():
    time = 8.38 + 0.01 * np.arange(100) + RNG.uniform(0, 0.002, 100)
    assert "channel 'x' rises all the time: a time or an index?" in doubt_of("x", time.astype(np.float32))
    assert "rises" in doubt_of("x", np.arange(1000) % 256)  # a counter that begins anew
    for samples in (
        np.sin(np.arange(100) / 5),
        np.round(np.arange(100) / 10),
        np.arange(100)[::-1],
        np.zeros(100),
        time[:5],
    ):
        assert doubt_of("x", samples) == ""
    assert doubt_of("x", np.array([np.nan, 1.0])) == ""


def test_a_first_sample_that_is_none():
    samples = RNG.normal(0, 30, 200)
    assert doubt_of("x", samples) == doubt_of("x", np.zeros(100)) == ""
    samples[0] = 20_000
    assert doubt_of("x", samples) == ""  # large, and possible
    samples[0] = 1.57e9
    assert "channel 'x': its first sample is more than 1000 deviations off" in doubt_of("x", samples)


def test_arrays_without_names_and_of_other_dimensions(tmp_path):
    np.save(tmp_path / "a.npy", np.stack([np.arange(50.0), np.sin(np.arange(50))]))
    np.save(tmp_path / "b.npy", np.zeros((2, 3, 4, 5)))
    channels = Channels.of(Clip(tmp_path / "a.npy"))
    assert (channels.count, channels.names, [number for number, _ in channels.doubts]) == (2, (), [0])
    assert Channels.of(Clip(tmp_path / "b.npy")) == Channels()
    tally = ChannelTally()
    tally.add(channels)
    assert channel_lines("s", tally.report()) == [f"s: {channels.doubts[0][1]}"]


class Second(Series):
    """Reads the second channel alone."""

    def channels_of(self, names, count):
        if count < 2:
            raise DataError("there is no second channel")
        return [1]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six files: four of one form, one of another, one that is damaged."""
    rows = []
    for i in range(6):
        lines = [f"{j},{j / 50 + i},{RNG.normal()}" for j in range(60)]
        head = "timestamp,a,b" if i < 4 else "timestamp,a,c"
        (tmp_path / f"{i}.csv").write_text("\n".join([head, *lines]) if i else "a,b\n1,x\n")
        rows.append({"id": f"r{i}", "a": f"{i}.csv", "label": "ab"[i % 2]})
    return write_csv(tmp_path / "m.csv", rows)


def test_the_report_on_a_data_set(data):
    modalities = {"a": Series("a")}
    manifest = read(data, modalities)
    found = check(manifest, modalities)["splits"]["train"]["modalities"]["a"]
    assert json.loads(json.dumps(found)) == found
    left_out = "'timestamp' (a time or an index)"
    assert found["channels"] == [
        {"files": 3, "taken": ["a", "b"], "left_out": left_out},
        {"files": 2, "taken": ["a", "c"], "left_out": left_out},
        {"files": 1, "taken": ["a"], "left_out": "'b' (words)"},
    ]
    assert list(found["doubts"].values()) == [5]
    lines = channel_lines("a", found)
    assert lines[0] == f"a: channels a, b; left out: {left_out}"
    assert lines[-1].startswith("a: channel 'a' rises all the time")
    assert set(channel_notes(manifest, modalities)) == set(lines)


def test_channels_that_are_not_chosen_are_not_doubted(data):
    modalities = {"a": Second("a")}
    lines = channel_notes(read(data, modalities), modalities)
    assert "a: channels b; left out: 'a' (not chosen), 'timestamp' (a time or an index)" in lines
    assert not any("rises" in line for line in lines)

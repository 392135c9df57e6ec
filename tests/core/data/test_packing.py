"""Packing: a folder holds the shards of one manifest, and no member that reading would refuse."""

import json
import re

import numpy as np
import pytest

from core.data import fakes
from mbt_core.config import DataConfig
from mbt_core.data import packing
from mbt_core.data.manifest import Manifest
from mbt_core.errors import ConfigError
from mbt_core.media import MediaError, open_clip
from mbt_core.media.shards import open_shard


@pytest.fixture(autouse=True)
def _no_open_shards():
    yield
    open_shard.cache_clear()


@pytest.fixture
def data(tmp_path):
    return fakes.write_data(tmp_path / "data", 6)


def packed(manifest, out, **settings):
    reads = fakes.reads_of(fakes.four())
    return packing.pack(manifest, reads, DataConfig(), out, short_side=48, window=0.4, workers=1, **settings)


def content(folder):
    """Name of each file -> what is in it; reports name their folder."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.name != "report.json" and path.suffix != ".tmp"
    }


def changed_label(data):
    data.write_text(data.read_text().replace("even", "straight"))


def changed_span(data):
    lines = data.read_text().splitlines()
    data.write_text("\n".join([f"{lines[0]},start", *(f"{line},{i / 100}" for i, line in enumerate(lines[1:]))]))


def changed_classes(data):
    (data.parent / "manifest.classes.json").write_text(json.dumps({"label": ["odd", "even"]}))


@pytest.mark.parametrize("change", [changed_label, changed_span, changed_classes])
def test_other_cells_or_classes_are_another_manifest(data, tmp_path, change):
    packed(data, tmp_path / "out", shard_size=3, part=(0, 2))
    change(data)
    with pytest.raises(ConfigError, match=r"another manifest \(cells or classes differ\); choose another --out"):
        packed(data, tmp_path / "out", shard_size=3, part=(1, 2))


def test_rows_without_names_keep_those_of_their_paths(data, tmp_path):
    lines = [line.split(",") for line in data.read_text().splitlines()]
    at = lines[0].index("id")
    data.write_text("\n".join(",".join(cells[:at] + cells[at + 1 :]) for cells in lines))
    packed(data, tmp_path / "out", shard_size=3)
    found = [Manifest.read(path, fakes.reads_of(fakes.four()), DataConfig()) for path in (data, tmp_path / "out")]
    assert found[0].ids == found[1].ids
    assert found[0].row(0).id == found[1].row(0).id == lines[1][lines[0].index("path")]


def test_parts_may_begin_at_the_same_time(data, tmp_path, monkeypatch):
    """Another part writes the same between this one's look at the folder and its writing."""
    changed_classes(data)
    packed(data, tmp_path / "whole", shard_size=3)
    out, written = tmp_path / "out", packing.write_atomically
    out.mkdir()
    (out / "classes.json").write_bytes((tmp_path / "whole/classes.json").read_bytes())
    (out / ".pack.json.1-2.tmp").touch()

    def late(path, write):
        monkeypatch.setattr(packing, "write_atomically", written)
        packed(data, out, shard_size=3, part=(1, 2))
        written(path, write)

    monkeypatch.setattr(packing, "write_atomically", late)
    packed(data, out, shard_size=3, part=(0, 2))
    assert content(out) == content(tmp_path / "whole")


def test_what_is_too_large_for_a_member_is_unreadable(data, tmp_path, monkeypatch):
    np.save(data.parent / "3.npy", np.zeros((1, 9000), np.float32))
    monkeypatch.setattr(packing, "LARGEST", 20_000)
    report = packed(data, tmp_path / "out")
    message = r"3\.npy: 36,128 bytes to pack, expected at most 20,000: cut it into several files"
    assert report.unreadable == 1
    assert re.search(message, report.examples[0])
    manifest = Manifest.read(tmp_path / "out", fakes.reads_of(fakes.four()), DataConfig())
    with open_clip(manifest.row(3).sources["a"].path) as clip, pytest.raises(MediaError, match=message):
        clip.array()
    with open_clip(manifest.row(1).sources["a"].path) as clip:
        assert clip.shape == (1, 5)


@pytest.mark.parametrize(("side", "size"), [(24, (24, 32)), (256, (48, 64))])
def test_frames_are_made_smaller_and_never_larger(data, tmp_path, side, size):
    reads = fakes.reads_of(fakes.four())
    packing.pack(data, reads, DataConfig(), tmp_path / "out", short_side=side, workers=1)
    shards = Manifest.read(tmp_path / "out", reads, DataConfig())
    with open_clip(shards.row(0).sources["p"].path) as clip:
        assert clip.size == size

"""Copies of files in several splits."""

import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.data import fakes
from mbt_core.config import DataConfig
from mbt_core.data import duplicates
from mbt_core.data.duplicates import find_repeats, repeated, tell
from mbt_core.data.manifest import Manifest
from mbt_core.data.packing import pack
from mbt_core.media import shards


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MBT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def read(folder: Path, rows: list[str], columns: str = "id,a,split", **settings: Any) -> Manifest:
    (folder / "m.csv").write_text("\n".join([columns, *rows]) + "\n")
    reads = {name: "array" for name in columns.split(",") if name in ("a", "b")}
    return Manifest.read(folder / "m.csv", reads, DataConfig(**settings))


def repeats(manifest: Manifest) -> list[tuple[tuple[str, str], int, list[tuple[str, str]]]]:
    found, complete = find_repeats(manifest)
    assert complete
    return [(r.splits, len(r.rows), [pair.ids for pair in r.pairs]) for r in found]


def test_copies_in_other_splits_are_found(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("x", "y", "z", "w"):
        (tmp_path / f"{name}.npy").write_bytes(rng.bytes(50_000))
    for name in ("copy", "second"):
        shutil.copy(tmp_path / "x.npy", tmp_path / f"{name}.npy")
    almost = bytearray((tmp_path / "y.npy").read_bytes())
    almost[10_000] ^= 1  # in none of the parts that are compared first
    (tmp_path / "almost.npy").write_bytes(almost)
    (tmp_path / "empty1.npy").touch()
    (tmp_path / "empty2.npy").touch()
    manifest = read(
        tmp_path,
        ["1,x.npy,train", "2,y.npy,train", "3,z.npy,train", "8,empty1.npy,train", "4,copy.npy,test",
         "5,almost.npy,test", "6,second.npy,val", "7,z.npy,val", "9,empty2.npy,test", "10,gone.npy,test",
         "11,gone2.npy,val", "12,w.npy,dev"],
    )  # fmt: skip
    assert repeats(manifest) == [
        (("train", "val"), 2, [("1", "6"), ("3", "7")]),
        (("train", "test"), 1, [("1", "4")]),
        (("val", "test"), 1, [("6", "4")]),
    ]
    lines = tell(found.as_json() for found in find_repeats(manifest)[0])
    assert lines[1].startswith(
        "1 of 4 rows of test repeats files of train, e.g. '4' and '1': copy.npy is a copy of x.npy. Remove them"
    )
    assert "'6' and '1': second.npy is a copy of x.npy" in lines[0]


def test_copies_within_a_split_do_not_matter(tmp_path):
    for name in ("x", "y", "z"):
        (tmp_path / f"{name}.npy").write_bytes(b"same")
    (tmp_path / "other.npy").write_bytes(b"else")
    manifest = read(tmp_path, ["1,x.npy,train", "2,y.npy,train", "3,z.npy,train", "4,other.npy,test"])
    assert repeats(manifest) == []


def test_spans_of_one_file_count_where_they_overlap(tmp_path):
    (tmp_path / "x.npy").write_bytes(b"one")
    (tmp_path / "copy.npy").write_bytes(b"one")
    manifest = read(
        tmp_path,
        ["1,x.npy,train,0,10", "2,x.npy,train,20,30", "3,x.npy,test,10,20", "4,copy.npy,test,29,40", "5,x.npy,test,5,6",
         "6,x.npy,test,30,", "7,copy.npy,val,50,"],
        "id,a,split,start,end",
    )  # fmt: skip
    assert repeats(manifest) == [
        (("train", "test"), 2, [("2", "4"), ("1", "5")]),
        (("val", "test"), 1, [("7", "6")]),
    ]


def test_any_column_and_a_folder_by_its_path(tmp_path):
    (tmp_path / "frames").mkdir()
    (tmp_path / "x.npy").write_bytes(b"one")
    (tmp_path / "y.npy").write_bytes(b"one")
    manifest = read(tmp_path, ["1,frames,x.npy,train", "2,frames,,val", "3,,y.npy,test", "4,,,test"], "id,a,b,split")
    assert repeats(manifest) == [
        (("train", "val"), 1, [("1", "2")]),
        (("train", "test"), 1, [("1", "3")]),
    ]


def test_only_what_may_be_the_same_is_read_and_only_once(tmp_path, monkeypatch, cache):
    read_files = []
    for part in ("_sample", "_whole"):
        digest = getattr(duplicates, part)
        monkeypatch.setattr(
            duplicates,
            part,
            lambda path, size, d=digest, p=part: read_files.append((p, Path(path).stem)) or d(path, size),
        )
    for name, content in {"a": b"1" * 99, "b": b"2" * 99, "c": b"3" * 98, "d": b"1" * 99, "e": b"4" * 98}.items():
        (tmp_path / f"{name}.npy").write_bytes(content)
    rows = ["1,a.npy,train", "2,b.npy,test", "3,c.npy,train", "4,d.npy,test", "5,e.npy,train"]
    assert repeats(read(tmp_path, rows)) == [(("train", "test"), 1, [("1", "4")])]
    assert sorted(read_files) == [
        ("_sample", "a"),
        ("_sample", "b"),
        ("_sample", "d"),
        ("_whole", "a"),
        ("_whole", "d"),
    ]
    read_files.clear()
    assert repeats(read(tmp_path, rows)) == [(("train", "test"), 1, [("1", "4")])]
    assert read_files == []
    (tmp_path / "d.npy").write_bytes(b"5" * 99)
    os.utime(tmp_path / "d.npy", ns=(1, 1))
    assert repeats(read(tmp_path, rows)) == []
    assert read_files == [("_sample", "d")]
    assert sqlite3.connect(cache / duplicates.FILE).execute("SELECT count(*) FROM digests").fetchone() == (5,)


@pytest.mark.parametrize("spoilt", [".", duplicates.FILE])
def test_without_a_cache_all_is_found(tmp_path, cache, spoilt):
    (cache / spoilt).parent.mkdir(exist_ok=True)
    (cache / spoilt).write_bytes(b"no data base" * 999)
    (tmp_path / "x.npy").write_bytes(b"one")
    (tmp_path / "y.npy").write_bytes(b"one")
    assert len(repeats(read(tmp_path, ["1,x.npy,train", "2,y.npy,test"]))) == 1


def test_a_time_limit_is_told(tmp_path):
    (tmp_path / "x.npy").write_bytes(b"one")
    (tmp_path / "y.npy").write_bytes(b"one")
    manifest = read(tmp_path, ["1,x.npy,train", "2,y.npy,test"])
    assert repeated(manifest, -1.0) == [
        f"not all files were compared in -1 s; mbt data check {tmp_path / 'm.csv'} compares all"
    ]
    assert len(repeated(manifest, 30.0)) == 1


def test_nothing_outside_a_confining_root_is_read(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "secret.npy").write_bytes(b"one")
    (tmp_path / "root/x.npy").write_bytes(b"one")
    (tmp_path / "root/link.npy").symlink_to(tmp_path / "secret.npy")
    rows = ["1,x.npy,train", "2,link.npy,test"]
    assert len(repeats(read(tmp_path / "root", rows))) == 1
    assert repeats(read(tmp_path / "root", rows, confine=True)) == []


def test_members_of_shards(tmp_path):
    for name in ("x", "y", "z"):
        np.save(tmp_path / f"{name}.npy", np.full((1, 5), float(name == "z"), np.float32))
    (tmp_path / "m.csv").write_text("id,a,split,label\n1,x.npy,train,k\n2,z.npy,train,k\n3,y.npy,test,k\n")
    modalities = {"a": fakes.four()["a"]}
    pack(tmp_path / "m.csv", fakes.reads_of(modalities), DataConfig(), tmp_path / "out", workers=1)
    shards._there.clear()
    assert repeats(fakes.read(tmp_path / "out", modalities)) == [(("train", "test"), 1, [("1", "3")])]

"""Shards by URL: what they give is what they give here, and little more than that goes over the network."""

import json
import shutil

import fsspec
import numpy as np
import pytest
import torch

from core.data import fakes
from mbt_core.config import DataConfig
from mbt_core.data.cache import Cache
from mbt_core.data.check import check
from mbt_core.data.collate import Collate
from mbt_core.data.dataset import ClipDataset, Draw
from mbt_core.data.loader import make_loader
from mbt_core.data.manifest import Manifest
from mbt_core.data.missing import check_missing
from mbt_core.data.packing import pack
from mbt_core.data.sampler import EvalSampler
from mbt_core.data.shards import located
from mbt_core.errors import ConfigError, DataError
from mbt_core.io import remote
from mbt_core.media import exists, open_clip, shards
from mbt_core.media.shards import open_shard
from range_server import serving


@pytest.fixture(autouse=True)
def _fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("MBT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0))
    forget()
    yield
    forget()


def forget():
    open_shard.cache_clear()
    remote.about.cache_clear()
    shards._there.clear()


MODALITIES = fakes.four(p=0.2, s=0.2)


def packed(data, out, short_side=48):
    pack(
        data, fakes.reads_of(MODALITIES), DataConfig(), out, short_side=short_side, window=0.4, workers=1, shard_size=4
    )


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    data = fakes.write_data(folder / "data", 6)
    (folder / "data/manifest.classes.json").write_text(json.dumps({"label": ["odd", "even"]}))
    packed(data, folder / "shards")
    return folder / "shards"


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "web/shards")


@pytest.fixture
def server(folder):
    with serving(folder.parent) as served:
        yield served


def read(path):
    return Manifest.read(path, fakes.reads_of(MODALITIES), DataConfig())


def batches(manifest, workers=0, cache=None, training=True):
    dataset = ClipDataset(manifest, MODALITIES, {}, config=DataConfig(), seed=3, training=training, cache=cache)
    if training:
        return [Collate(MODALITIES)([dataset[Draw(epoch, i)] for i in range(6)]) for epoch in range(2)]
    return list(make_loader(dataset, EvalSampler(np.arange(6), 2), workers, torch.device("cpu")))


def assert_same(mine, theirs):
    for one, other in zip(mine, theirs, strict=True):
        assert not one.errors
        torch.testing.assert_close(one.samples, other.samples, rtol=0, atol=0)
        torch.testing.assert_close(one.present, other.present)


def test_the_same_as_here(folder, server):
    here, there = read(folder), read(f"{server.url}/shards")
    assert there.classes == here.classes == {"label": ["odd", "even"]}
    assert [there.row(i).id for i in range(6)] == [here.row(i).id for i in range(6)]
    assert there.confine
    assert_same(batches(there), batches(here))
    assert check_missing(there, "train", 0.0).missing == 0
    found, expected = (check(m)["splits"]["train"]["modalities"] for m in (there, here))
    assert found == expected


@pytest.mark.parametrize("workers", [1, 2])
def test_reading_processes_open_their_own_connections(folder, server, workers):
    there = read(f"{server.url}/shards/")
    expected = batches(read(folder), training=False)
    assert_same(batches(there, training=False), expected)  # connections of this process, which they must not use
    assert_same(batches(there, workers, training=False), expected)


def test_a_file_system_without_a_server(folder):
    files = fsspec.filesystem("memory")
    files.put(str(folder), "/bucket/shards", recursive=True)
    try:
        assert_same(batches(read("memory://bucket/shards")), batches(read(folder)))
    finally:
        files.rm("/bucket", recursive=True)


def test_a_url_of_a_folder_here_is_that_folder(folder):
    assert located(f"file://{folder}") == folder
    assert len(read(f"file://{folder}")) == 6


def test_only_what_is_needed_is_read(folder, server):
    there = read(f"{server.url}/shards")
    tar = folder / "shard-000000.tar"
    assert server.of(".tar") == server.of(".npy") == []
    server.asked.clear()
    with open_clip(there.row(0).sources["p"].path) as clip:
        pictures = clip.frames([0.0, 0.1, 0.1, 0.3], short_side=48)
    assert pictures.shape == (4, 48, 64, 3)
    assert len(server.of(".tar", "HEAD")) == len(server.of(".index.npy")) == 1
    index = np.load(folder / "shard-000000.index.npy")
    sizes = {bytes(r["member"]).decode(): int(r["length"]) + 512 for r in index}
    members = ["json", "path.000000.jpg", "path.000002.jpg", "path.000007.jpg"]
    assert sorted(server.of(".tar")) == sorted(sizes[f"000000000.{m}"] for m in members)
    assert sum(server.of(".tar")) < tar.stat().st_size / 5


def test_what_is_copied_is_not_asked_for_again(folder, server):
    expected = batches(read(f"{server.url}/shards"))
    forget()
    server.asked.clear()
    assert_same(batches(read(f"{server.url}/shards")), expected)
    assert server.of(".parquet") == server.of(".npy") == []
    assert len(server.of("pack.json")) == 1


def test_what_has_changed_is_copied_anew(folder, server, tmp_path):
    read(f"{server.url}/shards").row(0)
    before = open_clip(read(f"{server.url}/shards").row(0).sources["p"].path).frames([0.0])
    shutil.rmtree(folder)
    data = fakes.write_data(tmp_path / "data", 5)
    fakes.write_movie(tmp_path / "data/0.mp4", 1.0)
    packed(data, folder, short_side=24)
    forget()
    there = read(f"{server.url}/shards")
    assert len(there) == 5
    assert there.classes == {"label": ["even", "odd"]}
    after = open_clip(there.row(0).sources["p"].path).frames([0.0])
    assert (before.shape, after.shape) == ((1, 48, 64, 3), (1, 24, 32, 3))
    assert len(list(remote.copy_of(f"{server.url}/shards").glob("shard-000000.*.index.npy"))) == 1


def test_other_labels_of_the_same_files_are_copied_anew(folder, server, tmp_path):
    data = fakes.write_data(tmp_path / "data", 6)
    for label in ("even", "odd"):
        data.write_text(data.read_text().replace("even", label))
        shutil.rmtree(folder)
        packed(data, folder)
        assert read(f"{server.url}/shards").row(0).labels == {"label": label}


@pytest.mark.slow
def test_decoded_clips_of_shards_elsewhere_are_kept(folder, server, tmp_path):
    there = read(f"{server.url}/shards")
    expected = batches(there)
    cache = Cache(MODALITIES, 60.0, tmp_path / "decoded")
    batches(there, cache=cache)
    server.asked.clear()
    again = batches(there, cache=cache)
    assert server.asked == []
    torch.testing.assert_close([b.samples["p"] for b in again], [b.samples["p"] for b in expected])


def test_its_address_is_written_down(folder, server):
    url = f"{server.url}/shards"
    assert remote.address(f"{url}/") == remote.address(read(url).path) == url
    assert remote.url_of(str(folder)) is None
    assert remote.address(folder) == str(folder)


def test_a_server_may_fail_now_and_then(folder, server):
    there = read(f"{server.url}/shards")
    server.failing = 2
    assert open_clip(there.row(0).sources["p"].path).frames([0.0]).shape == (1, 48, 64, 3)
    server.failing = 9
    with pytest.raises(DataError, match=r"shard-000001\.tar: cannot be read: 503"):
        open_clip(there.row(5).sources["p"].path).has("frames")


@pytest.mark.parametrize("code", [408, 429])
def test_a_server_that_has_too_much_to_do(folder, server, monkeypatch, code):
    paths = [read(f"{server.url}/shards").row(i).sources["p"].path for i in (0, 5)]
    slept = []
    monkeypatch.setattr(remote.time, "sleep", slept.append)
    server.code = code
    for number, (told, waited) in enumerate(((7, 7.0), ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0))):
        server.failing, server.retry_after = 2, told
        assert open_clip(paths[number]).frames([0.0]).shape == (1, 48, 64, 3)
        assert set(slept) == {waited}
        slept.clear()
    forget()
    server.failing, server.retry_after = 2, 3600  # longer than one may wait
    with pytest.raises(DataError, match=rf"shard-000000\.tar: cannot be read: {code}"):
        open_clip(paths[0]).frames([0.0])
    forget()
    server.code, server.failing, server.retry_after = 403, 2, None
    with pytest.raises(DataError, match=r"shard-000000\.tar: cannot be read: 403"):
        open_clip(paths[0]).frames([0.0])
    assert slept == []


def test_a_server_that_does_not_answer(folder, server, monkeypatch):
    there = read(f"{server.url}/shards")
    with open_clip(there.row(0).sources["p"].path, timeout=0.3) as clip:
        assert clip.has("frames")
        server.going.clear()
        with pytest.raises(DataError, match=r"shard-000000\.tar: cannot be read: no answer within 0\.3 s"):
            clip.frames([0.0])
        monkeypatch.setattr(remote, "TIMEOUT", 0.2)
        for ask in (lambda: open_clip(there.row(5).sources["p"].path), lambda: located(f"{server.url}/shards")):
            with pytest.raises(DataError, match=r"cannot be read: no answer within 0\.2 s"):
                ask()
        server.going.set()
        assert clip.frames([0.0]).shape == (1, 48, 64, 3)


def test_an_index_that_comes_after_its_shard(folder, server, tmp_path):
    """Replaced shards of which one was read while they were copied there: nothing of before stays."""
    there = read(f"{server.url}/shards")
    packed(fakes.write_data(tmp_path / "data", 6), tmp_path / "other", short_side=24)
    shutil.copy(tmp_path / "other/shard-000000.tar", folder)
    with pytest.raises(DataError, match="its index is not its own"):
        open_clip(there.row(0).sources["p"].path).frames([0.0])
    shutil.copy(tmp_path / "other/shard-000000.index.npy", folder)
    forget()
    assert open_clip(there.row(0).sources["p"].path).frames([0.0]).shape == (1, 24, 32, 3)


def test_many_small_files_are_copied_in_parts(folder, server, monkeypatch):
    monkeypatch.setattr(remote, "AT_ONCE", 1)
    assert len(read(f"{server.url}/shards")) == 6
    assert len(server.of(".parquet")) == 2


def test_what_is_wrong_is_said(folder, server):
    with pytest.raises(DataError, match=r"/nothing: no pack.json there; expected a folder of shards"):
        located(f"{server.url}/nothing")
    for wrong in ("s3://", "s3://bucket/a?key=1", "http://user:secret@host/a", "s3://bucket/../other"):
        with pytest.raises(ConfigError, match="expected the address of a folder"):
            located(wrong)
    with pytest.raises(ConfigError, match=r"florp://: Protocol not known: florp; expected http"):
        located("florp://bucket/shards")
    fsspec.register_implementation("faked", "no_such_package.Files", clobber=True, errtxt="No x")
    with pytest.raises(ConfigError, match=r"faked://: No x.*pip install 'mbt-fusion\[remote\]'"):
        located("faked://bucket/shards")
    with pytest.raises(ConfigError, match=r"--out .*: shards are written to a folder of this machine"):
        pack(folder.parent / "m.csv", {}, DataConfig(), shards.Path("s3://bucket/shards"))
    (folder / "pack.json").write_text("{")
    with pytest.raises(DataError, match=r"/shards/pack.json: not valid JSON"):
        located(f"{server.url}/shards")


def test_missing_and_damaged_shards(folder, server):
    there = read(f"{server.url}/shards")
    first, last = (there.row(i).sources["p"].path for i in (0, 5))
    (folder / "shard-000001.tar").unlink()
    assert exists(first)
    assert not exists(last)
    forget()
    server.ranges = False
    with pytest.raises(DataError, match=r"its server does not serve ranges of files"):
        open_clip(first).has("frames")
    server.ranges = True
    tar = folder / "shard-000000.tar"
    content = tar.read_bytes()
    tar.write_bytes(content[:3000])
    with pytest.raises(DataError, match=r"shard-000000\.tar: truncated"):
        open_clip(there.row(0).sources["p"].path).frames([0.5])
    forget()
    with pytest.raises(DataError, match=r"is not inside it \(3000 bytes\)"):
        open_clip(first).has("frames")
    tar.write_bytes(content)
    (folder / "shard-000000.index.npy").unlink()
    forget()
    shutil.rmtree(remote.copy_of(f"{server.url}/shards"))
    there = read(f"{server.url}/shards")
    with pytest.raises(DataError, match=r"shard-000000\.index\.npy: there is no such file"):
        open_clip(first).has("frames")
    (folder / "shard-000000.parquet").unlink()
    shutil.rmtree(remote.copy_of(f"{server.url}/shards"))
    with pytest.raises(DataError, match=r"1 of 2 shards are missing"):
        read(f"{server.url}/shards")


def test_cells_do_not_leave_the_copy(folder, server):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "shard-000000.parquet"
    table = pq.read_table(path)
    for cell in ("../other/shard-000000.tar/000000000/path", "/etc/passwd"):
        cells = [cell, *table["path"].to_pylist()[1:]]
        pq.write_table(table.set_column(table.column_names.index("path"), "path", pa.array(cells)), path)
        shutil.rmtree(remote.copy_of(f"{server.url}/shards"), ignore_errors=True)
        with pytest.raises(DataError, match="leaves the root .*, which data.confine forbids"):
            read(f"{server.url}/shards")

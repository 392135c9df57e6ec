"""Packed shards: the same rows, windows and content as from files, and nothing else read from them."""

import io
import json
import math
import os
import shutil
import tarfile
import zlib

import media_files
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from core.data import fakes
from mbt_core.config import DataConfig
from mbt_core.data.cache import Cache
from mbt_core.data.check import check
from mbt_core.data.collate import Collate
from mbt_core.data.dataset import ClipDataset, Draw
from mbt_core.data.manifest import Manifest
from mbt_core.data.missing import check_missing
from mbt_core.data.packing import pack
from mbt_core.data.stats import statistics
from mbt_core.errors import ConfigError, DataError
from mbt_core.media import MediaError, exists, open_clip, shards
from mbt_core.media.shards import INDEX, open_shard

SETTINGS = {"short_side": 48, "quality": 95, "window": 0.4, "workers": 1}


@pytest.fixture(autouse=True)
def _no_open_shards():
    yield
    open_shard.cache_clear()


def packed(manifest, out, modalities=None, config=None, **settings):
    reads = fakes.reads_of(modalities or fakes.four())
    return pack(manifest, reads, config or DataConfig(), out, **(SETTINGS | settings))


def read(path, modalities):
    return fakes.read(path, modalities)


@pytest.fixture
def data(tmp_path):
    return fakes.write_data(tmp_path / "data", 6)


@pytest.fixture(scope="module")
def packed_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    packed(fakes.write_data(folder / "data", 6), folder / "out")
    return folder / "out"


@pytest.fixture
def out(packed_once, tmp_path):
    """A folder of shards of `data` as it is packed by default, to be changed at will."""
    return shutil.copytree(packed_once, tmp_path / "out")


def first_of(folder, column="path"):
    return str(folder / f"shard-000000.tar/000000000/{column}")


def test_rows_are_those_of_the_manifest(data, tmp_path):
    modalities = fakes.four(p=0.2, s=0.2)
    report = packed(data, tmp_path / "out", modalities, shard_size=4)
    assert (report.shards, report.shards_done, report.rows, report.missing, report.unreadable) == (2, 2, 6, 0, 0)
    files, shards = fakes.read(data, modalities), read(tmp_path / "out", modalities)
    assert shards.confine
    assert len(shards) == 6
    assert shards.classes == files.classes
    assert {s: r.tolist() for s, r in shards.splits.items()} == {s: r.tolist() for s, r in files.splits.items()}
    for i in range(6):
        mine, theirs = shards.row(i), files.row(i)
        assert (mine.id, mine.labels) == (theirs.id, theirs.labels)
        assert [s is None for s in mine.sources.values()] == [s is None for s in theirs.sources.values()]
    assert shards.row(5).sources["p"].path == str(tmp_path / "out/shard-000001.tar/000000005/path")
    assert shards.row(5).sources["w"].text == "word 5"


@pytest.mark.parametrize("training", [True, False])
def test_examples_are_those_of_the_files(data, tmp_path, training):
    modalities = fakes.four(p=0.2, s=0.2)
    packed(data, tmp_path / "out", modalities)
    found = []
    for manifest in (fakes.read(data, modalities), read(tmp_path / "out", modalities)):
        dataset = ClipDataset(manifest, modalities, {}, config=DataConfig(), seed=3, training=training)
        found.append([dataset[Draw(epoch, i)][0] for epoch in range(3) for i in range(6)])
    for theirs, mine in zip(*found, strict=True):
        assert (mine.present, mine.error) == (theirs.present, None)
        for name in modalities:
            torch.testing.assert_close(mine.samples[name]["window"], theirs.samples[name]["window"])
            torch.testing.assert_close(mine.samples[name]["drawn"], theirs.samples[name]["drawn"])
        for name in "aw":
            torch.testing.assert_close(mine.samples[name]["x"], theirs.samples[name]["x"])
        difference = mine.samples["p"]["x"].int() - theirs.samples["p"]["x"].int()
        assert difference.abs().max() <= 1  # flat grey: the frames are the same ones
        torch.testing.assert_close(mine.samples["s"]["x"], theirs.samples["s"]["x"], atol=0.02, rtol=0)


def write_span(folder, rate=25, seconds=4.0):
    """One movie of 4 s, of which a row is about the seconds 1 to 1.5; lossless sound at 16 kHz."""
    folder.mkdir()
    frames = media_files.counting(round(rate * seconds))
    tone = media_files.sine(seconds, 16000, 333.0)
    media_files.write_media(folder / "m.mkv", frames, tone, fps=rate, audio_codec="flac")
    row = {"id": "a", "path": "m.mkv", "start": 1.0, "end": 1.5, "label": "x"}
    return fakes.write_csv(folder / "m.csv", [row, {**row, "id": "b", "start": "", "end": ""}])


TWO = {"p": fakes.Pictures("p"), "s": fakes.Sound("s")}


def test_frames_and_sound_within_a_span(tmp_path):
    packed(write_span(tmp_path / "data"), tmp_path / "out", TWO, window=0.75)
    with open_clip(str(tmp_path / "data/m.mkv")) as file, open_clip(first_of(tmp_path / "out")) as clip:
        assert [clip.has(r) for r in ("frames", "waveform", "array", "text")] == [True, True, False, False]
        for reads in ("frames", "waveform"):
            assert clip.duration_of(reads) == file.duration_of(reads)
        assert (clip.duration, clip.frame_rate, clip.sample_rate) == (file.duration, file.frame_rate, 16000)
        assert clip.size == (48, 64)
        times = [1.0, 1.01, 1.04, 1.2, 1.74, 1.1, 2.74]
        mine, theirs = clip.frames(times, short_side=48), file.frames(times, short_side=48)
        assert media_files.shown(mine) == media_files.shown(theirs) == [25, 25, 26, 30, 43, 27, 68 - 56]
        assert np.abs(mine.astype(int) - theirs).max() <= 1
        np.testing.assert_array_equal(clip.frames(times[:1], short_side=24).shape, (1, 24, 32, 3))
        np.testing.assert_array_equal(clip.frames(times[:1], size=(20, 30)).shape, (1, 20, 30, 3))
        since, pictures = clip.frames_between(1.0, 1.08, 48)
        np.testing.assert_allclose(since, [1.0, 1.04, 1.08], atol=1e-3)
        assert media_files.shown(pictures) == [25, 26, 27]
        for start, stop in ((1.0, 1.5), (0.8, 1.0), (1.12345, 2.5)):
            mine = clip.waveform(start, stop, 16000)
            np.testing.assert_array_equal(np.rint(mine * 32768), np.rint(file.waveform(start, stop, 16000) * 32768))
        np.testing.assert_allclose(clip.waveform(1.1, 1.5, 8000), file.waveform(1.1, 1.5, 8000), atol=2e-3)
        for wrong in (lambda: clip.frames([0.5]), lambda: clip.frames([3.0]), lambda: clip.waveform(1.0, 3.0, 16000)):
            with pytest.raises(MediaError, match=r"0\.75 to 2\.75 s were packed.*longer --window"):
                wrong()
        with pytest.raises(MediaError, match="it has no array, only frames, waveform"):
            clip._check_span("array", 0, 1)
    with open_clip(str(tmp_path / "out/shard-000000.tar/000000001/path")) as clip:
        assert media_files.shown(clip.frames([0.0, 3.99, 99.0])) == [0, 99 - 56, 99 - 56]
        assert not clip.waveform(3.9, 5.0, 16000)[2000:].any()
        assert not clip.waveform(-0.5, 0.0, 16000).any()


def test_late_sound_is_sought(tmp_path):
    tone = media_files.sine(60.0, 16000, 333.0)
    media_files.write_media(tmp_path / "s.flac", None, tone, audio_codec="flac")
    fakes.write_csv(tmp_path / "m.csv", [{"id": "a", "path": "s.flac"}])
    packed(tmp_path / "m.csv", tmp_path / "out", {"s": fakes.Sound("s")})
    with open_clip(first_of(tmp_path / "out")) as clip:
        found = clip.waveform(50.0, 51.0, 16000)
    np.testing.assert_allclose(found, tone[0, 800_000:816_000], atol=1e-4)


@pytest.mark.parametrize(("rate", "kept"), [(50, 25), (10, 10)])
def test_frame_rates(tmp_path, rate, kept):
    manifest = write_span(tmp_path / "data", rate, 2.0)
    report = packed(manifest, tmp_path / "out", TWO, fps=25)
    with open_clip(str(tmp_path / "out/shard-000000.tar/000000001/path")) as clip:
        assert len(clip._frames[0]) in (2 * kept, 2 * kept + 1)
        expected = [np.floor(t * kept + 1e-6) * rate / kept for t in (0.0, 0.15, 1.0, 1.59)]
        assert media_files.shown(clip.frames([0.0, 0.15, 1.0, 1.59])) == [int(i) % 56 for i in expected]
    assert report.frames > 3 * kept


def test_other_tools_can_read_them(out, tmp_path):
    with tarfile.open(tmp_path / "out/shard-000000.tar") as tar:
        members = tar.getmembers()
        content = {m.name: tar.extractfile(m).read() for m in members}
    assert all(m.isfile() and m.mtime == 0 for m in members)
    keys = [m.name.partition(".")[0] for m in members]
    assert sorted(set(keys)) == [f"{i:09d}" for i in range(6)]
    assert keys == sorted(keys)  # the members of a key follow each other
    facts = json.loads(content["000000002.json"])
    assert (facts["id"], facts["label"], facts["w"]) == ("row2", "even", "word 2")
    assert content["000000002.w.txt"] == b"word 2"
    assert content["000000000.path.000003.jpg"][:3] == b"\xff\xd8\xff"
    assert content["000000000.path.flac"][:4] == b"fLaC"
    assert np.load(io.BytesIO(content["000000003.a.npy"])).tolist() == [[3, 4, 5, 6, 7]]
    index = np.load(tmp_path / "out/shard-000000.index.npy", allow_pickle=False)
    raw = (tmp_path / "out/shard-000000.tar").read_bytes()
    assert [bytes(m).decode() for m in index["member"]] == [m.name for m in members]
    for record in index:
        assert raw[record["offset"] : record["offset"] + record["length"]] == content[bytes(record["member"]).decode()]


def test_folders_of_pictures_and_subtitles(tmp_path):
    for channel in "uv":
        (tmp_path / "flow" / channel).mkdir(parents=True)
        for i, picture in enumerate(media_files.counting(5)):
            media_files.write_image(tmp_path / "flow" / channel / f"{i}.png", picture, "gray")
    (tmp_path / "video").mkdir()
    for i, picture in enumerate(media_files.counting(30)):
        media_files.write_image(tmp_path / "video" / f"frame_{i + 1:04d}.jpg", picture, "yuvj420p")
    (tmp_path / "t.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nhello\n")
    row = {"id": "x", "a": "flow", "p": "video", "w.path": "t.srt", "fps": 10, "start": 0.5, "end": 1.5}
    fakes.write_csv(tmp_path / "m.csv", [row])
    modalities = {name: m for name, m in fakes.four().items() if name != "s"}
    report = packed(tmp_path / "m.csv", tmp_path / "out", modalities)
    assert report.unreadable == 0
    assert read(tmp_path / "out", modalities).row(0).fps == {}
    with open_clip(first_of(tmp_path / "out", "a")) as clip, open_clip(str(tmp_path / "flow")) as folder:
        np.testing.assert_array_equal(clip.array(), folder.array())
        np.testing.assert_array_equal(clip.array([1, 3]), folder.array([1, 3]))
        assert clip.shape == folder.shape
    with open_clip(first_of(tmp_path / "out", "w.path")) as clip:
        assert clip.text(0.0, 1.5) == "hello"
        assert clip.text(3.0, 4.0) == ""
    with open_clip(first_of(tmp_path / "out", "p")) as clip:
        assert media_files.shown(clip.frames([0.5, 1.0, 1.49])) == [5, 10, 14]
        assert (clip.frame_rate, clip.duration) == (10.0, 3.0)


def test_it_goes_on_where_it_was_interrupted(data, tmp_path):
    whole = packed(data, tmp_path / "whole", shard_size=2)
    packed(data, tmp_path / "out", shard_size=2)
    (tmp_path / "out/shard-000001.parquet").unlink()
    (tmp_path / "out/shard-000001.tar").write_bytes(b"half")
    with pytest.raises(DataError, match=r"1 of 3 shards are missing, e\.g\. shard-000001; go on with mbt data pack"):
        read(tmp_path / "out", fakes.four())
    before = {n: (tmp_path / f"out/shard-00000{n}.tar").stat().st_mtime_ns for n in (0, 2)}
    steps = []
    report = packed(data, tmp_path / "out", shard_size=2, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 1)]
    assert before == {n: (tmp_path / f"out/shard-00000{n}.tar").stat().st_mtime_ns for n in (0, 2)}
    assert (report.rows, report.frames, report.nbytes) == (whole.rows, whole.frames, whole.nbytes)
    assert same(tmp_path / "whole", tmp_path / "out")


def same(one, other):
    names = sorted(path.name for path in one.glob("shard*"))
    assert names == sorted(path.name for path in other.glob("shard*"))
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


@pytest.mark.parametrize("parts", [[(0, 2), (1, 2)], [(1, 2), (2, 2)]])
def test_parts_are_the_whole_without_repeats(data, tmp_path, parts):
    packed(data, tmp_path / "whole", shard_size=1)
    done = [packed(data, tmp_path / "out", shard_size=1, part=part).shards_done for part in parts]
    assert done == [3, 6]
    assert same(tmp_path / "whole", tmp_path / "out")


def test_processes_and_threads_change_nothing(data, tmp_path):
    packed(data, tmp_path / "one", shard_size=3)
    packed(data, tmp_path / "two", shard_size=3, workers=2)
    packed(data, tmp_path / "threads", shard_size=6, workers=1)
    packed(data, tmp_path / "more", shard_size=6, workers=3)
    assert same(tmp_path / "one", tmp_path / "two")
    assert same(tmp_path / "threads", tmp_path / "more")


def test_missing_and_broken_files_stay_rows(data, tmp_path):
    (data.parent / "3.mp4").unlink()
    (data.parent / "4.mp4").write_bytes((data.parent / "4.mp4").read_bytes()[:900])
    modalities = fakes.four(p=0.2, s=0.2)
    report = packed(data, tmp_path / "out", modalities)
    assert (report.missing, report.unreadable) == (1, 1)
    assert json.loads((tmp_path / "out/report.json").read_text()) == report.as_json()
    assert any("3.mp4: there is no such file" in line for line in report.examples)
    manifest = read(tmp_path / "out", modalities)
    dataset = ClipDataset(manifest, modalities, {}, config=DataConfig(), seed=0, training=False)
    examples = [dataset[Draw(0, i)][0] for i in range(6)]
    assert [e.weight for e in examples] == [1, 1, 1, 1, 0, 1]
    assert examples[3].present == {"p": False, "s": False, "a": True, "w": True}
    assert examples[1].present["s"] is False
    assert "4.mp4: truncated" in examples[4].error
    found = check(manifest)["splits"]["train"]["modalities"]["p"]
    assert (found["present"], found["missing"], found["unreadable"], found["absent"]) == (4, 0, 1, 1)


def test_a_member_that_is_too_large_is_not_read(out, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "LARGEST", 500)
    message = r"shard-000000\.tar: member '000000000\.\S+' has [\d,]+ bytes, expected at most 500: cut its file"
    with open_clip(first_of(tmp_path / "out")) as clip, pytest.raises(MediaError, match=message):
        clip.frames([0.0])


def test_shards_are_cached_and_counted_like_files(data, tmp_path):
    modalities = {"p": fakes.Pictures("p", seconds=0.2), "s": fakes.Sound("s", seconds=0.2)}
    packed(data, tmp_path / "out", modalities)
    manifest = read(tmp_path / "out", modalities)
    batches = []
    for cache in (None, Cache(modalities, 60.0), Cache(modalities, 60.0, tmp_path / "cache")):
        dataset = ClipDataset(manifest, modalities, {}, config=DataConfig(), seed=0, training=True, cache=cache)
        batches.append(Collate(modalities)([dataset[Draw(1, i)] for i in range(6)]))
    for batch in batches[1:]:
        assert not batch.errors
        torch.testing.assert_close(batch.samples["p"], batches[0].samples["p"])
        torch.testing.assert_close(batch.samples["s"], batches[0].samples["s"], atol=1e-3, rtol=0)
    assert check_missing(manifest, "train", 0.0).missing == 0


def test_statistics(data, tmp_path):
    from mbt_audio.config import AudioConfig
    from mbt_audio.modality import Audio

    audio = Audio("s", AudioConfig(seconds=0.6, mean=7.0, std=3.0))
    manifest = Manifest.read(data, {"s": "waveform"}, DataConfig(test_fraction=0))
    found = statistics(manifest, {"s": audio}, DataConfig(workers=0), "train")
    assert found["classes"] == {"label": {"even": 3, "odd": 3}}
    assert (found["rows"], found["failed"], found["modalities"]["s"]["clips"]) == (6, 1, 5)  # one is silent
    plain = Audio("s", AudioConfig(seconds=0.6, mean=0.0, std=1.0))
    dataset = ClipDataset(manifest, {"s": plain}, {}, config=DataConfig(), seed=0, training=False)
    samples = [dataset[Draw(0, i)][0].samples["s"] for i in range(6) if i != 1]
    values = plain.preprocessor()(plain.collate(samples))
    assert found["modalities"]["s"]["mean"] == pytest.approx(values.mean().item(), rel=1e-4)
    assert found["modalities"]["s"]["std"] == pytest.approx(values.std(correction=0).item(), rel=1e-4)
    assert statistics(manifest, {"s": audio}, DataConfig(workers=0), "train", limit=3)["rows"] == 3


def test_what_does_not_fit_is_refused(data, tmp_path):
    out = tmp_path / "out"
    packed(data, out, shard_size=3)
    with pytest.raises(ConfigError, match=r"other settings or of another manifest \(fps differ\)"):
        packed(data, out, shard_size=3, fps=5.0)
    with pytest.raises(ConfigError, match="these are shards already"):
        packed(out, tmp_path / "again")
    other = tmp_path / "other"
    other.mkdir()
    for foreign in ("notes.txt", "shard-000000.parquet"):
        (other / foreign).touch()
        with pytest.raises(ConfigError, match="exists and is no folder of shards"):
            packed(data, other)
        (other / foreign).unlink()
    with pytest.raises(ConfigError, match="exists and is no folder of shards"):
        packed(data, data)
    with pytest.raises(ConfigError, match="--part 3/2: expected i/n"):
        packed(data, tmp_path / "new", part=(3, 2))
    with pytest.raises(ConfigError, match="expected fps, short side"):
        packed(data, tmp_path / "new", quality=0)
    (out / "pack.json").write_text('{"version": 99}')
    with pytest.raises(DataError, match=r"pack\.json: not of version 2 of packed shards"):
        read(out, fakes.four())


def change_index(out, change):
    path = out / "shard-000000.index.npy"
    index = np.load(path)
    change(index)
    np.save(path, index)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("offset", 1 << 40, "member 0 of its index is not inside"),
        ("offset", -512, "member 0 of its index is not inside"),
        ("length", 1 << 62, "member 0 of its index is not inside"),
        ("length", -1, "member 0 of its index is not inside"),
        ("offset", 1024, "its index is not its own, at member"),
        ("length", 7, "its index is not its own, at member"),
        ("member", b"000000000.jsen", "the shard holds no json of it"),
    ],
)
def test_an_index_is_not_trusted(out, tmp_path, field, value, message):

    def change(index):
        index[field][0] = value

    change_index(tmp_path / "out", change)
    with pytest.raises(MediaError, match=message):
        open_clip(first_of(tmp_path / "out")).has("frames")


FACTS = {
    "start": "late",
    "stop": None,
    "duration": math.inf,
    "ends": 5,
    "origin": "a",
    "errors": ["none"],
    "payload": 7,
    "more": 1,
}


@pytest.mark.parametrize("name", FACTS)
def test_facts_are_not_trusted(out, tmp_path, name):
    tar, record = tmp_path / "out/shard-000000.tar", np.load(tmp_path / "out/shard-000000.index.npy")[0]
    begin, end = int(record["offset"]), int(record["offset"] + record["length"])
    content = tar.read_bytes()
    facts = json.loads(content[begin:end])
    facts["sources"]["path"][name] = FACTS[name]
    changed = json.dumps(facts, separators=(",", ":")).encode().ljust(end - begin)
    assert len(changed) == end - begin
    tar.write_bytes(content[:begin] + changed + content[end:])
    change_index(tmp_path / "out", lambda index: index["crc"].__setitem__(0, zlib.crc32(changed)))
    for ask in (lambda clip: clip.has("frames"), lambda clip: clip.frames([0.0]), lambda clip: clip.duration):
        with open_clip(first_of(tmp_path / "out")) as clip, pytest.raises(MediaError, match="does not describe it"):
            ask(clip)


@pytest.mark.parametrize("told", [{"rows": 10**12}, {"rows": 10**400}, {"rows": 10**9, "shard_size": 1}])
def test_no_more_shards_than_can_be_listed(out, tmp_path, told):
    file = tmp_path / "out/pack.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | told))
    with pytest.raises(DataError, match=r"pack\.json: at most 1,000,000,000 rows in 1,000,000 shards"):
        read(tmp_path / "out", fakes.four())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_nothing_waits_for_a_pipe(out, tmp_path):
    index = tmp_path / "out/shard-000000.index.npy"
    index.unlink()
    os.mkfifo(index)
    with pytest.raises(MediaError, match="not a file"):
        open_clip(first_of(tmp_path / "out")).has("frames")


def test_hostile_shards_are_refused(data, tmp_path):
    out = tmp_path / "out"
    packed(data, out)
    tar, index = out / "shard-000000.tar", out / "shard-000000.index.npy"
    original = tar.read_bytes(), index.read_bytes()

    def opened(match):
        open_shard.cache_clear()
        with pytest.raises(MediaError, match=match):
            open_clip(first_of(out)).frames([0.0])

    np.save(index, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    opened("cannot open the shard: (Object arrays|cannot mmap|Array can't)")
    np.save(index, np.zeros(3, INDEX.descr[2][1]))
    opened("no index of a shard")
    index.write_bytes(original[1])
    tar.write_bytes(original[0][:5000])
    opened("is not inside")
    tar.unlink()
    secret = tmp_path / "secret.tar"
    secret.write_bytes(original[0])
    tar.symlink_to(secret)
    opened("cannot open the shard")
    with pytest.raises(DataError, match=r"leaves the root"):
        read(out, fakes.four()).row(0)
    tar.unlink()
    tar.write_bytes(original[0])

    frame = np.load(index)[1]
    begin, end = int(frame["offset"]), int(frame["offset"] + frame["length"])
    huge = bytearray(original[0])
    at = huge.index(b"\xff\xc0", begin)
    huge[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    tar.write_bytes(huge)
    change_index(out, lambda index: index["crc"].__setitem__(1, zlib.crc32(huge[begin:end])))
    opened("65535 x 65535 pixels are too large")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("suffix", [".json", ".jpg", ".flac"])
def test_one_wrong_bit_is_found(out, tmp_path, suffix, share):
    """Decoders make some picture or sound of it, too."""
    tar, index = tmp_path / "out/shard-000000.tar", np.load(tmp_path / "out/shard-000000.index.npy")
    record = next(r for r in index if r["member"].decode().endswith(suffix))
    content = bytearray(tar.read_bytes())
    content[int(record["offset"]) + round(share * int(record["length"] - 1))] ^= 1
    tar.write_bytes(content)
    message = rf"shard-000000\.tar: member '{record['member'].decode()}' is damaged; pack or copy"
    with open_clip(first_of(tmp_path / "out")) as clip, pytest.raises(MediaError, match=message):
        [clip.frames([0.0]), clip.waveform(0.0, 0.1, 8000)]


@pytest.mark.parametrize("cell", ["../secret.mp4", "/etc/passwd", "../other/shard-000000.tar/000000000/path"])
def test_cells_do_not_leave_the_folder(out, tmp_path, cell):
    path = tmp_path / "out/shard-000000.parquet"
    table = pq.read_table(path)
    cells = [cell, *table["path"].to_pylist()[1:]]
    table = table.set_column(table.column_names.index("path"), "path", pa.array(cells))
    pq.write_table(table, path)
    for config in (DataConfig(), DataConfig(root=str(tmp_path)), DataConfig(confine=False)):
        with pytest.raises(DataError, match="leaves the root .*, which data.confine forbids"):
            Manifest.read(tmp_path / "out", fakes.reads_of(fakes.four()), config)


def test_paths_into_shards(out, tmp_path):
    assert exists(first_of(tmp_path / "out"))
    assert not exists(str(tmp_path / "no.tar/000000000/path"))
    with pytest.raises(MediaError, match="holds no clip '000000009'"):
        open_clip(str(tmp_path / "out/shard-000000.tar/000000009/path")).has("frames")
    with pytest.raises(MediaError, match="the shard does not describe it"):
        open_clip(str(tmp_path / "out/shard-000000.tar/000000000/other")).has("frames")

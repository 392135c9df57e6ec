"""Decoded clips in memory and on disk: the same samples, decoded once."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.data.fakes import Pictures, Sound, four, read, write_csv, write_data, write_movie
from mbt_core.config import DataConfig
from mbt_core.data import cache as caches
from mbt_core.data.cache import Cache, Entry, Room, disk_folder
from mbt_core.data.dataset import ClipDataset, Draw, Example
from mbt_core.data.loader import make_loader
from mbt_core.data.manifest import Manifest
from mbt_core.data.sampler import EvalSampler
from mbt_core.errors import ConfigError, MBTWarning
from mbt_core.media import MediaError
from small import read_csv


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five good rows (one silent, one without array), one damaged, one missing, two with a span."""
    monkeypatch.setenv("MBT_CACHE", str(tmp_path / "cache"))
    write_data(tmp_path / "data", 4)
    write_movie(tmp_path / "data/long.mp4", 2.0)
    (tmp_path / "data/bad.mp4").write_bytes(b"no video")
    rows: list[dict[str, Any]] = [
        {"id": f"r{i}", "path": f"{i}.mp4", "a": "" if i == 2 else f"{i}.npy", "w": "" if i else "hi", "label": "x"}
        for i in range(4)
    ]
    rows += [{"id": "bad", "path": "bad.mp4", "label": "x"}, {"id": "gone", "path": "gone.mp4", "label": "x"}]
    rows += [{"id": "early", "path": "long.mp4", "start": 0.2, "end": 0.9, "label": "x"}]
    rows += [{"id": "short", "path": "long.mp4", "start": 1.1, "end": 1.2, "label": "x"}]
    return write_csv(tmp_path / "data/m.csv", rows, ["id", "path", "a", "w", "start", "end", "label"])


def examples(manifest: Manifest, modalities: dict[str, Any], cache: Cache | None, training: bool) -> list[Example]:
    options: dict[str, Any] = {"config": DataConfig(sync=False), "seed": 1, "training": training, "cache": cache}
    dataset = ClipDataset(manifest, modalities, {"label": "single"}, views=1 if training else 3, **options)
    return [e for epoch in range(3) for row in range(len(manifest)) for e in dataset[Draw(epoch, row)]]


def assert_same(a: list[Example], b: list[Example]) -> None:
    for x, y in zip(a, b, strict=True):
        assert (x.index, x.present, x.weight, x.error) == (y.index, y.present, y.weight, y.error)
        for name in x.samples:
            assert all(torch.equal(x.samples[name][key], y.samples[name][key]) for key in x.samples[name])


def decodings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[str, ...]]]:
    """The files decoded from here on, and what of them."""
    found: list[tuple[str, tuple[str, ...]]] = []
    original = caches.decode_all

    def counting(clip: Any, reads: Any, *args: Any) -> Any:
        found.append((Path(clip.name).name, tuple(sorted(reads))))
        return original(clip, reads, *args)

    monkeypatch.setattr(caches, "decode_all", counting)
    return found


@pytest.mark.parametrize("kind", ["memory", "disk", "auto"])
@pytest.mark.parametrize("training", [True, False])
def test_cached_and_uncached_samples_are_identical(data: Path, kind: str, training: bool) -> None:
    modalities = four(p=0.3, s=0.45)
    manifest = read(data, modalities)
    said: list[str] = []
    cache = Cache.choose(DataConfig(cache=kind), manifest, modalities, ("train", "val"), said.append)
    assert cache is not None
    assert len(said) == 1
    plain = examples(manifest, modalities, None, training)
    assert [e.weight for e in plain[: len(manifest) if training else None : 1 if training else 3]][4:6] == [0, 0]
    assert_same(plain, examples(manifest, modalities, cache, training))
    assert_same(plain, examples(manifest, modalities, cache, training))  # and again from what is kept


def test_memory_decodes_each_file_once_before_the_first_epoch(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modalities = four(p=0.3, s=0.45)
    manifest = read(data, modalities)
    decoded, steps, said = decodings(monkeypatch), [], []
    config = DataConfig(cache="memory", workers=0)
    cache = Cache.choose(config, manifest, modalities, ("train",), said.append, lambda *step: steps.append(step))
    assert cache is not None
    assert cache.in_memory
    both = ("frames", "waveform")
    assert sorted(decoded) == sorted(
        [(f"{i}.mp4", both) for i in range(4)]
        + [(f"{i}.npy", ("array",)) for i in (0, 1, 3)]
        + [("long.mp4", both)] * 2  # two spans
    )  # a damaged file fails before
    assert steps == [(i + 1, 10) for i in range(10)]
    assert "8 rows are kept in memory" in said[0]
    assert cache.nbytes > 25 * 16 * 21 * 3
    count = len(decoded)
    examples(manifest, modalities, cache, True)
    assert len(decoded) == count


def test_disk_keeps_clips_between_runs(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modalities = four(p=0.3, s=0.45)
    manifest = read(data, modalities)
    decoded = decodings(monkeypatch)

    def run() -> list[str]:
        decoded.clear()
        cache = Cache.choose(DataConfig(cache="disk"), manifest, modalities, ("train",))
        assert cache is not None
        assert not cache.in_memory
        examples(manifest, modalities, cache, True)
        return sorted(name for name, _ in decoded)

    everything = ["0.mp4", "0.npy", "1.mp4", "1.npy", "2.mp4", "3.mp4", "3.npy", "long.mp4", "long.mp4"]
    assert run() == everything
    assert run() == []

    kept = sorted(path for path in disk_folder().rglob("*") if path.is_file())
    kept[0].write_bytes(kept[0].read_bytes()[:-200])  # truncated
    kept[1].write_bytes(b"")
    kept[2].write_bytes(b"no archive")
    assert len(run()) == 3
    assert run() == []
    assert not list(disk_folder().rglob("*tmp"))

    movie = data.parent / "0.mp4"  # another content under the same name
    write_movie(movie, 1.5)
    assert run() == ["0.mp4"]
    os.utime(movie, ns=(1, 1))
    assert run() == ["0.mp4"]

    modalities["p"].config.side = 20  # decoded in another way
    assert run() == sorted(name for name in everything if name.endswith("mp4"))


def test_disk_follows_symbolic_links(data: Path, tmp_path: Path) -> None:
    modalities = {"p": Pictures("p", seconds=0.2)}
    (tmp_path / "link.mp4").symlink_to(data.parent / "0.mp4")
    cache = Cache(modalities, 10.0, tmp_path / "kept")
    cache.open(str(tmp_path / "link.mp4"), ["p"], None, None)
    cache.open(str(data.parent / "0.mp4"), ["p"], None, None)
    assert len(list((tmp_path / "kept").rglob("*.clip"))) == 1


def test_a_full_disk_is_no_unreadable_clip(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    modalities = {"p": Pictures("p", seconds=0.2)}
    cache = Cache(modalities, 10.0, tmp_path / "file" / "cache")
    with pytest.warns(MBTWarning, match=r"cannot be written.*\. Clips are decoded anew each time"):
        found = examples(read(data, modalities), modalities, cache, True)
    assert_same(found, examples(read(data, modalities), modalities, None, True))


def test_modalities_that_disagree_are_kept_apart(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def modalities() -> dict[str, Any]:
        return {
            "small": Pictures("small", side=16, seconds=0.3),
            "large": Pictures("large", side=24, seconds=0.3),
            "again": Pictures("again", side=16, seconds=0.2),
            "s": Sound("s", seconds=0.3),
        }

    manifest = read(data, modalities())
    decoded = decodings(monkeypatch)
    cache = Cache.choose(DataConfig(cache="memory", workers=0), manifest, modalities(), ("train",))
    assert sorted(reads for name, reads in decoded if name == "0.mp4") == [("frames",), ("frames", "waveform")]
    assert_same(examples(manifest, modalities(), None, True), examples(manifest, modalities(), cache, True))


@pytest.mark.parametrize(("kind", "kept"), [(Sound, "frames"), (Pictures, "waveform")])
def test_what_does_not_say_how_is_not_kept(
    data: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Sound | Pictures], kept: str
) -> None:
    """Neither sound of no known rate nor frames of no known size."""
    monkeypatch.setattr(kind, "decode_settings", lambda self: {})
    modalities = four(p=0.3, s=0.45)
    manifest = read(data, modalities)
    decoded = decodings(monkeypatch)
    cache = Cache.choose(DataConfig(cache="memory", workers=0), manifest, modalities, ("train",))
    assert {reads for _, reads in decoded} == {(kept,), ("array",)}
    assert_same(examples(manifest, modalities, None, True), examples(manifest, modalities, cache, True))


def test_the_estimate_is_near(data: Path) -> None:
    modalities = four(p=0.3, s=0.45)
    manifest = read(data, modalities)
    cache = Cache(modalities, 10.0)
    room = Room(10**9)
    sizes, expected = cache.estimate(manifest, np.arange(4), room)
    assert cache.fill(sizes, room)
    assert expected == pytest.approx(cache.nbytes, rel=0.15)


def test_whether_all_is_kept(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else clips are decoded in every epoch, which takes as many processes as without a cache."""
    rows = [row for row in read_csv(data) if row["path"] not in ("bad.mp4", "gone.mp4")]
    manifest = read(write_csv(data, rows, list(rows[0])), modalities := four(p=0.3, s=0.45))

    def is_complete() -> bool:
        cache = Cache.choose(DataConfig(cache="auto", workers=0), manifest, modalities, ("train",))
        assert cache is not None
        return cache.complete

    assert is_complete()
    with monkeypatch.context() as patched:
        patched.setattr(Pictures, "decode_settings", lambda self: {})
        assert not is_complete()
    (data.parent / "0.mp4").write_bytes(b"no video")
    assert not is_complete()


def test_what_does_not_fit_into_memory(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modalities = four(p=0.3, s=0.45)
    manifest = read(data, modalities)
    said: list[str] = []
    monkeypatch.setattr(caches, "free_memory", lambda: 100_000)
    assert Cache.choose(DataConfig(cache="auto"), manifest, modalities, ("train",), said.append) is None
    assert said == ["clips are decoded anew in every epoch: kept in memory they would take 0.0 GB"]
    with pytest.raises(ConfigError, match=r"data\.cache: memory: .* 0\.0 GB are free; set data\.cache=disk or none"):
        Cache.choose(DataConfig(cache="memory"), manifest, modalities, ("train",))
    # what the headers promised, and the clips broke
    monkeypatch.setattr(Cache, "_size", lambda *args: 0)
    cache = Cache.choose(DataConfig(cache="auto"), manifest, modalities, ("train",), said.append)
    assert cache is not None
    assert 0 < cache.nbytes <= 25_000
    with pytest.raises(ConfigError, match=r"data\.cache: memory"):
        Cache.choose(DataConfig(cache="memory"), manifest, modalities, ("train",))
    assert Cache.choose(DataConfig(cache="none"), manifest, modalities, ("train",)) is None


@pytest.mark.slow
def test_a_long_clip_among_short_ones_is_not_decoded(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left out, and read from the file; the short ones are kept."""
    write_movie(data.parent / "hour.mp4", 40.0)
    row = {"id": "hour", "path": str(data.parent / "hour.mp4"), "label": "x"}
    rows = [*read_csv(data), row]
    manifest = read(write_csv(data, rows, list(rows[0])), modalities := four(p=0.3, s=0.45))
    monkeypatch.setattr(caches, "free_memory", lambda: 6_000_000)
    decoded, said = decodings(monkeypatch), []
    cache = Cache.choose(DataConfig(cache="auto", workers=0), manifest, modalities, ("train",), said.append)
    assert cache is not None
    assert {name for name, _ in decoded} == {"0.mp4", "1.mp4", "2.mp4", "3.mp4", "long.mp4", "0.npy", "1.npy", "3.npy"}
    assert 100_000 < cache.nbytes < 1_500_000
    assert said[0].endswith("; 2 of 11 are too long for that, or damaged, and read anew")
    assert not cache.complete
    assert_same(examples(manifest, modalities, None, True), examples(manifest, modalities, cache, True))


def test_which_clips_are_chosen() -> None:
    def chosen(*sizes: int) -> list[int]:
        entries = {Entry(str(i), ("p",), None, None): size for i, size in enumerate(sizes)}
        return list(Room(80, 10).choose(entries).values())

    assert chosen(40, 40) == [40, 40]  # all fit
    assert chosen(*[2] * 30, 5000) == [2] * 30
    assert chosen(40, 41) == []
    assert chosen(30, 30, 30, 1, 1) == []  # most are large
    assert chosen(*[10] * 9) == []


def test_what_is_being_decoded_counts(data: Path) -> None:
    """However many processes decode, together they never hold more than there is room for."""
    modalities = {"p": Pictures("p", seconds=0.2)}
    manifest = read(data, modalities)
    cache = Cache(modalities, 10.0, workers=2)
    sizes, expected = cache.estimate(manifest, np.arange(4), Room(10**9))
    room = Room(round(expected / 2))
    assert not cache.fill(sizes, room)
    assert 0 < len(cache._kept) < 4
    assert cache.nbytes <= room.total


@pytest.mark.parametrize("kind", ["auto", "memory", "disk"])
@pytest.mark.parametrize("training", [True, False])
def test_a_clip_that_cannot_be_decoded_as_a_whole_in_time(
    data: Path, monkeypatch: pytest.MonkeyPatch, kind: str, training: bool
) -> None:
    """It is read as without a cache."""
    modalities = four(p=0.3, s=0.45)
    manifest = read(data, modalities)
    plain = examples(manifest, modalities, None, training)
    original = caches.decode_all

    def slow(clip: Any, *args: Any) -> Any:
        if Path(clip.name).name in ("1.mp4", "long.mp4"):
            raise MediaError(f"{clip.name}: took longer than 1 s to read")
        return original(clip, *args)

    monkeypatch.setattr(caches, "decode_all", slow)
    cache = Cache.choose(DataConfig(cache=kind), manifest, modalities, ("train",))
    assert_same(plain, examples(manifest, modalities, cache, training))


@pytest.mark.parametrize("kind", ["auto", "memory", "disk"])
def test_a_process_that_dies_of_decoding_a_whole_clip(data: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The clip is read as without a cache."""
    modalities = four(p=0.3, s=0.45)
    manifest = read(data, modalities)
    original, main = caches.decode_all, os.getpid()

    def deadly(clip: Any, *args: Any) -> Any:
        if Path(clip.name).name == "1.mp4":
            assert os.getpid() != main
            os._exit(3)
        return original(clip, *args)

    def batches(cache: Cache | None) -> list[Any]:
        options: dict[str, Any] = {"config": DataConfig(), "seed": 1, "training": True, "cache": cache}
        dataset = ClipDataset(manifest, modalities, {"label": "single"}, **options)
        return list(make_loader(dataset, EvalSampler(np.arange(5), 3), 1, torch.device("cpu")))

    plain = batches(None)
    monkeypatch.setattr(caches, "decode_all", deadly)
    cached = batches(Cache.choose(DataConfig(cache=kind), manifest, modalities, ("train",)))
    for one, other in zip(plain, cached, strict=True):
        assert (one.errors, one.weight.tolist()) == (other.errors, other.weight.tolist())
        for name, sample in one.samples.items():
            assert all(torch.equal(sample[key], other.samples[name][key]) for key in sample)
    assert manifest.fatal == {}


def test_an_evaluation_of_other_rows_keeps_nothing(data: Path) -> None:
    """What `fill` was not told of is not decoded as a whole, nor kept."""
    modalities = four(p=0.3, s=0.45)
    manifest = read(data, modalities)
    cache = Cache(modalities, 10.0)
    assert_same(examples(manifest, modalities, None, False), examples(manifest, modalities, cache, False))
    assert cache.nbytes == 0


def test_small_clips_are_opened_once_for_size_and_content(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modalities = four(p=0.3, s=0.45)
    manifest = read(data, modalities)
    monkeypatch.setattr(caches, "SAMPLE", 0)
    opened, original = [], caches.open_clip
    monkeypatch.setattr(caches, "open_clip", lambda path, **options: opened.append(path) or original(path, **options))
    decoded, steps = decodings(monkeypatch), []
    config = DataConfig(cache="memory", workers=0)
    cache = Cache.choose(config, manifest, modalities, ("train",), None, lambda *step: steps.append(step))
    assert cache is not None
    assert len(opened) == len(decoded) + 1  # the damaged file is not decoded, and not tried twice
    assert steps[-1] == (10, 10)
    assert_same(examples(manifest, modalities, None, True), examples(manifest, modalities, cache, True))


def test_what_turns_out_not_to_fit_is_not_kept(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modalities = four(p=0.3, s=0.45)
    manifest = read(data, modalities)
    monkeypatch.setattr(caches, "SAMPLE", 0)
    monkeypatch.setattr(caches, "CHUNK", 1)
    cache, steps = Cache(modalities, 10.0), []
    rows = manifest.splits["train"]
    needed = cache.estimate(manifest, rows, Room(10**9))[1]
    sizes, expected = cache.estimate(manifest, rows, Room(int(needed) // 2), True, lambda *step: steps.append(step))
    assert not sizes
    assert expected > needed // 2
    assert cache.nbytes == 0
    assert not steps or steps[-1][0] == steps[-1][1]  # no bar is left behind

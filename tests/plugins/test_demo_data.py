import csv
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest

from mbt_benchmarks.demo import SHAPES, SOUNDS, VERSION, make_demo
from mbt_core.errors import ConfigError, MBTError

KINDS = [f"{shape}+{sound}" for shape in SHAPES for sound in SOUNDS]


def read_rows(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="") as file:
        return list(csv.DictReader(file))


def decode(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        sound = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
    return np.stack(frames), np.concatenate(sound)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def guess_shape(frames: np.ndarray) -> str:
    """Distance of the farthest corner from the middle, in radii of the disc of the same area."""
    luma = frames @ (0.299, 0.587, 0.114)
    spreads = []
    for picture in luma:
        y, x = np.nonzero(picture > (luma.min() + luma.max()) / 2)
        spreads.append(np.hypot(y - y.mean(), x - x.mean()).max() / np.sqrt(len(x) / np.pi))
    return SHAPES[int(np.searchsorted((1.12, 1.35), np.median(spreads)))]


def guess_sound(waveform: np.ndarray) -> str:
    """Whether the energy, or else the loudest frequency, changes from 20 ms to 20 ms."""
    spectrum = np.abs(np.fft.rfft(waveform[1600:17600].reshape(-1, 320) * np.hanning(320))) ** 2
    energy, peak = spectrum.sum(1), spectrum.argmax(1)
    if energy.min() < 0.1 * energy.max():
        return "bursts"
    return "sweep" if peak.std() > 1 else "tone"


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    return make_demo(tmp_path_factory.mktemp("demo") / "set", train=45, test=20, workers=2)


def test_manifest_balances_the_pairs_and_orders_the_classes(demo):
    rows = read_rows(demo)
    assert list(rows[0]) == ["id", "path", "label.kind", "label.sum", "split"]
    assert len({row["id"] for row in rows}) == 65
    for split, counts in (("train", {5}), ("test", {2, 3})):
        kinds = [row["label.kind"] for row in rows if row["split"] == split]
        assert sorted(set(kinds)) == sorted(KINDS)
        assert set(Counter(kinds).values()) == counts
        assert kinds != sorted(kinds, key=KINDS.index), "in order of class"
    for row in rows:
        shape, sound = row["label.kind"].split("+")
        assert row["label.sum"] == str((SHAPES.index(shape) + SOUNDS.index(sound)) % 3)
    classes = json.loads(demo.with_name("manifest.classes.json").read_text())
    assert classes == {"kind": KINDS, "sum": ["0", "1", "2"]}


def test_clips_are_small_h264_and_aac(demo):
    path = demo.parent / read_rows(demo)[0]["path"]
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.width, video.height) == ("h264", 64, 64)
        assert (audio.codec_context.name, audio.rate, audio.channels) == ("aac", 16000, 1)
        assert video.average_rate == 10
        assert container.duration / av.time_base == pytest.approx(1.2, abs=0.1)
    frames, waveform = decode(path)
    assert frames.shape == (12, 64, 64, 3)
    assert len(waveform) / 16000 == pytest.approx(1.2, abs=0.07)
    assert frames.nbytes + waveform.nbytes / 2 < 200_000  # as uint8 and int16
    assert path.stat().st_size < 40_000


def test_clips_show_and_sound_as_labelled(demo):
    for row in read_rows(demo):
        frames, waveform = decode(demo.parent / row["path"])
        assert f"{guess_shape(frames)}+{guess_sound(waveform)}" == row["label.kind"], row["id"]


def test_shapes_move_and_clips_of_a_kind_differ(demo):
    clips = [decode(demo.parent / row["path"]) for row in read_rows(demo) if row["label.kind"] == KINDS[0]]
    for frames, _ in clips:
        moved = np.abs(frames[0].astype(int) - frames[-1]).max(2) > 60
        assert moved.sum() > 50
    levels = [20 * np.log10(waveform.std()) for _, waveform in clips]
    assert -32 < min(levels) < max(levels) - 3 < -16


@pytest.mark.slow
def test_same_bytes_whatever_the_number_of_workers(tmp_path):
    for folder, workers in (("a", 1), ("b", 3)):
        make_demo(tmp_path / folder, train=20, test=7, seed=3, workers=workers)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    make_demo(tmp_path / "c", train=20, test=7, seed=4)
    assert contents(tmp_path / "a")["clips/test-00000.mp4"] != contents(tmp_path / "c")["clips/test-00000.mp4"]


def test_test_clips_do_not_depend_on_the_size_of_the_train_split(tmp_path):
    small, large = (make_demo(tmp_path / str(train), train=train, test=2).parent for train in (1, 4))
    assert contents(small)["clips/test-00001.mp4"] == contents(large)["clips/test-00001.mp4"]


def test_default_folder_is_in_the_cache_and_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MBT_CACHE", str(tmp_path / "cache"))
    calls: list[tuple[int, int]] = []
    manifest = make_demo(train=3, test=1, seed=5, progress=lambda done, total: calls.append((done, total)))
    assert manifest == tmp_path / "cache" / f"demo-v{VERSION}-3-1-5" / "manifest.csv"
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    written = manifest.stat().st_mtime_ns
    assert make_demo(train=3, test=1, seed=5, progress=lambda *_: pytest.fail("made again")) == manifest
    assert manifest.stat().st_mtime_ns == written


def test_an_interrupted_creation_leaves_nothing(tmp_path):
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_demo(tmp_path / "demo", train=30, test=0, progress=interrupt)
    assert list(tmp_path.iterdir()) == []
    assert len(read_rows(make_demo(tmp_path / "demo", train=3, test=0))) == 3


def test_two_creations_at_once_share_one_result(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(make_demo, tmp_path / "demo", train=9, test=0, workers=1) for _ in range(2)]
        assert {job.result() for job in jobs} == {tmp_path / "demo" / "manifest.csv"}
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    assert len(list((tmp_path / "demo" / "clips").iterdir())) == 9


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MBTError, match=r"cannot be written to .*file/demo.*MBT_CACHE"):
        make_demo(tmp_path / "file" / "demo", train=1, test=0)


def test_a_failing_process_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr("mbt_benchmarks.demo.sys.executable", shutil.which("false"))
    with pytest.raises(MBTError, match="ended with exit code 1"):
        make_demo(tmp_path / "demo", train=2, test=0)
    assert list(tmp_path.iterdir()) == []


def test_other_contents_are_not_overwritten(tmp_path):
    (tmp_path / "holiday.txt").write_text("keep")
    with pytest.raises(MBTError, match="holds other files"):
        make_demo(tmp_path, train=1, test=0)
    assert (tmp_path / "holiday.txt").read_text() == "keep"
    make_demo(tmp_path / "demo", train=1, test=0)
    with pytest.raises(MBTError, match=r"'train': 1.*expected.*'train': 2"):
        make_demo(tmp_path / "demo", train=2, test=0)


@pytest.mark.parametrize("counts", [{"train": 0, "test": 0}, {"train": -1}, {"seed": -1}])
def test_impossible_numbers(tmp_path, counts):
    with pytest.raises(ConfigError, match="expected none below 0 and at least one clip"):
        make_demo(tmp_path / "demo", **counts)


def test_import_is_light():
    code = "import sys, mbt_benchmarks.demo; print({'torch', 'pydantic'} & sys.modules.keys())"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert output.strip() == "set()"

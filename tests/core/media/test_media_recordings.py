"""Sound out of HDF5 files that hold a data set for each recording."""

import re

import media_files
import numpy as np
import pytest

from core.data import fakes
from mbt_core.config import DataConfig
from mbt_core.data.cache import Cache, Room
from mbt_core.data.check import check
from mbt_core.data.dataset import ClipDataset, Draw
from mbt_core.data.manifest import Manifest
from mbt_core.data.missing import check_missing
from mbt_core.data.packing import pack
from mbt_core.errors import DataError
from mbt_core.media import Clip, MediaError, exists, identity, open_clip, recordings

h5py = pytest.importorskip("h5py")


@pytest.fixture
def tone():
    return media_files.sine(3.0, 24000, 700.0)


@pytest.fixture
def path(tmp_path, tone):
    with h5py.File(tmp_path / "EPIC_audio.hdf5", "w") as file:
        file["P01_01"] = tone[0]
        file["P01_02"] = np.rint(tone[0, ::3] * 32767).astype(np.int16)
        file["P01_02"].attrs["sample_rate"] = 8000
        file["stereo"] = np.zeros((2, 9))
        file["words"] = "no sound"
        file["elsewhere"] = h5py.ExternalLink("other.hdf5", "P01_01")
        file["soft"] = h5py.SoftLink("/P01_01")
        file.create_dataset("raw", (9,), "f4", external=[(str(tmp_path / "secret"), 0, 36)])
        file.create_dataset("nan", data=np.full(24000, np.nan, np.float32))
    return str(tmp_path / "EPIC_audio.hdf5")


@pytest.mark.parametrize("rate", [16000, 24000, 44100])
@pytest.mark.parametrize(("start", "stop"), [(0.0, 0.5), (1.234, 2.0), (2.7, 3.4), (-0.2, 0.1), (5.0, 5.5)])
def test_it_sounds_like_a_file(path, tone, tmp_path, rate, start, stop):
    media_files.write_media(tmp_path / "a.wav", None, tone, audio_codec="pcm_f32le", rate=24000)
    with open_clip(f"{path}/P01_01") as clip, Clip(tmp_path / "a.wav") as file:
        mine, theirs = clip.waveform(start, stop, rate), file.waveform(start, stop, rate)
        np.testing.assert_allclose(mine, theirs, atol=1e-6)
        assert (clip.sample_rate, clip.duration, clip.duration_of("waveform")) == (24000, 3.0, 3.0)
        assert [clip.has(reads) for reads in ("frames", "waveform", "array", "text")] == [False, True, False, False]


def test_whole_numbers_and_another_rate(path, tone):
    with open_clip(f"{path}/P01_02") as clip:
        assert (clip.sample_rate, clip.duration) == (8000, 3.0)
        np.testing.assert_allclose(clip.waveform(1.0, 2.0, 8000), tone[0, 24000:48000:3], atol=1e-4)


def test_what_is_there(path):
    assert {"P01_01", "P01_02"} < recordings(path)
    assert exists(f"{path}/P01_01")
    assert not exists(f"{path}/P09_01")
    assert not exists(path.replace("EPIC", "NO") + "/P01_01")
    assert identity(f"{path}/P01_01")[1:] == identity(path)[1:]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("P09_01", "holds no recording 'P09_01'"),
        ("stereo", "expected a data set of the samples of one channel"),
        ("words", "expected a data set of the samples of one channel"),
        ("elsewhere", "holds no recording 'elsewhere'"),
        ("soft", "holds no recording 'soft'"),
        ("raw", "its samples are in another file, which is not read"),
        ("nan", "samples that are no numbers"),
    ],
)
def test_others_are_refused(path, key, message):
    with open_clip(f"{path}/{key}") as clip, pytest.raises(MediaError, match=message):
        clip.waveform(0.0, 0.5, 16000)


def test_a_file_that_is_none(tmp_path):
    (tmp_path / "x.h5").write_bytes(b"nothing" * 99)
    with open_clip(str(tmp_path / "x.h5/P01_01")) as clip, pytest.raises(MediaError, match=r"x\.h5: cannot open it"):
        clip.has("waveform")


def test_a_damaged_file_counts_as_unreadable(path, tmp_path):
    """In check, packing, the cache and the look for files alike."""
    (tmp_path / "bad.h5").write_bytes(b"nothing" * 99)
    rows = [{"id": name, "s": f"{name}/P01_01", "label": "x"} for name in ("EPIC_audio.hdf5", "bad.h5")]
    manifest = Manifest.read(fakes.write_csv(tmp_path / "m.csv", rows), {"s": "waveform"}, DataConfig(test_fraction=0))
    found = check(manifest)["splits"]["train"]["modalities"]["s"]
    assert (found["present"], found["missing"], found["unreadable"]) == (1, 0, 1)
    report = pack(tmp_path / "m.csv", {"s": "waveform"}, DataConfig(), tmp_path / "out", workers=1)
    assert (report.rows, report.missing, report.unreadable) == (2, 0, 1)
    assert "bad.h5: cannot open it" in report.examples[0]
    sound = {"s": fakes.Sound("s", seconds=0.2)}
    cache = Cache(sound, 10.0)
    room = Room(10**9)
    assert cache.fill(cache.estimate(manifest, np.arange(2), room)[0], room)
    assert cache.nbytes > 0
    assert check_missing(manifest, "train", 0.0).missing == 0
    dataset = ClipDataset(manifest, sound, {}, config=DataConfig(), seed=0, training=False, cache=cache)
    examples = [dataset[Draw(0, i)][0] for i in range(2)]
    assert [example.weight for example in examples] == [1, 0]
    assert "bad.h5: cannot open it" in examples[1].error


def test_damage_is_said(tmp_path):
    """Each byte that describes what is in the file, changed: it is read, or why not is said."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=np.ones(100, np.float32), chunks=(50,), compression="gzip")
        file["x"].attrs["sample_rate"] = 8000
    content = path.read_bytes()
    said = set()
    for at in range(0, 2000, 7):
        changed = bytearray(content)
        changed[at] ^= 0x5A
        path.write_bytes(changed)
        try:
            if exists(f"{path}/x"):
                with open_clip(f"{path}/x") as clip:
                    assert clip.waveform(0.0, 0.01, 8000).shape == (80,)
        except MediaError as error:
            # what is found beside these depends on the times that the file holds
            said |= set(re.findall(r"a\.h5(?:/x)?: (cannot \w+)", str(error)))
    assert {"cannot open", "cannot read"} <= said


def test_rows_are_cut_and_packed(path, tone, tmp_path):
    rows = [{"id": f"r{i}", "s": "EPIC_audio.hdf5/P01_01", "start": i, "end": i + 0.5, "label": "x"} for i in range(2)]
    fakes.write_csv(tmp_path / "m.csv", rows)
    pack(tmp_path / "m.csv", {"s": "waveform"}, DataConfig(), tmp_path / "out", window=0.5, workers=1)
    for folder in (tmp_path / "m.csv", tmp_path / "out"):
        row = Manifest.read(folder, {"s": "waveform"}, DataConfig(confine=True)).row(1)
        with open_clip(row.sources["s"].path) as clip:
            found = clip.waveform(row.start, row.end, 16000)
            assert clip.sample_rate == 24000
        np.testing.assert_allclose(found, 0.5 * np.sin(2 * np.pi * 700 * (1 + np.arange(8000) / 16000)), atol=1e-3)
    fakes.write_csv(tmp_path / "m.csv", [rows[0] | {"s": "../EPIC_audio.hdf5/P01_01"}])
    with pytest.raises(DataError, match="leaves the root"):
        Manifest.read(tmp_path / "m.csv", {"s": "waveform"}, DataConfig(confine=True))

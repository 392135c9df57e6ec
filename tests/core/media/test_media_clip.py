"""`Clip`: sources, arrays, text, and what is said when something is wrong."""

from __future__ import annotations

import gc
import io
import os
import resource
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from media_files import counting, shown, sine, write_image, write_media

from mbt_core.errors import DataError
from mbt_core.media import Clip, MediaError


@pytest.fixture(scope="module")
def mp4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("media") / "a.mp4"
    return write_media(path, counting(50), sine(2, 16000), options={"movflags": "faststart"})


def test_path_bytes_and_file_are_the_same(mp4):
    expected_frames, expected_sound = Clip(mp4).frames([0.5]), Clip(mp4).waveform(0, 1, 16000)
    with mp4.open("rb") as file:
        for source, name in ((str(mp4), None), (mp4.read_bytes(), "a.mp4"), (mp4.read_bytes(), None), (file, None)):
            with Clip(source, name) as clip:
                np.testing.assert_array_equal(clip.frames([0.5]), expected_frames)
                np.testing.assert_array_equal(clip.waveform(0, 1, 16000), expected_sound)
        assert not file.closed
        assert Clip(file).name == str(mp4)


def test_opens_lazily_and_once(mp4, monkeypatch):
    opened = []
    original = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: opened.append(self) or original(self, *a, **k))
    with Clip(mp4) as clip:
        assert opened == []
        clip.has("frames"), clip.frames([0.0]), clip.waveform(0, 1, 16000), clip.frames([1.0]), clip.duration
    assert opened == [mp4]
    assert shown(clip.frames([1.0])) == [25]  # opens again
    clip.close()
    clip.close()


def test_has_for_every_kind_of_file(tmp_path, mp4):
    np.save(tmp_path / "a.npy", np.zeros((2, 3)))
    (tmp_path / "a.txt").write_text("words")
    write_image(tmp_path / "a.png", counting(1)[0])
    write_media(tmp_path / "a.wav", None, sine(1, 16000), audio_codec="pcm_s16le")
    offered = {
        "a.npy": {"array"},
        "a.txt": {"text"},
        "a.png": {"frames"},
        "a.wav": {"waveform", "array"},
        mp4: {"frames", "waveform"},
    }
    for file, expected in offered.items():
        with Clip(tmp_path / file) as clip:
            assert {reads for reads in ("frames", "waveform", "array", "text") if clip.has(reads)} == expected
    with pytest.raises(ValueError, match="expected one of"):
        Clip(mp4).has("smell")


def test_literal_text():
    clip = Clip.of_text("Grüße\n", "row 7")
    assert clip.text() == "Grüße\n"
    assert clip.has("text")
    assert not clip.has("frames")
    assert clip.duration is clip.size is clip.frame_rate is None
    with pytest.raises(MediaError, match="row 7: it has no video stream"):
        clip.frames([0.0])


def test_text_file(tmp_path):
    (tmp_path / "a.TXT").write_bytes("\ufeffGrüße".encode())
    assert Clip(tmp_path / "a.TXT").text() == "Grüße"
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MediaError, match=r"b\.txt: cannot read its text: 'utf-8' codec can't decode"):
        Clip(tmp_path / "b.txt").has("text")
    assert Clip(b"words", "row.txt").text() == "words"


def test_arrays(tmp_path):
    data = np.arange(12, dtype=np.int16).reshape(2, 6)
    np.save(tmp_path / "a.npy", data)
    np.save(tmp_path / "one.npy", data[0])
    np.savez(tmp_path / "only.npz", anything=data)
    np.savez(tmp_path / "named.npz", rate=np.array(50), array=data)
    (tmp_path / "head.csv").write_text("x,when,y\n" + "".join(f"{a},t{a},{b}\n" for a, b in data.T))
    (tmp_path / "bare.csv").write_text("".join(f"{a},{b}.0\n" for a, b in data.T))
    pq.write_table(pa.table({"x": data[0], "who": ["me"] * 6, "y": data[1]}), tmp_path / "a.parquet")
    for name in ("a.npy", "only.npz", "named.npz", "head.csv", "bare.csv", "a.parquet"):
        for clip in (Clip(tmp_path / name), Clip((tmp_path / name).read_bytes(), name)):
            array = clip.array()
            assert array.dtype == np.float32, name
            np.testing.assert_array_equal(array, data, err_msg=name)
            assert clip.duration is None
    assert Clip(tmp_path / "one.npy").array().shape == (1, 6)


def test_empty_cells_are_nan(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n,4\n")
    np.testing.assert_array_equal(Clip(tmp_path / "a.csv").array(), [[1, np.nan], [2, 4]])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0,1,2\n5,6,7\n", [[5], [6], [7]]),  # the header of pandas
        (",0,1\n0,6,7\n", [[0], [6], [7]]),
        ("time,1,2\n5,6,7\n", [[5], [6], [7]]),
        ('"1","2"\n"3","4"\n', [[1, 3], [2, 4]]),
        ("NA,2\n3,4\n", [[np.nan, 3], [2, 4]]),
        ("x\n1\n\n3\n\n", [[1, np.nan, 3]]),
        ("\n1\n\n3", [[np.nan, 1, np.nan, 3]]),
        ("0\n1\n", [[0, 1]]),
        ("\nx,y\n\n1,2\n", [[1], [2]]),
        ("dead,x\n,1\n,2\n", [[np.nan, np.nan], [1, 2]]),
        ("x,y,\n1,2,\n", [[1], [2]]),  # a comma at the end of each line
        ("1,2,\n3,4,\n", [[1, 3], [2, 4]]),
        ("x,dead\n1,\n2,\n", [[1, 2], [np.nan, np.nan]]),
        ("x\n+1.5\n\n-2\n", [[1.5, np.nan, -2]]),
        ("\ufeffon,who,when\ntrue,me,2026-01-01\nfalse,,\n", [[1, 0]]),
    ],
)
def test_columns_of_csv_files(text, expected):
    np.testing.assert_array_equal(Clip(text.encode(), "a.csv").array(), expected)


def test_columns_of_parquet_files(tmp_path):
    columns = {
        "who": ["1", "b"],
        "on": [True, None],
        "price": pa.array([Decimal("1.5"), Decimal("-2.25")]),
        "dead": pa.nulls(2),
        "half": pa.array(np.array([1, 2], np.float16)),
        "count": pa.array([None, 7], pa.int64()),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    expected = [[1, np.nan], [1.5, -2.25], [np.nan, np.nan], [1, 2], [np.nan, 7]]
    np.testing.assert_array_equal(Clip(tmp_path / "a.parquet").array(), expected)


def test_arrays_that_cannot_be_read(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "words.npy", np.array(["a"]))
    np.savez(tmp_path / "two.npz", a=np.zeros(1), b=np.zeros(1))
    (tmp_path / "words.csv").write_text("a,b\nx,y\n")
    (tmp_path / "head.csv").write_text("a,b\n")
    (tmp_path / "mixed.csv").write_text("a,b\n1,2\n3,4 g\n")
    np.save(tmp_path / "cut.npy", np.zeros((2, 100)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:300])
    expected = {
        "objects.npy": "Object arrays cannot be loaded when allow_pickle=False",
        "words.npy": "expected numbers, found <U1",
        "two.npz": r"it holds \['a', 'b'\]: expected one array",
        "words.csv": r"no column holds numbers; columns: \['a', 'b'\]",
        "head.csv": "Empty CSV file",
        "mixed.csv": "column 'b' holds numbers, but '4 g' at sample 1: empty the cell if it is a gap, or remove the",
        "cut.npy": "cannot read its array",
        "none.npy": "No such file",
    }
    for name, message in expected.items():
        with pytest.raises(MediaError, match=rf"{name}: .*{message}"):
            Clip(tmp_path / name).has("array")


def test_wrong_kind_of_file(mp4):
    with pytest.raises(MediaError, match=r"a\.mp4: no array; expected a file ending in \.npy, \.npz"):
        Clip(mp4).array()
    with pytest.raises(MediaError, match=r"a\.mp4: no text; expected a file ending in \.txt"):
        Clip(mp4).text()


def test_missing_unreadable_and_odd_files(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "words.mp4").write_bytes(b"these are only words " * 100)
    os.mkfifo(tmp_path / "pipe.mp4")
    expected = {
        "none.mp4": "cannot open it: No such file or directory",
        "empty.mp4": "cannot open it: ",
        "words.mp4": "cannot open it: Invalid data",
        ".": "not a file",
        "pipe.mp4": "not a file",
        "nul\0.mp4": "cannot open it: embedded null",
        "https://example.org/a.mp4": "cannot open it: No such file",
    }
    for name, message in expected.items():
        for read in (Clip.duration.fget, lambda clip: clip.frames([0.0]), lambda clip: clip.waveform(0, 1, 16000)):
            with pytest.raises(MediaError, match=message) as caught:
                read(Clip(f"{tmp_path}/{name}"))
            assert str(tmp_path) in str(caught.value)
    assert issubclass(MediaError, DataError)


def test_playlists_do_not_reach_other_files(tmp_path, mp4):
    """Formats that name other files would read around the folder that a file may come from."""
    playlists = {
        "a.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{mp4}\n#EXT-X-ENDLIST\n",
        "a.ffconcat": f"ffconcat version 1.0\nfile '{mp4}'\n",
        "a.mp4": f"ffconcat version 1.0\nfile '{mp4}'\n",
    }
    for name, words in playlists.items():
        (tmp_path / name).write_text(words)
        with pytest.raises(MediaError, match="cannot open it"):
            Clip(tmp_path / name).has("frames")


def test_time_limit(mp4):
    for read in (lambda clip: clip.frames([1.0]), lambda clip: clip.waveform(0, 1, 16000)):
        with pytest.raises(MediaError, match=r"a\.mp4: took longer than 1e-09 s"):
            read(Clip(mp4, timeout=1e-9))


def test_reading_that_fails_is_an_error(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (30, 96, 128, 3)).astype(np.uint8)
    data = write_media(tmp_path / "a.mp4", noise, options={"movflags": "faststart"}).read_bytes()

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > len(data) // 2:
                raise OSError(5, "Input/output error")
            return super().read(size)

    clip = Clip(Failing(data), "a.mp4")
    assert clip.frames([0.1]).shape == (1, 96, 128, 3)
    with pytest.raises(MediaError, match=r"a\.mp4: cannot decode its frames: Input/output error"):
        clip.frames([1.1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_hundreds_of_files_leave_nothing_open(mp4):
    def read(count: int) -> None:
        for _ in range(count):
            with Clip(mp4) as clip:
                clip.frames([0.0, 1.0], short_side=32)
                clip.waveform(0, 2, 16000)
                clip.waveform(0, 1, 16000)
            with pytest.raises(MediaError):
                Clip(mp4.read_bytes()[:5000], "cut.mp4").has("frames")
        gc.collect()

    read(50)
    files = len(os.listdir("/proc/self/fd"))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read(300)
    assert len(os.listdir("/proc/self/fd")) == files
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 20 * 1024  # KiB

"""What files may ask of memory and time: sizes are known before anything is read, and only regular files are opened."""

from __future__ import annotations

import io
import os
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from media_files import counting, write_image

from mbt_core.data.tables import read_table
from mbt_core.errors import DataError
from mbt_core.io.files import open_regular, read_json, read_parquet
from mbt_core.media import Clip, MediaError, arrays, channels, clip, deadline, folders


def peak() -> int:
    """Most bytes that this process has used."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.fixture
def bomb(tmp_path: Path) -> Path:
    """A Parquet file of 120 KB whose column of text is 8 GB long."""
    table = pa.table({"path": pa.array(["a" * 1_000_000]).dictionary_encode().take(pa.array([0] * 8000)),
                      "x": np.arange(8000) % 7.0})  # fmt: skip
    pq.write_table(table.cast(pa.schema([("path", pa.dictionary(pa.int32(), pa.string())), ("x", pa.float64())])),
                   tmp_path / "bomb.parquet")  # fmt: skip
    return tmp_path / "bomb.parquet"


def test_text_in_parquet_files_is_not_read(bomb):
    before = peak()
    with Clip(bomb) as opened:
        assert opened.shape == (1, 8000)
        assert opened.left_out == {"path": "words"}
    assert peak() - before < 100e6


def test_manifests_that_would_fill_the_memory(bomb):
    before = peak()
    with pytest.raises(DataError, match=r"bomb\.parquet: .*8,000,\d{3},\d{3} bytes are too large"):
        read_table(bomb, lambda name: True)
    assert peak() - before < 200e6
    assert read_table(bomb, lambda name: name == "x")[0].num_rows == 8000


def test_manifests_of_ever_new_keys(tmp_path):
    """Each is a column of all rows: 300 KB come to 3 GB."""
    (tmp_path / "m.jsonl").write_text("".join(f'{{"id": "{i}", "k{i}": 1}}\n' for i in range(14_000)))
    before = peak()
    with pytest.raises(DataError, match=r"m\.jsonl: cannot be read: [23],\d+,\d+,\d+ bytes are too large"):
        read_table(tmp_path / "m.jsonl", lambda name: True)
    assert peak() - before < 50e6
    (tmp_path / "m.jsonl").write_text("".join(f'{{"id": "{i}", "text": "a \\"quoted\\": word"}}\n' for i in range(200)))
    assert read_table(tmp_path / "m.jsonl", lambda name: True)[0].num_rows == 200


def test_parquet_files_come_as_they_were_written(tmp_path):
    table = pa.table({
        "labels": pa.array([["ab", "c"], ["ab"], None]), "numbers": pa.array([[1.0], [2.0, 3.0], None]),
        "who": pa.array([{"a": "x"}, None, {"a": "y"}]), "large": pa.array(["q", None, "q"], pa.large_string()),
        "bytes": pa.array([b"z"] * 3), "a.b": ["d"] * 3, "kind": pa.array(["k", "l", "k"]).dictionary_encode(),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    expected = pq.read_table(tmp_path / "a.parquet")
    assert read_parquet(tmp_path / "a.parquet").equals(expected, check_metadata=True)
    assert read_parquet(tmp_path / "a.parquet", ["a.b", "labels"]).equals(expected.select(["a.b", "labels"]))
    with pytest.raises(pa.ArrowKeyError, match="no column 'more'"):
        read_parquet(tmp_path / "a.parquet", ["a.b", "more"])


def npy(shape: tuple[int, ...], kind: str = "<f4", content: bytes = b"") -> bytes:
    """A .npy file whose header says what it likes."""
    header = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def test_arrays_that_say_more_than_they_hold():
    with pytest.raises(MediaError, match=r"truncated: its header says \[4, 1000000\] of float32, it holds 168 bytes"):
        Clip(npy((4, 1_000_000), content=bytes(40)), "a.npy").has("array")
    with pytest.raises(
        MediaError, match="4,503,599,627,370,496 bytes are too large, expected at most 2,147,483,648: cut"
    ):
        Clip(npy((1 << 30, 1 << 20)), "a.npy").has("array")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, array=np.zeros((2, 5)))
    assert Clip(buffer.getvalue(), "a.npz").array().shape == (2, 5)


def test_arrays_of_small_numbers_are_widened_where_they_are_read(monkeypatch):
    """A byte becomes four."""
    content = npy((1, 1000, 4), "|u1", bytes(range(250)) * 16)
    monkeypatch.setattr(clip, "LARGEST", 8000)
    with Clip(content, "a.npy") as opened:
        assert opened.has("array")
        assert opened.array([3, 1]).tolist() == [[[12, 13, 14, 15], [4, 5, 6, 7]]]
        with pytest.raises(MediaError, match="16,000 bytes are too large"):
            opened.array()


def test_cells_of_a_table_count_before_they_are_parsed(monkeypatch):
    monkeypatch.setattr("mbt_core.media.delimited.LARGEST", 1000)
    with pytest.raises(MediaError, match=r"a\.csv: cannot read its array: 1,616 bytes are too large"):
        Clip(b"x,y\n" + b"1,2\n" * 100, "a.csv").array()


def test_a_recording_counts_before_it_is_decoded(tmp_path, monkeypatch):
    import wave

    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(1)
        file.setframerate(1000)
        file.writeframes(bytes(2000))
    monkeypatch.setattr(clip, "LARGEST", 4000)
    with pytest.raises(MediaError, match=r"a\.wav: cannot read its array: 8,000 bytes are too large"):
        Clip(tmp_path / "a.wav").array()


def test_texts(tmp_path):
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(4 << 30)
    before = peak()
    for suffix in (".txt", ".srt", ".vtt"):
        (tmp_path / "a.txt").rename(tmp_path / f"b{suffix}").rename(tmp_path / "a.txt")
        os.symlink(tmp_path / "a.txt", tmp_path / f"c{suffix}")
        with pytest.raises(MediaError, match="4,294,967,296 bytes are too large, expected at most 67,108,864"):
            Clip(tmp_path / f"c{suffix}").has("text")
    with pytest.raises(DataError, match="too large"):
        read_json(tmp_path / "a.txt")
    assert peak() - before < 50e6


def test_recordings(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset("claimed", shape=(1 << 40,), dtype="f4", chunks=(1000,))
        file.create_dataset("lumps", shape=(1 << 30,), dtype="f4", chunks=(1 << 29,), compression="gzip")
        file["lumps"].id.write_direct_chunk((0,), b"x\x9c", 0)
        file["good"] = np.ones(1000, np.float32)
    from mbt_core.media import open_clip

    for key, message in (("claimed", "says that it has 1,099,511,627,776 samples, and holds none"),
                         ("lumps", "2,147,483,648 bytes are too large, expected at most 268,435,456")):  # fmt: skip
        with open_clip(f"{tmp_path}/a.hdf5/{key}") as recording, pytest.raises(MediaError, match=message):
            recording.waveform(0, 0.01, 24_000)
    with open_clip(f"{tmp_path}/a.hdf5/good") as recording:
        assert recording.waveform(0, 0.01, 24_000).shape == (240,)


# folders of pictures


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """A folder of 20 frames, and one of two channels."""
    for i in range(20):
        for folder in ("frames", "array/u", "array/v"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            write_image(tmp_path / folder / f"{i}.png", counting(20)[i])
    return tmp_path


def test_pictures_count_before_they_are_decoded(frames, monkeypatch):
    monkeypatch.setattr(folders, "LARGEST", 100_000)
    with Clip(frames / "array") as opened:
        assert opened.array([1, 2]).shape == (2, 2, 48, 64)
        with pytest.raises(
            MediaError, match="2 x 20 pictures of 64 x 48: 491,520 bytes are too large, expected at most"
        ):
            opened.array()


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_pictures_with_much_packed_beside_them(tmp_path, kind):
    """200 KB of it would unpack to 200 MB, and 20 MB to 20 GB."""
    content = write_image(tmp_path / "0.png", counting(3)[2]).read_bytes()
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(200)) + packer.flush()
    body = kind + b"name\0\0" + packed
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    (tmp_path / "0.png").write_bytes(content[:33] + chunk + content[33:])
    before = peak()
    for clip_of in (Clip(tmp_path / "0.png"), Clip(tmp_path, fps=10)):
        np.testing.assert_array_equal(clip_of.frames([0.0])[0], counting(3)[2])
    assert peak() - before < 50e6


@pytest.mark.parametrize("target", ["/dev/zero", "fifo", "/dev", "gone"])
def test_what_is_no_file_is_not_opened(frames, target):
    """A device never ends, and a pipe never begins."""
    os.mkfifo(frames / "fifo")
    for folder in ("frames", "array/u"):
        (frames / folder / "7.png").unlink()
        (frames / folder / "7.png").symlink_to(frames / target)
    for name in ("a.csv", "a.npy", "a.npz", "a.parquet", "a.txt", "a.srt", "a.wav", "a.mp4", "a.json"):
        (frames / name).symlink_to(frames / target)
    said = "No such file" if target == "gone" else "not a file"
    with pytest.raises(MediaError, match=rf"7\.png: cannot decode the picture: {said}"):
        Clip(frames / "frames", fps=10).frames([0.75])
    with pytest.raises(MediaError, match=rf"7\.png: cannot decode the picture: {said}"):
        Clip(frames / "array").array([7])
    for name in ("a.csv", "a.npy", "a.npz", "a.parquet", "a.txt", "a.srt", "a.wav", "a.mp4"):
        reads = "text" if name in ("a.txt", "a.srt") else "frames" if name == "a.mp4" else "array"
        with pytest.raises(MediaError, match=rf"{name}: .*{said}"):
            Clip(frames / name).has(reads)
    with pytest.raises(DataError, match=said):
        read_json(frames / "a.json")
    if target != "/dev":  # a folder may be a manifest
        with pytest.raises(DataError, match=f"{said}|there is no such file"):
            read_table(frames / "a.csv", lambda name: True)


def test_the_door(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with open_regular(tmp_path / "link", 5) as file:
        assert file.read() == b"12345"
    with pytest.raises(OSError, match="5 bytes are too large, expected at most 4"):
        open_regular(tmp_path / "a", 4)
    with pytest.raises(OSError, match="not a file but a link or a device"):
        open_regular(tmp_path / "link", follow=False)
    with pytest.raises(OSError, match="not a file but a folder"):
        open_regular(tmp_path)


def test_time_limit_of_folders_and_texts(frames, monkeypatch):
    (frames / "a.txt").write_text("words")
    (frames / "a.csv").write_text("x\n1\n2\n")
    for read in (
        lambda: Clip(frames / "frames", fps=10, timeout=1e-9).frames([0.5]),
        lambda: Clip(frames / "frames", fps=10, timeout=1e-9).frames_between(0, 1),
        lambda: Clip(frames / "array", timeout=1e-9).array(),
        lambda: Clip(frames / "a.txt", timeout=1e-9).text(),
        lambda: Clip(frames / "a.csv", timeout=1e-9).array(),
    ):
        with pytest.raises(MediaError, match="took longer than 1e-09 s to read"):
            read()
    now = [0.0]
    monkeypatch.setattr(deadline.time, "monotonic", lambda: now.__setitem__(0, now[0] + 1) or now[0])
    with Clip(frames / "frames", fps=10, timeout=10) as opened:  # each call has as long
        for _ in range(3):
            assert opened.frames([0.0, 0.3, 0.5]).shape[0] == 3
        with pytest.raises(MediaError, match="took longer than 10 s"):
            opened.frames_between(0, 2)


def test_a_folder_that_cannot_be_listed(frames):
    (frames / "array" / "w").symlink_to("w")
    with pytest.raises(MediaError, match=r"array: cannot list it: Too many levels of symbolic links"):
        Clip(frames / "array").has("array")


def test_an_empty_file():
    with pytest.raises(MediaError, match=r"a\.mp4: cannot open it: the file is empty"):
        Clip(b"", "a.mp4").has("frames")


def test_limits_are_those_of_the_page():
    assert arrays.LARGEST == channels.LARGEST == 1 << 31
    assert clip.LARGEST_TEXT == 64 << 20

"""Folders of pictures and .wav files as arrays."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_files import counting, shown, sine, write_image, write_media

from mbt_core.data.packing import packed_levels
from mbt_core.media import Clip, MediaError, decode_all, identity
from mbt_core.media.folders import numbering


def write_folder(folder: Path, levels: dict[str, np.ndarray], suffix: str = ".png") -> Path:
    """Grey pictures [N, H, W] per sub-folder, numbered from 1 without leading zeros."""
    for name, pictures in levels.items():
        (folder / name).mkdir(parents=True)
        for i, picture in enumerate(pictures, start=1):
            rgb = np.repeat(picture[..., None], 3, 2)
            write_image(folder / name / f"img_{i}{suffix}", rgb, "rgb24" if suffix == ".png" else "yuvj420p")
    return folder


@pytest.fixture
def levels() -> dict[str, np.ndarray]:
    ramp = np.arange(12, dtype=np.uint8)[:, None, None]
    return {"a": np.broadcast_to(10 * ramp, (12, 16, 24)), "b": np.broadcast_to(255 - ramp, (12, 16, 24))}


def test_it_is_another_one_when_pictures_come_and_go(tmp_path):
    for name in "uv":
        (tmp_path / name).mkdir()
        (tmp_path / name / "frame_01.jpg").write_bytes(b"1")
        os.utime(tmp_path / name, (1, 1))
    seen = [identity(str(tmp_path))]
    for name in "uv":
        (tmp_path / name / "frame_02.jpg").write_bytes(b"2")
        seen.append(identity(str(tmp_path)))
    assert seen[0] != seen[1] != seen[2] != seen[0]
    assert identity(str(tmp_path)) == seen[2]


def test_a_folder_is_an_array(tmp_path, levels):
    clip = Clip(write_folder(tmp_path / "clip.01", levels))
    (tmp_path / "clip.01" / "a" / "notes.txt").write_text("no picture")
    (tmp_path / "clip.01" / ".hidden").mkdir()
    assert [reads for reads in ("frames", "waveform", "array", "text") if clip.has(reads)] == ["array"]
    assert clip.shape == (2, 12, 16, 24)
    assert clip.duration is None
    array = clip.array()
    assert array.dtype == np.float32
    np.testing.assert_allclose(array, np.stack(list(levels.values())), atol=1)
    np.testing.assert_array_equal(clip.array([11, 0, 11]), array[:, [11, 0, 11]])
    held = decode_all(clip, {"array"}, 0, 1, None, 0)
    assert held.shape == clip.shape
    np.testing.assert_array_equal(held.array([3]), array[:, [3]])


def write_depth(path: Path, levels: np.ndarray) -> Path:
    """A grey .png of 16 bits with the levels [H, W] uint16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    context = av.CodecContext.create("png", "w")
    context.height, context.width = levels.shape
    context.pix_fmt, context.time_base = "gray16be", Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(levels, format="gray16le").reformat(format="gray16be")
    path.write_bytes(b"".join(bytes(p) for p in [*context.encode(frame), *context.encode(None)]))
    return path


def test_levels_of_16_bits_are_kept(tmp_path):
    """57 millimetres of depth are 57 levels; of 8 bits it would be 2."""
    depth = 1000 + np.arange(57, dtype=np.uint16) + np.zeros((8, 1), np.uint16)
    for i in range(3):
        write_depth(tmp_path / "clip" / "depth" / f"{i}.png", depth + 100 * i)
    array = Clip(tmp_path / "clip").array()
    np.testing.assert_array_equal(array[0], np.stack([depth, depth + 100, depth + 200]))
    assert Clip(tmp_path / "clip").array([2, 0])[0, :, 0, 0].tolist() == [1200, 1000]
    write_image(tmp_path / "clip" / "depth" / "1.png", np.zeros((8, 57, 3), np.uint8))
    with pytest.raises(MediaError, match=r"1\.png: a picture of uint8 among some of uint16"):
        Clip(tmp_path / "clip").array()


def test_packing_keeps_levels_of_16_bits(tmp_path):
    depth = 40_000 + np.arange(57, dtype=np.uint16) + np.zeros((8, 1), np.uint16)
    for i in range(130):
        write_depth(tmp_path / "deep" / "d" / f"{i}.png", depth + i)
        write_depth(tmp_path / "flat" / "d" / f"{i}.png", depth - 40_000)
    levels = packed_levels(Clip(tmp_path / "deep"))
    assert levels.dtype == np.uint16
    np.testing.assert_array_equal(levels, Clip(tmp_path / "deep").array())
    assert packed_levels(Clip(tmp_path / "flat")).dtype == np.uint8


def test_frames_of_many_grey_levels_are_refused(tmp_path):
    path = write_depth(tmp_path / "frames" / "0.png", np.full((8, 8), 1000, np.uint16))
    for clip in (Clip(path), Clip(tmp_path / "frames", fps=10)):
        with pytest.raises(
            MediaError, match="grey pictures of 16 bits, of which RGB frames would keep 8; read them as an a"
        ):
            clip.frames([0.0])
    colours = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    write_image(tmp_path / "deep.png", colours, "rgb48be")  # a photograph loses nothing that is seen
    np.testing.assert_allclose(Clip(tmp_path / "deep.png").frames([0.0])[0], colours, atol=1)
    write_image(tmp_path / "grey.png", colours, "gray")
    assert Clip(tmp_path / "grey.png").frames([0.0]).shape == (1, 8, 8, 3)


@pytest.mark.parametrize("form", ["yuv420p10le", "gray10le"])
def test_videos_of_10_bits_are_read(tmp_path, form):
    path = write_media(tmp_path / "a.mkv", counting(5), codec="ffv1", pix_fmt=form)
    assert shown(Clip(path).frames([0.0, 0.08, 0.16])) == [0, 2, 4]


def test_jpeg_levels(tmp_path):
    rows, columns = np.mgrid[:32, :48]
    smooth = (3 * rows + 2 * columns).astype(np.uint8)[None]
    array = Clip(write_folder(tmp_path / "a", {"u": smooth, "v": 255 - smooth}, ".jpg")).array()
    np.testing.assert_allclose(array[:, 0], np.concatenate([smooth, 255 - smooth]), atol=8)


def test_only_what_is_asked_for_is_decoded(tmp_path, levels):
    folder = write_folder(tmp_path / "a", levels)
    (folder / "a" / "img_5.png").write_bytes(b"broken")
    clip = Clip(folder)
    assert clip.array([0, 5]).shape == (2, 2, 16, 24)
    with pytest.raises(MediaError, match=r"img_5\.png: cannot decode the picture"):
        clip.array([4])


def test_folders_that_are_refused(tmp_path, levels):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MediaError, match="empty: not a file, and no folder with sub-folders of pictures"):
        Clip(tmp_path / "empty").has("array")
    with pytest.raises(MediaError, match="differ in how many pictures they hold: 12 in a, 5 in b"):
        Clip(write_folder(tmp_path / "uneven", levels | {"b": levels["b"][:5]})).has("array")
    folder = write_folder(tmp_path / "sizes", levels | {"b": np.zeros((12, 8, 24), np.uint8)})
    with pytest.raises(MediaError, match=r"img_1\.png: a picture of \[8, 24\] among some of \[16, 24\]"):
        Clip(folder).array([0])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([f"frame_{i:06d}.jpg" for i in range(1, 101) if i != 33], "frame_000033.jpg is missing among its 99 frames"),
        ([f"frame_{i:06d}.jpg" for i in range(1, 101) if i != 37], "frame_000037.jpg is missing among its 99 frames"),
        ([f"frame_{i:06d}.jpg" for i in range(0, 500, 5)], "frame_000001.jpg is missing among its 100 frames"),
        (["1.jpg", "02.jpg"], "2.jpg is missing among its 2 frames; expected all numbers from 1 on"),
        (["img_7.png", "img_8.png"], "expected frames numbered from 0 or 1 on, the first is img_7.png"),
        (["x_1.png", "x_2.png", "y_1.png"], "names differ in the number alone, found x_1.png and y_1.png"),
    ],
)
def test_numbers_that_are_no_video(tmp_path, names, message):
    for name in names:
        (tmp_path / name).touch()
    with Clip(tmp_path, fps=25) as clip, pytest.raises(MediaError, match=message):
        clip.has("frames")


def test_numbers_of_a_video(tmp_path):
    for i in range(12):
        (tmp_path / f"a2_{i}.jpg").touch()
    for other in (".a2_99.jpg", "cover.jpg", "notes_1.txt"):
        (tmp_path / other).touch()
    assert numbering(str(tmp_path)) == ("a2_", 1, ".jpg", 0, 12)


@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_s24le", "pcm_f32le", "pcm_u8"])
def test_a_wav_is_an_array_of_its_channels(tmp_path, codec):
    data = np.concatenate([sine(1, 1000, 5), 0.5 * sine(1, 1000, 9)])
    clip = Clip(write_media(tmp_path / "a.wav", None, data, audio_codec=codec, rate=1000))
    assert clip.has("array")
    assert clip.shape == (2, 1000)
    assert clip.duration_of("array") == 1.0
    np.testing.assert_allclose(clip.array(), data, atol=1e-2 if codec == "pcm_u8" else 1e-4)
    np.testing.assert_allclose(clip.waveform(0, 1, 1000), data.mean(0), atol=1e-2 if codec == "pcm_u8" else 1e-3)
    held = decode_all(clip, {"array"}, 0, 1, None, 0)
    assert held.duration_of("array") == 1.0
    np.testing.assert_array_equal(held.array(), clip.array())


def test_index_of_a_stored_array(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(24).reshape(2, 3, 4))
    clip = Clip(tmp_path / "a.npy")
    assert clip.shape == (2, 3, 4)
    assert clip.array([2, 0])[:, :, 0].tolist() == [[8, 0], [20, 12]]


def test_no_array_in_other_files(tmp_path):
    path = write_media(tmp_path / "a.flac", None, sine(1, 16000), audio_codec="flac")
    assert not Clip(path).has("array")
    with pytest.raises(MediaError, match=r"a\.flac: no array; expected a file ending in \.npy, .*\.wav, or a folder"):
        Clip(path).array()

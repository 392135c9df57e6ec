"""`Clip.frames`: which frame, in which colours, of which size, turned which way."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_files import counting, grey, shown, sine, write_image, write_media

from mbt_core.media import Clip, MediaError, open_clip
from mbt_core.media.container import Container
from mbt_core.media.timing import FrameTimes

CORNERS = {"R": (255, 0, 0), "G": (0, 255, 0), "B": (0, 0, 255), "W": (255, 255, 255)}


def corners(height: int = 40, width: int = 64) -> np.ndarray:
    """A picture with the quarters RG over BW."""
    picture = np.zeros((height, width, 3), np.uint8)
    top, left = slice(0, height // 2), slice(0, width // 2)
    low, right = slice(height // 2, None), slice(width // 2, None)
    for rows, columns, colour in ((top, left, "R"), (top, right, "G"), (low, left, "B"), (low, right, "W")):
        picture[rows, columns] = CORNERS[colour]
    return picture


def quarters(picture: np.ndarray) -> str:
    """The colours of the quarters of a picture, "RG/BW"."""

    def name(pixel: np.ndarray) -> str:
        return min(CORNERS, key=lambda c: np.abs(np.array(CORNERS[c]) - pixel.astype(int)).sum())

    return "/".join(name(picture[i, 8]) + name(picture[i, -8]) for i in (8, -8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="module")
def mp4(folder: Path) -> Path:
    """50 frames at 25 fps with keyframes every 12 and B-frames."""
    options = {"preset": "fast", "qp": "4", "g": "12", "bf": "3"}
    return write_media(folder / "a.mp4", counting(50), sine(2, 16000), video_options=options)


def test_frame_shown_at_each_time(mp4):
    with Clip(mp4) as clip:
        frames = clip.frames([0.0, 0.039, 0.04, 0.5, 1.0, 1.96])
        assert frames.shape == (6, 48, 64, 3)
        assert frames.dtype == np.uint8
        assert shown(frames) == [0, 0, 1, 12, 25, 49]


def test_every_frame_time_gives_its_frame(mp4):
    assert shown(Clip(mp4).frames([i / 25 for i in range(50)])) == list(range(50))


def test_any_order_repeats_and_past_both_ends(mp4):
    assert shown(Clip(mp4).frames([1.0, 99.0, 0.2, 1.0, -3.0, 0.2])) == [25, 49, 5, 25, 0, 5]


def test_wholly_past_the_end_holds_the_last_frame(mp4):
    assert shown(Clip(mp4).frames([7.0, 8.0, 1e6])) == [49, 49, 49]


def test_calls_after_each_other_seek_back_and_forth(mp4):
    with Clip(mp4) as clip:
        for i in (30, 3, 49, 0, 13, 12, 11, 24):
            assert shown(clip.frames([i / 25])) == [i]


@pytest.mark.parametrize("gop", ["open-gop=1", "open-gop=0", "intra-refresh=1:bframes=0"])
@pytest.mark.parametrize("suffix", ["mp4", "ts", "mkv"])
def test_seeking_gives_the_same_pixels_as_reading_through(folder, gop, suffix):
    noise = np.random.default_rng(0).integers(-12, 12, (48, 192, 3))
    moving = np.stack([np.roll(noise, 3 * i, 1)[:, :64] for i in range(100)])
    video = np.clip(np.concatenate([counting(50)] * 2) + moving, 0, 255).astype(np.uint8)
    options = {"preset": "fast", "x264-params": f"bframes=4:b-pyramid=normal:{gop}:keyint=20:min-keyint=20:scenecut=0"}
    path = write_media(folder / f"gop.{suffix}", video, video_options=options)
    with Clip(path) as clip:
        times = [i / 25 + 0.05 for i in range(90)]
        through = clip.frames(times)
        for i in (7, 19, 20, 21, 39, 41, 62, 80, 89):
            np.testing.assert_array_equal(clip.frames([times[i]])[0], through[i])


def count_decoded(monkeypatch) -> list[int]:
    """A list that grows by one with each frame that is decoded."""
    decoded: list[int] = []
    time_of = FrameTimes.__call__
    monkeypatch.setattr(FrameTimes, "__call__", lambda *a: decoded.append(1) or time_of(*a))
    return decoded


def test_only_the_window_is_decoded(mp4, monkeypatch):
    """One seek, and no more frames than from the keyframe to one after the last time."""
    decoded = count_decoded(monkeypatch)
    Clip(mp4).frames([1.0, 1.2])  # frames 25 to 30; keyframes at 24 and 36
    assert len(decoded) <= 8


def test_times_far_apart_skip_what_lies_between(folder, monkeypatch):
    frames = np.concatenate([counting(50, 16, 16)] * 3)
    path = write_media(folder / "long.mp4", frames, fps=1, video_options={"preset": "ultrafast", "g": "10"})
    decoded = count_decoded(monkeypatch)
    assert shown(Clip(path).frames([0.0, 60.0, 120.0])) == [0, 10, 20]
    assert len(decoded) < 20


def test_tiff(folder):
    picture = corners()
    path = write_image(folder / "a.tiff", picture)
    np.testing.assert_array_equal(Clip(path).frames([0.0])[0], picture)
    content = path.read_bytes()
    with pytest.raises(MediaError, match="cannot decode"):
        Clip(content[: len(content) // 2], "cut.tiff").frames([0.0])


def test_variable_frame_rate(folder):
    times = [0, 0.1, 0.5, 0.52, 1.3, 1.31]
    path = write_media(folder / "vfr.mp4", counting(6), times=times, time_base=Fraction(1, 1000))
    clip = Clip(path)
    assert shown(clip.frames([0.05, 0.1, 0.499, 0.51, 1.29, 1.305, 1.4])) == [0, 1, 1, 2, 3, 4, 5]
    assert clip.duration == pytest.approx(1.32, abs=0.05)


@pytest.mark.parametrize("fps", [Fraction(30000, 1001), 30, 24])
def test_timestamps_rounded_by_the_container(folder, fps):
    """Matroska rounds to milliseconds: frame 2 of 30 fps is stored at 67 and shown at 66.7 ms."""
    path = write_media(folder / "rounded.mkv", counting(30), fps=fps)
    assert shown(Clip(path).frames([float(i / Fraction(fps)) for i in range(30)])) == list(range(30))


def test_zero_is_where_the_container_starts(folder):
    """Sound and video are both 5 s late: the clip starts with them."""
    path = write_media(folder / "late.ts", counting(50), sine(2, 48000), rate=48000, options={"output_ts_offset": "5"})
    clip = Clip(path)
    clip.has("frames")
    offset = clip._container.begin_of(clip._container.video)
    assert clip._container.input.start_time > 4_900_000
    assert 0 <= offset < 0.05
    assert shown(clip.frames([offset, offset + 0.41, offset + 1.97])) == [0, 10, 49]


def test_video_that_starts_after_the_sound_shows_its_first_frame_before(folder):
    times = [1 + i / 25 for i in range(25)]
    path = write_media(
        folder / "after.mp4", counting(25), sine(2, 16000), times=times, time_base=Fraction(1, 12800), video_first=False
    )
    assert shown(Clip(path).frames([0.0, 0.5, 1.0, 1.41])) == [0, 0, 0, 10]


@pytest.mark.parametrize(
    ("rotation", "expected"),
    [
        ((0, False, False), "RG/BW"),
        ((90, False, False), "GW/RB"),
        ((180, False, False), "WB/GR"),
        ((270, False, False), "BR/WG"),
        ((0, True, False), "GR/WB"),
        ((0, False, True), "BW/RG"),
        ((90, True, False), "WG/BR"),
        ((90, False, True), "RB/GW"),
    ],
)
def test_display_matrix(folder, rotation, expected):
    path = write_media(folder / "turned.mp4", np.stack([corners()] * 2), rotation=rotation, pix_fmt="yuv444p")
    clip = Clip(path)
    frame = clip.frames([0.0])[0]
    turned = rotation[0] in (90, 270)
    assert quarters(frame) == expected
    assert clip.size == frame.shape[:2] == ((64, 40) if turned else (40, 64))
    assert clip.frames([0.0], short_side=20).shape == ((1, 32, 20, 3) if turned else (1, 20, 32, 3))
    assert quarters(clip.frames([0.0], size=(30, 50))[0]) == expected
    assert clip.frames([0.0], size=(30, 50)).shape == (1, 30, 50, 3)


@pytest.mark.parametrize(("orientation", "expected"), [(1, "RG/BW"), (3, "WB/GR"), (6, "BR/WG"), (8, "GW/RB")])
def test_photos_are_turned_as_their_exif_says(folder, orientation, expected):
    jpeg = write_image(folder / "photo.jpg", corners(), "yuvj444p").read_bytes()
    entry = b"\x01\x12\x00\x03\x00\x00\x00\x01" + orientation.to_bytes(2, "big") + b"\x00\x00"
    exif = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01" + entry + b"\x00\x00\x00\x00"
    photo = jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]
    assert quarters(Clip(photo, "photo.jpg").frames([0.0])[0]) == expected


def test_short_side_keeps_the_aspect_ratio(folder):
    path = write_media(folder / "wide.mp4", counting(3, 90, 160))
    clip = Clip(path)
    assert clip.size == (90, 160)
    assert clip.frames([0.0], short_side=32).shape == (1, 32, 57, 3)
    assert clip.frames([0.0], short_side=180).shape == (1, 180, 320, 3)
    assert clip.frames([0.0], size=(17, 33)).shape == (1, 17, 33, 3)


def test_shrinking_averages_over_the_area(folder):
    """A checkerboard of single pixels becomes even grey, not a pattern."""
    board = np.zeros((64, 64, 3), np.uint8)
    board[::2, ::2] = board[1::2, 1::2] = 255
    frame = Clip(write_image(folder / "board.png", board)).frames([0.0], short_side=16)[0]
    assert np.abs(frame.astype(int) - 127).max() <= 16


@pytest.mark.parametrize(("height", "width"), [(47, 63), (1, 5), (33, 100)])
def test_odd_sizes(folder, height, width):
    picture = np.random.default_rng(1).integers(0, 256, (height, width, 3)).astype(np.uint8)
    png = Clip(write_image(folder / "odd.png", picture))
    np.testing.assert_array_equal(png.frames([0.0])[0], picture)
    video = Clip(write_media(folder / "odd.mkv", np.stack([picture] * 2), codec="ffv1", pix_fmt="bgr0"))
    np.testing.assert_array_equal(video.frames([0.04])[0], picture)
    assert video.frames([0.0], size=(21, 35)).shape == (1, 21, 35, 3)


def planes(rgb: tuple[int, int, int], kr: float, kb: float, full: bool, bits: int) -> list[int]:
    """Y, Cb, Cr of a colour, by ITU-R BT.601/709 with the weights kr and kb."""
    red, green, blue = (value / 255 for value in rgb)
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    chroma = [(blue - luma) / 2 / (1 - kb), (red - luma) / 2 / (1 - kr)]
    top, unit = (1 << bits) - 1, 1 << (bits - 8)
    if full:
        return [round(luma * top), *(min(round((1 << (bits - 1)) + c * top), top) for c in chroma)]
    return [round((16 + 219 * luma) * unit), *(round((128 + 224 * c) * unit) for c in chroma)]


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p", "yuv420p10le"])
@pytest.mark.parametrize(("matrix", "kr", "kb"), [(1, 0.2126, 0.0722), (5, 0.299, 0.114)])
@pytest.mark.parametrize("colour", [(200, 60, 30), (20, 180, 90), (128, 128, 128), (255, 255, 255), (0, 0, 0)])
def test_colour_matrix_range_and_depth(folder, pix_fmt, matrix, kr, kb, colour):
    full, bits = pix_fmt == "yuvj420p", 10 if "10" in pix_fmt else 8
    frame = av.VideoFrame(32, 32, pix_fmt)
    for plane, value in zip(frame.planes, planes(colour, kr, kb, full, bits), strict=True):
        dtype = np.dtype("<u2" if bits > 8 else "u1")
        plane.update(np.full(plane.buffer_size // dtype.itemsize, value, dtype).tobytes())
    path = folder / "colour.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "1"} if bits > 8 else {"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, pix_fmt
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        frame.colorspace, frame.color_range = matrix, 2 if full else 1
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    for size in ((32, 32), (20, 24)):
        error = np.abs(Clip(path).frames([0.0], size=size)[0].astype(int) - colour)
        assert error.max() <= 2, (size, error.max())


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_stills_show_at_any_time(folder, suffix, as_bytes):
    path = write_image(folder / f"still{suffix}", counting(6)[5], "rgb24" if suffix == ".png" else "yuvj444p")
    with Clip(path.read_bytes(), path.name) if as_bytes else Clip(path) as clip:
        assert clip.has("frames")
        assert not clip.has("waveform")
        assert clip.duration is clip.frame_rate is clip.duration_of("frames") is None
        assert shown(clip.frames([0.0, 3.5, -1.0])) == [5, 5, 5]
        assert shown(clip.frames([100.0], short_side=10)) == [5]


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "JPG", "png"])
def test_photos_of_many_bytes(folder, suffix):
    """By such a suffix FFmpeg takes a file for one of a series, which are not read."""
    picture = np.random.default_rng(0).integers(0, 256, (96, 128, 3)).astype(np.uint8)
    path = write_image(
        folder / ("noise.png" if suffix == "png" else "noise.jpg"), picture, "rgb24" if suffix == "png" else "yuvj444p"
    )
    with Clip(path.read_bytes(), f"photo.{suffix}") as clip:
        assert clip.frames([0.0, 1.0]).shape == (2, 96, 128, 3)


def test_percent_signs_in_a_name_are_no_pattern(folder):
    for i in (1, 2):
        write_image(folder / f"img{i}.png", counting(3)[i])
    path = write_image(folder / "img%d.png", counting(1)[0])
    assert shown(Clip(path).frames([0.0])) == [0]


def test_stream_without_timestamps_is_counted(folder):
    """A bare H.264 stream: frame i is shown at i / rate."""
    clip = Clip(write_media(folder / "bare.h264", counting(50)))
    assert shown(clip.frames([0.0, 1.0, 0.2, 9.0])) == [0, 25, 5, 49]
    assert shown(clip.frames([1.5])) == [37]
    assert clip.duration == pytest.approx(2.0)


def test_interlaced_video_of_any_size(folder):
    options = {"preset": "fast", "x264-params": "interlaced=1:tff=1"}
    clip = Clip(write_media(folder / "fields.mp4", counting(5), video_options=options))
    assert shown(clip.frames([0.08], size=(33, 47))) == [2]


@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "yuv444p"])
def test_first_real_video_stream_is_taken(folder, as_bytes, pix_fmt):
    """The second video stream is another film, the attached picture of a song is no video."""
    path = folder / "two.mkv"
    with av.open(str(path), "w") as out:
        streams = [out.add_stream("libx264", rate=25, options={"qp": "4"}) for _ in range(2)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        for i in range(10):
            for stream, level in zip(streams, (grey(i), 250), strict=True):
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8)).reformat(format=pix_fmt)
                frame.pts, frame.time_base = i, Fraction(1, 25)
                out.mux(stream.encode(frame))
        for stream in streams:
            out.mux(stream.encode(None))
    clip = Clip(path.read_bytes(), path.name) if as_bytes else Clip(path)
    assert shown(clip.frames([0.0, 0.2])) == [0, 5]


def test_a_cover_picture_is_no_video(folder):
    path = folder / "song.m4a"
    with av.open(str(path), "w", format="mp4") as out:
        sound = out.add_stream("aac", rate=16000, layout="mono")
        cover = out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(counting(1)[0]).reformat(format="yuvj420p")
        picture.pts, picture.time_base = 0, Fraction(1, 1)
        out.mux([*cover.encode(picture), *cover.encode(None)])
        frame = av.AudioFrame.from_ndarray(sine(1, 16000), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
        out.mux([*sound.encode(frame), *sound.encode(None)])
    clip = Clip(path)
    assert not clip.has("frames")
    assert clip.size is None
    with pytest.raises(MediaError, match=r"song\.m4a: it has no video stream"):
        clip.frames([0.0])
    assert clip.waveform(0, 1, 16000).std() > 0.3


@pytest.mark.parametrize("times", [[], [float("nan")], [0.0, float("inf")]])
def test_times_must_be_numbers(mp4, times):
    with pytest.raises(ValueError, match="times must be finite numbers"):
        Clip(mp4).frames(times)


@pytest.mark.parametrize("wrong", [{"short_side": 0}, {"size": (0, 4)}, {"short_side": 4, "size": (4, 4)}])
def test_sizes_must_make_sense(mp4, wrong):
    with pytest.raises(ValueError, match="expected a short_side or a size above 0"):
        Clip(mp4).frames([0.0], **wrong)


def test_frames_between_are_all_that_frames_gives(mp4):
    with Clip(mp4) as clip:
        since, frames = clip.frames_between(0.5, 0.8, short_side=24)
        assert shown(frames) == [12, 13, 14, 15, 16, 17, 18, 19, 20]
        np.testing.assert_allclose(since, np.arange(12, 21) / 25, atol=1e-3)
        np.testing.assert_array_equal(frames[3:5], clip.frames([0.6, 0.64], short_side=24))


def test_a_small_still_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    path, opened = write_image(tmp_path / "a.png", picture), []
    real = Container._open
    monkeypatch.setattr(Container, "_open", lambda self: (opened.append(self), real(self))[1])
    with open_clip(str(path)) as clip:
        assert clip.size == (20, 30)
        assert np.array_equal(clip.frames([0.0, 3.0]), np.stack([picture] * 2))
        _, frames = clip.frames_between(0.0, 0.0)
        assert np.array_equal(frames, picture[None])
        assert clip.frames([0.0], short_side=10).shape == (1, 10, 15, 3)
    assert len(opened) == 1

"""Every frame is shown, in its order and at its time, in every container: also where it has no presentation times."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_files import clicks, numbered, numbers, write_media

from mbt_core.config import DataConfig
from mbt_core.data.packing import pack
from mbt_core.media import Clip, open_clip

COUNT, FPS = 60, 25
X264 = {"crf": "5", "x264-params": "bframes=3:b-pyramid=normal:keyint=20:min-keyint=20:scenecut=0"}
OPEN = {"crf": "5", "x264-params": "bframes=5:open-gop=1:keyint=12:min-keyint=12:scenecut=0"}
B_FRAMES = {"qmax": "2", "g": "12", "bf": "2"}
# codec: encoder, its options, pixel format, containers
CODECS = {
    "h264": ("libx264", X264, "yuv420p", "mp4 mov mkv avi ts mpg vob flv asf wmv nut mxf h264"),
    "h264-open-gop": ("libx264", OPEN, "yuv420p", "mp4 mkv avi ts mpg flv wmv nut mxf h264"),
    "h264-intra": ("libx264", {"crf": "5", "g": "1"}, "yuv420p", "mp4 avi ts mpg wmv h264"),
    "hevc": ("libx265", {"crf": "5", "x265-params": "log-level=none:keyint=20"}, "yuv420p", "mp4 mkv ts mpg flv hevc"),
    "mpeg4": ("mpeg4", {"qmax": "2", "g": "12"}, "yuv420p", "mp4 mkv avi ts mpg asf nut m4v"),
    "mpeg4-b": ("mpeg4", B_FRAMES, "yuv420p", "mp4 mov mkv avi ts mpg vob asf wmv nut m4v"),
    "mpeg2": ("mpeg2video", {"qmax": "2", "g": "12"}, "yuv420p", "mp4 mkv avi ts mpg wmv mxf m2v"),
    "mpeg2-b": ("mpeg2video", B_FRAMES, "yuv420p", "mp4 mov mkv avi ts mpg vob asf wmv nut mxf m2v"),
    "mpeg1-b": ("mpeg1video", B_FRAMES, "yuv420p", "mp4 mkv avi ts mpg vob asf nut m1v"),
    "mjpeg": ("mjpeg", {"qmax": "2"}, "yuvj420p", "mp4 mov mkv avi asf nut mjpeg"),
    "vp8": ("libvpx", {"b": "3M", "auto-alt-ref": "1"}, "yuv420p", "mkv webm avi ogv nut ivf"),
    "vp9": ("libvpx-vp9", {"crf": "4", "b": "0", "cpu-used": "8"}, "yuv420p", "mp4 mkv webm avi flv nut ivf"),
    "ffv1": ("ffv1", {}, "yuv420p", "mp4 mkv avi asf nut mxf"),
    "msmpeg4v3": ("msmpeg4", {"qmax": "2"}, "yuv420p", "mov mkv avi asf wmv nut"),
    "wmv2": ("wmv2", {"qmax": "2"}, "yuv420p", "avi asf wmv nut"),
    "flv1": ("flv", {"qmax": "2"}, "yuv420p", "avi flv asf nut"),
    "prores": ("prores_ks", {}, "yuv422p10le", "mov mkv mxf"),
    "huffyuv": ("huffyuv", {}, "yuv422p", "avi asf nut"),
    "png": ("png", {}, "rgb24", "mp4 mov avi asf nut"),
    "gif": ("gif", {}, "rgb8", "mov nut gif"),
}
COMMON = ("h264 mp4", "h264 avi", "h264 mpg", "h264 mxf", "h264 wmv", "h264 h264", "mpeg4-b avi", "mpeg2-b mpg")
ALL = [f"{codec} {suffix}" for codec, row in CODECS.items() for suffix in row[3].split()]


def write_numbered(path: Path, codec: str) -> Path:
    """60 frames of 25 a second."""
    encoder, options, pix_fmt, _ = CODECS[codec]
    form = {"m1v": "mpeg1video", "m2v": "mpeg2video"}.get(path.suffix[1:])
    return write_media(path, numbered(COUNT), codec=encoder, pix_fmt=pix_fmt, video_options=options, format=form)


def check_all_shown(path: Path | str) -> np.ndarray:
    """Every frame is shown, in order, at a rising time, however it is asked for. Returns the times."""
    with open_clip(str(path)) as clip:
        since, frames = clip.frames_between(-1.0, 99.0)
        shown = numbers(frames)
        assert shown == list(range(COUNT))
        assert (np.diff(since) > 0).all()
        # AVI and ASF leave out a frame's time after the first; a program stream does not say all times.
        np.testing.assert_allclose(since - since[0], np.arange(COUNT) / FPS, atol=0.0411)
        times = since + 5e-3
        expected = np.array(shown)[np.searchsorted(since, times, side="right") - 1].tolist()
        assert numbers(clip.frames(times.tolist())) == expected
        order = np.random.default_rng(0).permutation(COUNT)[:8].tolist()
        assert [numbers(clip.frames([times[i]]))[0] for i in order] == [expected[i] for i in order]
    for i in (40, 13):
        with open_clip(str(path)) as clip:
            again, frames = clip.frames_between(times[i], times[i] + 0.2)
        wanted = np.flatnonzero((since <= times[i] + 0.2) & (since >= since[expected[i]]))
        np.testing.assert_allclose(again, since[wanted], atol=1e-6)
        assert numbers(frames) == wanted.tolist()
    return since


@pytest.mark.parametrize("case", COMMON)
def test_every_frame_is_shown_in_its_order_at_its_time(case, tmp_path):
    codec, suffix = case.split()
    check_all_shown(write_numbered(tmp_path / f"a.{suffix}", codec))


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in ALL if case not in COMMON])
def test_every_codec_in_every_container(case, tmp_path):
    codec, suffix = case.split()
    check_all_shown(write_numbered(tmp_path / f"a.{suffix}", codec))


def packed_bitstream(path: Path) -> Path:
    """MPEG-4 as DivX and XviD write it: a B-frame is in the packet of the frame after it; an empty one follows."""
    context = av.CodecContext.create("mpeg4", "w")
    context.width, context.height, context.pix_fmt = 96, 48, "yuv420p"
    context.time_base, context.framerate = Fraction(1, FPS), Fraction(FPS)
    context.options = {"qmax": "2", "g": "12", "bf": "1", "b_strategy": "0"}
    frames = []
    for i, picture in enumerate(numbered(COUNT)):
        frame = av.VideoFrame.from_ndarray(picture).reformat(format="yuv420p")
        frame.pts = i
        frames.append(frame)
    encoded = [bytes(packet) for frame in [*frames, None] for packet in context.encode(frame)]
    is_b = [data[data.index(b"\0\0\1\xb6") + 4] >> 6 == 2 for data in encoded]
    begin = encoded[0].index(b"\0\0\1\xb6")
    encoded[0] = encoded[0][:begin] + b"\0\0\1\xb2DivX503b1393p\0" + encoded[0][begin:]
    packets = []
    for data, packs in zip(encoded, is_b, strict=True):
        if packs:
            packets[-1] += data
        packets.append(b"\0\0\1\xb6\x5f\xff" if packs else data)
    assert sum(is_b) > 20
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 96, 48, "yuv420p"
        stream.codec_context.extradata = context.extradata
        for i, data in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.dts, packet.pts, packet.time_base = stream, i, i, Fraction(1, FPS)
            packet.is_keyframe = data[data.index(b"\0\0\1\xb6") + 4] >> 6 == 0
            out.mux(packet)
    return path


@pytest.mark.parametrize("suffix", ["avi", "mkv", "mp4"])
def test_packed_bitstream(suffix, tmp_path):
    check_all_shown(packed_bitstream(tmp_path / f"a.{suffix}"))


@pytest.mark.parametrize("case", ["h264 avi", "h264 mxf", "mpeg4-b avi"])
def test_shards_hold_every_frame(case, tmp_path):
    codec, suffix = case.split()
    path = write_numbered(tmp_path / f"a.{suffix}", codec)
    (tmp_path / "m.csv").write_text(f"id,path\na,a.{suffix}\n")
    pack(tmp_path / "m.csv", {"rgb": "frames"}, DataConfig(), tmp_path / "shards", short_side=48, workers=1)
    packed = check_all_shown(f"{tmp_path}/shards/shard-000000.tar/000000000/path")
    with Clip(path) as clip:
        np.testing.assert_allclose(packed, clip.frames_between(-1.0, 99.0)[0], atol=1e-6)


def test_frames_of_equal_times_are_shown_one_after_the_other(tmp_path):
    """Of two frames with one time the later is shown; the times of `frames_between` rise all the same."""
    times = [i / FPS for i in range(10)]
    times[5] = times[4] + 1e-3
    path = write_media(tmp_path / "a.mkv", numbered(10), codec="ffv1", times=times, time_base=Fraction(1, 1000))
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.mkv"), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                packet.pts = packet.dts = packet.pts - (packet.pts == 161)
                out.mux(packet)
    with Clip(tmp_path / "b.mkv") as clip:
        since, frames = clip.frames_between(-1.0, 9.0)
        assert (np.diff(since) > 0).all()
        assert numbers(frames) == list(range(10))
        assert numbers(clip.frames([0.13, 0.17, 0.21])) == [3, 5, 5]


@pytest.mark.parametrize("case", ["mpeg1video m1v", "mpeg2video m2v", "libx264 h264"])
def test_raw_streams_are_as_long_as_their_frames(case, tmp_path):
    codec, suffix = case.split()
    options = B_FRAMES if codec != "libx264" else X264
    path = write_media(tmp_path / f"a.{suffix}", numbered(COUNT), codec=codec, video_options=options)
    assert Clip(path).duration_of("frames") == pytest.approx(COUNT / FPS)


def test_sound_that_begins_late_in_asf(tmp_path):
    """ASF states one length for all streams, which counts from the start of the clip."""
    path = write_media(
        tmp_path / "a.wmv", numbered(COUNT), clicks(2, 44100, [1.0]), codec="wmv2", audio_codec="libmp3lame",
        rate=44100, audio_start=1.5,
    )  # fmt: skip
    clip = Clip(path)
    assert clip.duration_of("frames") == pytest.approx(COUNT / FPS, abs=0.06)
    assert clip.duration == pytest.approx(3.5, abs=0.15)
    sound = clip.waveform(0, 5, 44100)
    assert np.abs(sound).argmax() / 44100 == pytest.approx(2.5, abs=0.1)

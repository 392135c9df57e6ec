"""Streams that a file declares and that hold nothing are absent; `has` says so, and soon."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_files import LOSSLESS, counting, sine, write_media

from mbt_core.media import Clip, MediaError, presence

CODECS = {
    "mp4": ("libx264", "aac"),
    "mov": ("libx264", "pcm_s16le"),
    "mkv": ("libx264", "pcm_s16le"),
    "webm": ("libvpx", "libopus"),
    "avi": ("mpeg4", "pcm_s16le"),
    "ts": ("libx264", "mp2"),
    "mpg": ("mpeg2video", "mp2"),
    "flv": ("flv", "libmp3lame"),
    "ogv": ("libvpx", "libopus"),
    "nut": ("mpeg4", "mp2"),
}
RATE = 48000


def write_streams(
    path: Path, video: range, *sounds: range, seconds: int = 2, options: dict[str, str] | None = None
) -> Path:
    """A video stream of 25 frames a second and streams of sound; each has packets only in its range of frames."""
    video_codec, audio_codec = CODECS[path.suffix[1:]]
    with av.open(str(path), "w", options=options or {}) as out:
        stream = out.add_stream(video_codec, rate=25, options=LOSSLESS if video_codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        tracks = [out.add_stream(audio_codec, rate=RATE, layout="stereo") for _ in sounds]
        out.start_encoding()
        resamplers = []
        for track in tracks:
            context = track.codec_context
            context.open(strict=False)
            form, size = context.format.name, context.frame_size or 1024
            resamplers.append(av.AudioResampler(format=form, layout="stereo", rate=RATE, frame_size=size))
        for i in range(seconds * 25):
            if i in video:
                frame = av.VideoFrame.from_ndarray(counting(56)[i % 56]).reformat(format="yuv420p")
                frame.pts, frame.time_base = i, Fraction(1, 25)
                out.mux(stream.encode(frame))
            for track, resampler, span in zip(tracks, resamplers, sounds, strict=True):
                if i in span:
                    piece = av.AudioFrame.from_ndarray(sine(0.04, RATE, channels=2), format="fltp", layout="stereo")
                    piece.sample_rate, piece.pts, piece.time_base = RATE, i * RATE // 25, Fraction(1, RATE)
                    out.mux([packet for part in resampler.resample(piece) for packet in track.encode(part)])
        for encoded, used in [(stream, video), *zip(tracks, sounds, strict=True)]:
            if len(used):
                out.mux(encoded.encode(None))
    return path


ALL, NONE = range(50), range(0)


@pytest.mark.parametrize("suffix", CODECS)
def test_a_stream_without_packets_is_absent(suffix, tmp_path):
    with Clip(write_streams(tmp_path / f"mute.{suffix}", ALL, NONE)) as clip:
        assert clip.has("frames")
        assert not clip.has("waveform")
        assert clip.duration_of("waveform") is clip.sample_rate is None
        assert clip.frames([0.0, 1.0]).shape == (2, 48, 64, 3)
        with pytest.raises(MediaError, match=rf"mute\.{suffix}: it has no audio stream"):
            clip.waveform(0.0, 1.0, 16000)
    with Clip(write_streams(tmp_path / f"blind.{suffix}", NONE, ALL)) as clip:
        assert not clip.has("frames")
        assert clip.has("waveform")
        assert clip.frame_rate is clip.size is None
        assert clip.waveform(0.0, 1.0, 16000).std() > 0.2


def test_fragments_without_sound(tmp_path):
    options = {"movflags": "frag_keyframe+empty_moov"}
    with Clip(write_streams(tmp_path / "a.mp4", ALL, NONE, options=options)) as clip:
        assert clip.has("frames")
        assert not clip.has("waveform")


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts"])
def test_a_stream_without_packets_gives_way_to_the_next(suffix, tmp_path):
    with Clip(write_streams(tmp_path / f"a.{suffix}", ALL, NONE, ALL)) as clip:
        assert clip.waveform(0.0, 1.0, 16000).std() > 0.2


@pytest.mark.parametrize("suffix", ["mkv", "ts", "nut", "webm"])
def test_sound_that_begins_late_is_present(suffix, tmp_path):
    path = write_streams(tmp_path / f"a.{suffix}", range(100), range(75, 100), seconds=4)
    with Clip(path) as clip:
        assert clip.has("waveform")
        assert clip.waveform(0.0, 2.5, 16000).std() == 0
        assert clip.waveform(3.2, 3.8, 16000).std() > 0.2


@pytest.mark.parametrize(("sound", "present"), [(range(300, 400), True), (NONE, False)])
def test_long_files_are_not_read_through(sound, present, tmp_path, monkeypatch):
    """Beyond what is read from the start, some places are looked at."""
    monkeypatch.setattr(presence, "FIRST_BYTES", 4000)
    monkeypatch.setattr(presence, "BYTES_AT_PLACE", 12_000)
    path = write_streams(tmp_path / "a.mkv", range(500), sound, seconds=20)
    with Clip(path) as clip:
        assert clip.has("waveform") is present
        assert clip.has("frames")
        assert clip.frames([0.0, 10.0]).shape == (2, 48, 64, 3)


def test_a_file_whose_streams_are_all_empty_is_an_error(tmp_path):
    path = write_streams(tmp_path / "a.avi", NONE, NONE)
    with pytest.raises(MediaError, match=r"a\.avi: it holds neither video nor sound; its streams are empty"):
        Clip(path).has("frames")


def test_reading_is_the_same_as_without_looking(tmp_path):
    """Sound and video of a file that was looked into are those of one that was not."""
    path = write_media(tmp_path / "a.mkv", counting(50), sine(2, 16000), audio_codec="flac")
    with Clip(path) as clip:
        np.testing.assert_allclose(clip.waveform(0.0, 2.0, 16000), sine(2, 16000)[0], atol=1e-4)
        assert len(clip.frames_between(-1.0, 9.0)[0]) == 50


def test_lengths_that_a_writer_of_matroska_states_save_looking(tmp_path, monkeypatch):
    path = write_media(tmp_path / "a.mkv", counting(30), sine(1, RATE), rate=RATE)
    monkeypatch.setattr(presence, "_read", None)
    clip = Clip(path)
    assert clip.has("frames")
    assert clip.has("waveform")

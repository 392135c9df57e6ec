"""`Clip.waveform`: where its samples lie in time, at which rate and level."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_files import clicks, counting, encode_audio, sine, write_media

from mbt_core.media import Clip, MediaError

AT = (0.5, 1.0, 1.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("media")


def peaks(waveform: np.ndarray, rate: int, near: tuple[float, ...] = AT) -> list[int]:
    """Samples by which the largest value within 50 ms of each time is off it."""
    reach = rate // 20
    at = [round(t * rate) for t in near]
    return [int(np.argmax(waveform[k - reach : k + reach])) - reach for k in at]


FORMATS = {
    "pcm 8 kHz mono wav": ("a.wav", "pcm_s16le", 8000, 1),
    "pcm 24 bits wav": ("b.wav", "pcm_s24le", 48000, 2),
    "pcm float wav": ("c.wav", "pcm_f32le", 22050, 1),
    "pcm unsigned wav": ("d.wav", "pcm_u8", 11025, 1),
    "flac 44.1 kHz": ("e.flac", "flac", 44100, 2),
    "aac 48 kHz stereo": ("f.mp4", "aac", 48000, 2),
    "aac 44.1 kHz 5.1": ("g.mp4", "aac", 44100, 6),
    "mp3": ("h.mp3", "libmp3lame", 44100, 2),
    "opus": ("i.ogg", "libopus", 48000, 2),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rate", [16000, 22050, 48000])
def test_clicks_are_where_they_were_written(folder, name, rate):
    file, codec, own_rate, channels = FORMATS[name]
    path = write_media(folder / file, None, clicks(2, own_rate, AT, channels), rate=own_rate, audio_codec=codec)
    with Clip(path) as clip:
        assert clip.has("waveform")
        assert not clip.has("frames")
        waveform = clip.waveform(0.0, 2.0, rate)
        assert waveform.dtype == np.float32
        assert waveform.shape == (2 * rate,)
        assert peaks(waveform, rate) == [0, 0, 0]
        assert waveform.max() == pytest.approx(0.8, abs=0.08)
        window = clip.waveform(0.9, 1.7, rate)
        assert peaks(window, rate, (0.1, 0.6)) == [0, 0]


@pytest.mark.parametrize("own_rate", [8000, 11025, 22050, 44100, 48000])
def test_sine_keeps_phase_and_level(folder, own_rate):
    path = write_media(folder / "sine.wav", None, sine(3, own_rate), rate=own_rate, audio_codec="pcm_s16le")
    for start in (0.5, 0.7331, 1.00003):
        waveform = Clip(path).waveform(start, start + 1, 16000)
        time = (round(start * 16000) + np.arange(16000)) / 16000
        np.testing.assert_allclose(waveform, 0.5 * np.sin(2 * np.pi * 440 * time), atol=1e-4)


@pytest.mark.parametrize("file", ["w.wav", "w.flac", "w.mp4", "w.mp3", "w.ts"])
@pytest.mark.parametrize("rate", [16000, 44100, 12345])
def test_a_window_is_a_slice_of_the_whole(folder, file, rate):
    codec = {"wav": "pcm_s16le", "flac": "flac", "mp4": "aac", "mp3": "libmp3lame", "ts": "mp2"}[file.split(".")[1]]
    sound = np.random.default_rng(0).normal(0, 0.1, (1, 3 * 44100)).astype(np.float32)
    if codec == "aac":  # its decoder makes up noise
        sound = np.repeat(sine(3, 44100, 300) * sine(3, 44100, 0.7), 1, 0)
    path = write_media(folder / file, None, sound, rate=44100, audio_codec=codec)
    with Clip(path) as clip:
        whole = clip.waveform(0.0, 3.0, rate)
        for start, stop in ((0.0, 1.0), (0.3217, 1.5), (1.0 + 1 / 7, 2.2), (2.5, 3.0), (0.004, 0.0041)):
            first, count = round(start * rate), round((stop - start) * rate)
            np.testing.assert_allclose(clip.waveform(start, stop, rate), whole[first : first + count], atol=2e-5)


def test_the_same_window_is_always_the_same(folder):
    """Also for AAC, whose decoder fills bands with noise."""
    noise = np.random.default_rng(0).normal(0, 0.1, (1, 3 * 44100)).astype(np.float32)
    path = write_media(folder / "noise.mp4", counting(50), noise, rate=44100)
    with Clip(path) as clip:
        first = clip.waveform(0.5, 1.5, 16000)
        clip.frames([0.2, 1.9])
        clip.waveform(0.0, 3.0, 16000)
        np.testing.assert_array_equal(clip.waveform(0.5, 1.5, 16000), first)
    np.testing.assert_array_equal(Clip(path).waveform(0.5, 1.5, 16000), first)


def test_silence_outside_the_clip(folder):
    path = write_media(folder / "short.wav", None, sine(1, 16000), rate=16000, audio_codec="pcm_s16le")
    with Clip(path) as clip:
        waveform = clip.waveform(-0.5, 2.0, 16000)
        assert waveform.shape == (40000,)
        assert not waveform[:8000].any()
        assert not waveform[24000:].any()
        np.testing.assert_allclose(waveform[8000:24000], sine(1, 16000)[0], atol=1e-4)
        assert not clip.waveform(5.0, 6.0, 8000).any()
        assert not clip.waveform(-3.0, -2.0, 16000).any()
        assert clip.waveform(0.5, 0.5, 16000).shape == (0,)


def test_mean_of_all_channels(folder):
    left, right = sine(1, 16000, 440)[0], sine(1, 16000, 1000)[0]
    path = write_media(folder / "s.wav", None, np.stack([left, right]), rate=16000, audio_codec="pcm_s16le")
    np.testing.assert_allclose(Clip(path).waveform(0, 1, 16000), (left + right) / 2, atol=1e-4)
    six = np.stack([left * k / 6 for k in range(6)])
    path = write_media(folder / "six.wav", None, six, rate=16000, audio_codec="pcm_s16le")
    np.testing.assert_allclose(Clip(path).waveform(0, 1, 16000), six.mean(0), atol=1e-4)


def test_channels_in_an_order_of_their_own(folder):
    """PyAV frees the list of such channels several times, which ends the process: so it is read in another one."""
    path = write_media(folder / "order.caf", audio=sine(0.2, 48000, channels=8), rate=48000, audio_codec="pcm_s16be")
    read = (
        "import sys; from mbt_core.media import Clip\n"
        "for _ in range(8): sound = Clip(sys.argv[1]).waveform(0, 0.2, 48000)\n"
        "print(sound.std())"
    )
    done = subprocess.run([sys.executable, "-c", read, path], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(0.5 / 2**0.5, rel=0.01)


def test_what_would_alias_is_damped(folder):
    path = write_media(folder / "high.wav", None, sine(1, 44100, 10000), rate=44100, audio_codec="pcm_s16le")
    assert np.abs(Clip(path).waveform(0.2, 0.8, 16000)).max() < 1e-4


def test_never_above_full_scale(folder):
    square = np.sign(sine(1, 44100))
    path = write_media(folder / "loud.wav", None, square, rate=44100, audio_codec="pcm_s16le")
    waveform = Clip(path).waveform(0, 1, 16000)
    assert np.abs(waveform).max() == 1.0


def test_sound_that_starts_after_the_video(folder):
    path = write_media(folder / "late.mp4", counting(50), clicks(1, 16000, [0.5]), audio_start=0.7)
    waveform = Clip(path).waveform(0, 2, 16000)
    assert peaks(waveform, 16000, (1.2,)) == [0]
    assert np.abs(waveform[: int(0.6 * 16000)]).max() < 1e-3


@pytest.mark.parametrize("file", ["sync.ts", "sync.mkv", "sync.webm", "sync.mp4"])
def test_sound_and_video_stay_in_step(folder, file):
    """The click is when the video turns to frame 25, whatever the container makes of the start."""
    webm = file.endswith("webm")
    path = write_media(
        folder / file, counting(50), clicks(2, 48000, [1.0]), rate=48000,
        codec="libvpx-vp9" if webm else "libx264", audio_codec="libopus" if webm else "aac",
        video_options={"deadline": "realtime"} if webm else None,
        options={"output_ts_offset": "3"} if file.endswith("ts") else None,
    )  # fmt: skip
    with Clip(path) as clip:
        since, frames = clip.frames_between(0.0, 2.5)
        levels = frames.reshape(len(frames), -1).mean(1)
        turned = since[np.argmin(np.abs(levels - 116))]  # the grey level of frame 25
        for start in (0.0, 0.8):
            click = start + np.argmax(clip.waveform(start, 2.0, 48000)) / 48000
            assert click == pytest.approx(turned, abs=1.5e-3)


def test_a_gap_in_the_timestamps_stays_a_gap(folder):
    path = folder / "gap.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=16000, layout="mono")
        for begin in (0.0, 1.0):
            frame = av.AudioFrame.from_ndarray(sine(0.5, 16000), format="fltp", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = 16000, Fraction(1, 16000), round(begin * 16000)
            resampler = av.AudioResampler(format="s16", layout="mono", rate=16000, frame_size=800)
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    waveform = Clip(path).waveform(0, 1.5, 16000)
    np.testing.assert_allclose(waveform[:8000], sine(0.5, 16000)[0], atol=1e-3)
    assert not waveform[8000:16000].any()
    np.testing.assert_allclose(waveform[16000:], sine(0.5, 16000)[0], atol=1e-3)


def test_default_stream_is_taken(folder):
    path = folder / "tracks.mkv"
    with av.open(str(path), "w") as out:
        streams = [out.add_stream("pcm_s16le", rate=16000, layout="mono") for _ in range(2)]
        streams[0].disposition = av.stream.Disposition.hearing_impaired
        streams[1].disposition = av.stream.Disposition.default
        for stream, hertz in zip(streams, (440, 1000), strict=True):
            encode_audio(out, stream, sine(1, 16000, hertz), 16000)
    np.testing.assert_allclose(Clip(path).waveform(0, 1, 16000), sine(1, 16000, 1000)[0], atol=1e-4)


def test_facts(folder):
    path = write_media(folder / "facts.mp4", counting(50), sine(3, 44100, channels=2), rate=44100)
    with Clip(path) as clip:
        assert clip.sample_rate == 44100
        assert clip.frame_rate == 25
        assert clip.size == (48, 64)
        assert clip.duration_of("frames") == pytest.approx(2.0)
        assert clip.duration_of("waveform") == pytest.approx(3.0, abs=0.05)
        assert clip.duration == pytest.approx(3.0, abs=0.05)
        assert clip.duration_of("text") is None


def test_duration_that_the_file_does_not_state(folder):
    """What browsers record states none: it is found by reading through."""
    path = folder / "live.webm"
    with path.open("wb") as file:
        unseekable = type("Pipe", (), {"write": file.write})()
        with av.open(unseekable, "w", format="webm") as out:
            stream = out.add_stream("libopus", rate=48000, layout="mono")
            encode_audio(out, stream, sine(2, 48000), 48000)
    clip = Clip(path)
    assert clip.duration == pytest.approx(2.0, abs=0.05)
    assert clip.waveform(1.0, 1.5, 16000).std() > 0.3


def test_no_audio_stream(folder):
    path = write_media(folder / "silent.mp4", counting(5))
    with Clip(path) as clip:
        assert clip.has("frames")
        assert not clip.has("waveform")
        assert clip.sample_rate is None
        with pytest.raises(MediaError, match=r"silent\.mp4: it has no audio stream"):
            clip.waveform(0, 1, 16000)


@pytest.mark.parametrize("wrong", [(1.0, 0.5, 16000), (0.0, 1.0, 0), (float("nan"), 1.0, 16000)])
def test_windows_must_make_sense(folder, wrong):
    with pytest.raises(ValueError, match="expected start <= stop and a rate above 0"):
        Clip(folder / "none.wav").waveform(*wrong)

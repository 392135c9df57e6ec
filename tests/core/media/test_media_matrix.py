"""Every codec in every container that FFmpeg writes: where clicks are, how long the sound is, and windows of it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_files import clicks, encode_audio, sine

from mbt_core.media import Clip

SECONDS = 8.0
AT = tuple(0.51 + 0.73 * k for k in range(10))
FORMATS = {"mkv": "matroska", "ts": "mpegts", "mpg": "mpeg"}
ROUNDED = ("mkv", "webm", "flv")  # whose timestamps are milliseconds
RATES = {
    "vorbis": (8000, 22050, 44100, 48000),
    "libopus": (8000, 16000, 48000),
    "aac": (8000, 16000, 22050, 44100, 48000),
    "mp2": (16000, 22050, 44100, 48000),
    "libmp3lame": (8000, 16000, 22050, 44100, 48000),
    "ac3": (32000, 44100, 48000),
    "flac": (8000, 16000, 22050, 44100, 48000),
    "alac": (8000, 16000, 44100, 48000),
    "pcm_s16le": (8000, 16000, 44100, 48000),
    "pcm_dvd": (48000,),
}
CONTAINERS = {
    "vorbis": ("ogg", "webm", "mkv", "mp4"),
    "libopus": ("ogg", "webm", "mkv", "mp4", "ts"),
    "aac": ("mkv", "mp4", "ts", "avi", "flv", "aac"),
    "mp2": ("mkv", "mp4", "ts", "mpg", "vob", "avi", "wav"),
    "libmp3lame": ("mkv", "mp4", "ts", "mpg", "vob", "avi", "wav", "mp3"),
    "ac3": ("mkv", "mp4", "ts", "mpg", "vob", "avi", "wav", "ac3"),
    "flac": ("ogg", "mkv", "mp4", "flac"),
    "alac": ("mkv", "mp4"),
    "pcm_s16le": ("mkv", "mp4", "avi", "flv", "wav"),
    "pcm_dvd": ("mpg", "vob"),
}
# Samples by which an encoder is late where its container does not tell it.
DELAYS = {"aac": 1024, "mp2": 481, "libmp3lame": 1105, "ac3": 256}
# What FFmpeg writes wrongly: rates that FLV has no code for, and the delay of Opus counted at another rate.
WRONG = {("pcm_s16le", "flv", rate) for rate in (8000, 16000, 48000)}
WRONG |= {("libopus", suffix, rate) for suffix in ("mkv", "webm") for rate in (8000, 16000)}
EVERY = {(codec, suffix, rate) for codec in RATES for suffix in CONTAINERS[codec] for rate in RATES[codec]}
FEW = [
    ("vorbis", "ogg", 22050), ("vorbis", "webm", 44100), ("libopus", "webm", 48000), ("libopus", "ogg", 16000),
    ("aac", "mkv", 44100), ("aac", "flv", 22050), ("aac", "ts", 48000), ("mp2", "mpg", 48000), ("ac3", "vob", 48000),
    ("ac3", "ac3", 44100), ("libmp3lame", "wav", 16000), ("libmp3lame", "mkv", 8000), ("flac", "ogg", 44100),
    ("alac", "mkv", 16000), ("pcm_s16le", "avi", 8000), ("pcm_dvd", "vob", 48000),
]  # fmt: skip


def write(path: Path, codec: str, rate: int) -> Path:
    """8 s of a tone with clicks, in stereo."""
    sound = clicks(SECONDS, rate, AT, 2) + 0.05 * sine(SECONDS, rate, 300, 2)
    strict = {"strict": "-2"}
    with av.open(str(path), "w", format=FORMATS.get(path.suffix[1:]), options=strict) as out:
        stream = out.add_stream(codec, rate=rate, layout="stereo")
        stream.codec_context.options = strict | ({"aac_coder": "fast"} if codec == "aac" else {})
        encode_audio(out, stream, sound, rate)
    return path


def counted(path: Path) -> tuple[np.ndarray, int, float]:
    """All samples by plain PyAV, one after the other, their rate, and seconds from the clip's start to the first."""
    with av.open(str(path)) as container:
        stream, parts = container.streams.audio[0], []
        zero, begin = (container.start_time or 0) / av.time_base, None
        for frame in container.decode(stream):
            if begin is None and frame.pts is not None:
                begin = float(frame.pts * stream.time_base) - zero
            rate = frame.sample_rate
            resampler = av.AudioResampler("fltp", "stereo", rate)
            parts += [part.to_ndarray().mean(0) for part in resampler.resample(frame)]
    return np.concatenate(parts), rate, begin or 0.0


def check_sound(path: Path, codec: str, rate: int) -> None:
    """Clicks to the sample, or at the codec's delay; the length; random windows are slices of the whole."""
    with Clip(path) as clip:
        whole, own_rate = clip.waveform(0.0, SECONDS + 1, clip.sample_rate), clip.sample_rate
        tick = own_rate / 1000 if path.suffix[1:] in ROUNDED else 0.0
        reach = round(0.2 * own_rate)
        places = [round(t * own_rate) for t in AT]
        offsets = [int(np.argmax(whole[k - reach : k + reach])) - reach for k in places]
        assert max(offsets) - min(offsets) <= 1 + own_rate // rate, offsets
        delay = DELAYS.get(codec, 0) * own_rate / rate
        # a transport stream does not tell what an Opus decoder is to skip
        allowed = (0.0, delay, 312.0) if codec == "libopus" else (0.0, delay)
        middle = float(np.median(offsets))
        assert min(abs(middle - late) for late in allowed) <= 1 + own_rate // rate + tick / 2, offsets
        frame = 4800 / rate  # of the longest codec
        assert SECONDS - 0.02 <= clip.duration_of("waveform") <= SECONDS + delay / own_rate + frame
    rng = np.random.default_rng(rate)
    for start in (*rng.uniform(0, SECONDS - 1, 6).tolist(), SECONDS - 0.3):
        length = float(rng.choice([0.04, 0.4, 1.0]))
        with Clip(path) as clip:
            window = clip.waveform(start, start + length, own_rate)
        expected = whole[round(start * own_rate) :][: len(window)]
        # a decoder of AC-3 makes up noise, and those of lossy codecs start from silence
        np.testing.assert_allclose(window, expected, atol=0.02 if codec == "ac3" else 3e-3, err_msg=str(start))


def check_counting(path: Path, codec: str) -> None:
    """The whole is what is decoded, one frame after the other."""
    samples, rate, begin = counted(path)
    low = round(max(begin, 0.0) * rate)
    with Clip(path) as clip:
        whole = clip.waveform(0.0, SECONDS, rate)[low:]
    expected = samples[round(max(-begin, 0.0) * rate) :]
    # where timestamps are rounded to milliseconds, so is the place of the first frame
    reach = rate // 2000 if path.suffix[1:] in ROUNDED else 0
    errors = [np.abs(whole[rate : 3 * rate] - expected[rate + lag : 3 * rate + lag]).max() for lag in lags(reach)]
    assert min(errors) < (0.02 if codec == "ac3" else 2e-3), errors


def lags(reach: int) -> range:
    return range(-reach, reach + 1)


@pytest.mark.parametrize(("codec", "suffix", "rate"), FEW)
def test_windows_clicks_and_lengths(tmp_path, codec, suffix, rate):
    path = write(tmp_path / f"a.{suffix}", codec, rate)
    check_sound(path, codec, rate)
    check_counting(path, codec)


@pytest.mark.slow
@pytest.mark.parametrize(("codec", "suffix", "rate"), sorted(EVERY - WRONG - set(FEW)))
def test_windows_clicks_and_lengths_of_every_codec(tmp_path, codec, suffix, rate):
    path = write(tmp_path / f"a.{suffix}", codec, rate)
    check_sound(path, codec, rate)
    check_counting(path, codec)


def write_dvd(path: Path, seconds: float) -> None:
    """A program stream with pictures and AC-3, as on a DVD: a tone of which each second has its own pitch."""
    rng = np.random.default_rng(0)
    sound = np.concatenate([sine(1, 48000, 300 + 37 * k) for k in range(round(seconds))], 1)
    with av.open(str(path), "w", format="dvd") as out:
        video = out.add_stream("mpeg2video", rate=25)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        audio = out.add_stream("ac3", rate=48000, layout="mono")
        resampler = av.AudioResampler("fltp", "mono", 48000, frame_size=1536)
        frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
        sounds = [*resampler.resample(frame), *resampler.resample(None)]
        for i in range(round(seconds * 25)):
            picture = av.VideoFrame.from_ndarray(rng.integers(0, 256, (64, 96, 3), np.uint8), format="rgb24")
            picture.pts, picture.time_base = i, Fraction(1, 25)
            out.mux(video.encode(picture))
            while sounds and sounds[0].pts / 48000 < (i + 1) / 25:
                out.mux(audio.encode(sounds.pop(0)))
        out.mux(video.encode(None))
        for part in [*sounds, None]:
            out.mux(audio.encode(part))


def test_program_stream_of_a_dvd(tmp_path):
    """Its frames get timestamps that are a frame late, singly and after a seek; nothing is missing."""
    path = tmp_path / "a.vob"
    write_dvd(path, 20)
    with Clip(path) as clip:
        whole = clip.waveform(0.0, 20.0, 48000)
        assert clip.duration_of("waveform") == pytest.approx(20.0, abs=0.05)
    assert np.abs(whole).reshape(-1, 480).max(1)[2:].min() > 0.3
    for start in np.arange(0, 19, 1.7).tolist():
        with Clip(path) as clip:
            window = clip.waveform(start, start + 0.9, 48000)
        np.testing.assert_allclose(window, whole[round(start * 48000) :][: len(window)], atol=0.02)

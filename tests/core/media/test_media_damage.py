"""Damaged files: the right answer or a `MediaError`, nothing else, and soon."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from media_files import counting, sine, write_image, write_media

from mbt_core.media import Clip, MediaError
from mbt_core.media.lengths import is_truncated

FILES = ("a.mp4", "fast.mp4", "a.mkv", "a.ts", "a.avi", "a.h264", "a.wav", "a.flac", "a.mp3", "a.png", "a.jpg")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files of all sorts, 0.8 s of 25 fps and 16 kHz."""
    folder = tmp_path_factory.mktemp("media")
    video, sound = counting(20, 32, 48), sine(0.8, 16000)
    write_media(folder / "a.mp4", video, sound)
    write_media(folder / "fast.mp4", video, sound, options={"movflags": "faststart"})
    write_media(folder / "fragmented.mp4", video, sound, options={"movflags": "frag_keyframe+empty_moov"})
    write_media(folder / "a.mkv", video, sound)
    write_media(folder / "a.ts", video, sound)
    write_media(folder / "a.avi", video, sound, codec="mpeg4", audio_codec="pcm_s16le")
    write_media(folder / "a.h264", video)
    write_media(folder / "a.wav", None, sound, audio_codec="pcm_s16le")
    write_media(folder / "a.flac", None, sound, audio_codec="flac")
    write_media(folder / "a.mp3", None, sound, audio_codec="libmp3lame")
    write_image(folder / "a.png", np.random.default_rng(0).integers(0, 256, (32, 48, 3)).astype(np.uint8))
    write_image(folder / "a.jpg", video[9], "yuvj420p")
    return folder


def mutated(data: bytes, seed: str) -> bytes:
    """A quarter of the seeds cut the file off, the others flip up to 30 bits, often near its start."""
    rng = random.Random(seed)
    if rng.random() < 0.25:
        return data[: rng.randrange(len(data))]
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 3, 30])):
        changed[rng.randrange(min(len(data), rng.choice([64, 600, len(data)])))] ^= 1 << rng.randrange(8)
    return bytes(changed)


@contextmanager
def suppress_media_error(file: str) -> Iterator[None]:
    """Nothing happens on a `MediaError` that names the file."""
    try:
        yield
    except MediaError as error:
        if not str(error).startswith(f"{file}: "):
            raise


@pytest.mark.parametrize("file", FILES)
def test_mutated_files_are_right_or_a_media_error(folder, file):
    data = (folder / file).read_bytes()
    calls = {
        "has": lambda clip: [clip.has(reads) for reads in ("frames", "waveform", "array", "text")],
        "facts": lambda clip: (clip.duration, clip.frame_rate, clip.sample_rate, clip.size),
        "frames": lambda clip: clip.frames([0.7, 0.0, 0.31], size=(16, 24)).shape == (3, 16, 24, 3),
        "waveform": lambda clip: clip.waveform(0.1, 0.7, 8000).shape == (4800,),
    }
    for seed in range(12):
        begun = time.monotonic()
        with Clip(mutated(data, f"{file} {seed}"), file, timeout=5) as clip:
            for name, call in calls.items():
                with suppress_media_error(file):
                    assert call(clip), (seed, name)
        assert time.monotonic() - begun < 10, seed


@pytest.mark.parametrize("file", ["a.mp4", "fast.mp4", "fragmented.mp4", "a.mkv", "a.avi", "a.wav"])
def test_truncated_files_are_told_from_short_ones(folder, file):
    data = (folder / file).read_bytes()
    assert Clip(data, file).duration == pytest.approx(0.8, abs=0.1)
    for left in (0.3, 0.5, 0.7, 0.9):
        cut = data[: int(len(data) * left)]
        for call in (lambda clip: clip.has("frames"), lambda clip: clip.waveform(0.0, 0.1, 16000)):
            with pytest.raises(MediaError, match=rf"{file}: truncated: the file is shorter than it says"):
                call(Clip(cut, file))


@pytest.mark.parametrize("file", ["a.png", "a.jpg", "a.flac"])
def test_truncated_pictures_and_flac_do_not_decode(folder, file):
    data = (folder / file).read_bytes()
    for left in (0.3, 0.6, 0.9):
        clip = Clip(data[: int(len(data) * left)], file)
        with pytest.raises(MediaError, match=rf"{file}: cannot "):
            clip.waveform(0.0, 0.8, 16000) if file.endswith("flac") else clip.frames([0.0])


@pytest.mark.parametrize("file", ["fast.mp4", "a.mkv", "a.h264"])
def test_overwritten_video_is_an_error_and_not_a_grey_picture(folder, file):
    data = bytearray((folder / file).read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(400)
    with pytest.raises(MediaError, match=rf"{file}: cannot decode its video after 0\.\d\d s: Invalid data"):
        Clip(bytes(data), file).frames([0.0, 0.79])


@pytest.mark.parametrize(
    ("file", "codec"), [("a.ts", "aac"), ("a.mpg", "mp2"), ("a.ogg", "libopus"), ("a.mkv", "libopus")]
)
def test_sound_that_was_cut_out_is_an_error_and_not_silence(file, codec, tmp_path):
    path = write_media(tmp_path / file, None, sine(4, 48000), rate=48000, audio_codec=codec)
    with Clip(path) as clip:
        assert np.abs(clip.waveform(0.2, 3.8, 16000)).reshape(-1, 320).max(1).min() > 0.1
    data = path.read_bytes()
    packet = 188  # of a transport stream
    begin = len(data) // 3 // packet * packet
    for length, filling in ((20 * packet, b""), (20 * packet, bytes(20 * packet)), (len(data) // 2, b"")):
        damaged = data[:begin] + filling + data[begin + length :]
        with pytest.raises(
            MediaError, match=rf"{file}: .*(is missing|its sound ends at|cannot decode its audio|truncated: )"
        ):
            Clip(damaged, file).waveform(0.2, 3.8, 16000)


def test_millions_of_empty_boxes_are_under_the_timeout():
    data = b"\0\0\0\x08free" * 4_000_000
    begun = time.monotonic()
    with pytest.raises(MediaError, match=r"boxes\.mp4: took longer than 0\.2 s to read"):
        Clip(data, "boxes.mp4", timeout=0.2).has("frames")
    assert time.monotonic() - begun < 2


def test_damage_behind_the_window_does_not_matter(folder):
    data = bytearray((folder / "fast.mp4").read_bytes())
    data[-2000:-1000] = bytes(1000)
    assert Clip(bytes(data), "fast.mp4").frames([0.0]).shape == (1, 32, 48, 3)


def test_length_unknown_to_the_writer_is_no_truncation(folder):
    data = bytearray((folder / "a.wav").read_bytes())
    at = data.index(b"data")
    data[4:8] = data[at + 4 : at + 8] = b"\xff\xff\xff\xff"
    clip = Clip(bytes(data), "piped.wav")
    np.testing.assert_allclose(clip.waveform(0.0, 0.8, 16000), sine(0.8, 16000)[0], atol=1e-3)
    assert clip.duration == pytest.approx(0.8, abs=0.1)


def test_appended_data_is_no_truncation(folder, tmp_path):
    for file in FILES:
        longer = tmp_path / file
        longer.write_bytes((folder / file).read_bytes() + b"appended by somebody")
        with longer.open("rb") as opened:
            assert not is_truncated(opened), file

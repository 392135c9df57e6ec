"""Damaged files: the right answer or a `MediaError`, nothing else, and soon."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest
from media_files import LOSSLESS, counting, shown, sine, write_image, write_media

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


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


APE = b"".join(
    b"APETAGEX" + n.to_bytes(4, "little") + bytes([35, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, flag]) + bytes(8) + item
    for n, flag, item in ((2000, 0xA0, b"\3\0\0\0\0\0\0\0Title\0abc"), (2000, 0x80, b""))
)
TAILS = {
    "newline": b"\r\n",
    "text": b"appended by somebody",
    "zeros": bytes(500),
    "noise": noise(0, 700),
    "id3v1": b"TAG" + b"a title".ljust(125),
    "id3v2": b"ID3\4\0\0\0\0\0\x15TIT2\0\0\0\x0b\0\0\0Some title",
    "lyrics": b"LYRICSBEGIN" + 20 * b"la la la " + b"000191LYRICS200",
    "ape": APE,
}


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize(("file", "codec"), [("a.mp3", "libmp3lame"), ("a.aac", "aac"), ("a.wv", "wavpack")])
def test_what_follows_the_last_sound_loses_nothing(file, codec, tail, tmp_path):
    form = {"a.aac": "adts"}.get(file)
    path = write_media(tmp_path / file, None, sine(2, 16000), audio_codec=codec, format=form)
    data = path.read_bytes()
    with Clip(data, file) as clip, Clip(data + TAILS[tail], file) as longer:
        np.testing.assert_allclose(longer.waveform(0.0, 3.0, 16000), clip.waveform(0.0, 3.0, 16000), atol=0.02)
        np.testing.assert_array_equal(longer.waveform(0.0, 1.9, 16000), clip.waveform(0.0, 1.9, 16000))


@pytest.mark.parametrize("tail", [tail for tail in TAILS if tail != "noise"])
@pytest.mark.parametrize("file", ["a.png", "a.jpg"])
def test_what_follows_a_picture_loses_nothing(folder, file, tail):
    data = (folder / file).read_bytes()
    with Clip(data, file) as clip, Clip(data + TAILS[tail], file) as longer:
        np.testing.assert_array_equal(longer.frames([0.0, 2.0]), clip.frames([0.0, 2.0]))


def with_empty_packet(data: bytes) -> bytes:
    """An Ogg file whose last page has one more packet, of no bytes."""
    at = data.rindex(b"OggS")
    count = data[at + 26]
    page = bytearray(data[at : at + 27 + count] + b"\0" + data[at + 27 + count :])
    page[26], page[22:26] = count + 1, bytes(4)
    checksum = 0
    for byte in page:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = checksum << 1 ^ (0x104C11DB7 if checksum & 0x80000000 else 0)
    page[22:26] = checksum.to_bytes(4, "little")
    return data[:at] + bytes(page)


@pytest.mark.parametrize(("codec", "rate"), [("libopus", 48000), ("flac", 16000)])
def test_an_empty_packet_at_the_end_of_ogg_loses_nothing(codec, rate, tmp_path):
    path = write_media(tmp_path / "a.ogg", None, sine(1, rate), audio_codec=codec, rate=rate)
    data = path.read_bytes()
    with Clip(data, "a.ogg") as clip, Clip(with_empty_packet(data), "a.ogg") as longer:
        np.testing.assert_array_equal(longer.waveform(0.0, 2.0, 16000), clip.waveform(0.0, 2.0, 16000))


@pytest.mark.parametrize("length", [200, 3000])
@pytest.mark.parametrize("filling", [bytes(3000), noise(1, 3000)])
def test_sound_overwritten_in_the_middle_is_an_error(length, filling, tmp_path):
    """Other sound follows it, so it is no tag at the end."""
    data = bytearray(write_media(tmp_path / "a.mp3", None, sine(4, 16000), audio_codec="libmp3lame").read_bytes())
    middle = len(data) // 2
    data[middle : middle + length] = filling[:length]
    with pytest.raises(MediaError, match=r"a\.mp3: cannot decode its audio after \d\.\d\d s"):
        Clip(bytes(data), "a.mp3").waveform(0.0, 4.0, 16000)


@pytest.mark.parametrize("filling", [bytes(40_000), noise(2, 40_000)])
def test_a_large_part_of_sound_overwritten_at_the_end_is_an_error(filling, tmp_path):
    data = write_media(tmp_path / "a.mp3", None, sine(30, 16000), audio_codec="libmp3lame").read_bytes()
    with pytest.raises(MediaError, match=r"a\.mp3: cannot decode its audio after"):
        Clip(data[:-40_000] + filling, "a.mp3").waveform(0.0, 30.0, 16000)


@pytest.mark.parametrize("suffix", ["mp4", "flv", "mkv", "ts"])
def test_damage_behind_a_seek_is_an_error_and_not_the_last_good_frame(suffix, tmp_path):
    """Nothing can be sought five seconds before the keyframe, where reading is tried once more."""
    options = {**LOSSLESS, "g": "10"}
    grain = np.random.default_rng(0).integers(-9, 10, (50, 48, 64, 3))
    path = write_media(
        tmp_path / f"a.{suffix}", (counting(50) + grain).clip(0, 255).astype(np.uint8), video_options=options
    )
    data = path.read_bytes()
    with av.open(str(path)) as file:
        packets = [packet for packet in file.demux(video=0) if packet.size]
    at = data.index(bytes(packets[35])[:64]) + 64
    damaged = data[:at] + noise(3, 64) + data[at + 64 :]
    with Clip(damaged, path.name) as clip:
        assert shown(clip.frames([1.22])) == [30]
        with pytest.raises(MediaError, match=rf"a\.{suffix}: cannot decode its video after 1\.\d\d s"):
            clip.frames([1.22, 1.8])
        assert shown(clip.frames([0.42])) == [10]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "flv", "nut"])
def test_a_video_that_begins_amid_a_group_shows_the_first_frame_that_decodes(suffix, tmp_path):
    """As a cut by copying leaves it: 7 frames of 10 that need the keyframe before them."""
    options = {"preset": "fast", "qp": "4", "g": "10", "bf": "0"}
    path = write_media(tmp_path / f"a.{suffix}", counting(50), video_options=options)
    cut = tmp_path / f"cut.{suffix}"
    with av.open(str(path)) as source, av.open(str(cut), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size][3:]
        first = packets[0].dts
        for packet in packets:
            packet.stream, packet.dts, packet.pts = stream, packet.dts - first, packet.pts - first
            out.mux(packet)
    with Clip(cut) as clip:
        for _ in range(2):  # the second time the file is elsewhere
            assert shown(clip.frames([0.0])) == [10]
            assert shown(clip.frames([1.01])) == [28]
            assert shown(clip.frames([0.1, 0.61])) == [10, 18]
            assert shown(clip.frames_between(-1.0, 9.0)[1]) == list(range(10, 50))

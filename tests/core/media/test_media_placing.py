"""Where sound lies in time: timestamps that are rounded, guessed, or wrong for a frame, and real gaps."""

from __future__ import annotations

import numpy as np
import pytest
from media_files import clicks, counting, sine, write_media
from ogg_pages import pages, written

from mbt_core.config import DataConfig
from mbt_core.data.manifest import Manifest
from mbt_core.data.packing import pack
from mbt_core.media import Clip, MediaError, decode_all, open_clip
from mbt_core.media.placing import Clock, grid_of, place

RATE = 48000
EXACT = Clock(RATE, 1.0, gapless=True)
MILLISECONDS = Clock(RATE, 48.0, gapless=False)


def chunks_at(positions: list[float], length: int = 1024) -> list[tuple[float, np.ndarray]]:
    """Frames of `length` samples, each full of its number."""
    return [(at, np.full(length, float(i), np.float32)) for i, at in enumerate(positions)]


def origins(chunks: list[tuple[float, np.ndarray]], clock: Clock, from_start: bool = True) -> list[int]:
    return [at for at, _ in place(chunks, clock, None, from_start)]


def test_single_frames_that_are_late_do_not_move_a_run():
    """As of Vorbis in Ogg: the first frame of each page is 448 samples late."""
    at = [1024.0 * i + (448 if i % 7 == 0 else 0) for i in range(30)]
    runs = place(chunks_at(at), EXACT, None, from_start=True)
    assert [(begin, len(samples)) for begin, samples in runs] == [(0, 30 * 1024)]
    for first in range(20):
        assert origins(chunks_at(at[first : first + 5]), EXACT, from_start=False) == [1024 * first]


def test_what_a_demuxer_guesses_after_a_seek_gives_way_to_what_follows():
    at = [1024.0 * (i + 1) for i in range(6)] + [1024.0 * i for i in range(6, 20)]
    assert origins(chunks_at(at), EXACT, from_start=False) == [0]


def test_a_loss_is_a_frame_at_least_and_persists():
    lost = [1024.0 * (i + (2 if i >= 10 else 0)) for i in range(20)]
    assert origins(chunks_at(lost), EXACT) == [0, 12 * 1024]
    shifted = [1024.0 * i + (600 if i >= 10 else 0) for i in range(20)]
    assert len(origins(chunks_at(shifted), EXACT)) == 1
    # a recording with a gap, in a format that keeps gaps
    gap = [1024.0 * i + (24000 if i >= 10 else 0) for i in range(20)]
    assert origins(chunks_at(gap), MILLISECONDS) == [0, 10 * 1024 + 24000]


def test_timestamps_that_start_again_are_no_guess():
    at = [1024.0 * i for i in range(200)] + [1024.0 * i for i in range(200)]
    assert len(origins(chunks_at(at), EXACT)) == 2


def test_frames_from_beyond_a_gap_are_left_out_before_a_window():
    at = [0.0, *(48000.0 + 1024 * i for i in range(10))]
    runs = place(chunks_at(at), MILLISECONDS, None, from_start=False)
    assert [(begin, float(samples[0])) for begin, samples in runs] == [(48000, 1.0)]


@pytest.mark.parametrize("start", [0.0, 0.0237, 1.2345])
def test_rounded_timestamps_place_windows_to_the_sample(start):
    true = [start * RATE + 1024 * i for i in range(600)]
    chunks = chunks_at([round(at / 48) * 48.0 for at in true])
    grid = grid_of(chunks, MILLISECONDS)
    (whole,) = [at for at, _ in place(chunks, MILLISECONDS, grid, from_start=True)]
    assert abs(whole - true[0]) <= 16  # frames of 1024 samples are at three thirds of a millisecond
    for first in range(20, 560, 17):
        assert [at for at, _ in place(chunks[first : first + 12], MILLISECONDS, grid, False)] == [whole + 1024 * first]


def test_ogg_whose_pages_jump_by_less_than_a_frame(tmp_path):
    """Nothing is missing: FLAC's packets follow each other. As encoders write that drop a codec's delay."""
    path = write_media(tmp_path / "a.ogg", None, clicks(6, 16000, [1, 3, 5]), rate=16000, audio_codec="flac")
    changed = []
    for page in pages(path.read_bytes()):
        jump = 700 if len(changed) > 3 and page.granule > 0 else 0
        changed.append(page._replace(granule=page.granule + jump))
    data = written(changed)
    whole = Clip(data, "a.ogg").waveform(0, 6, 16000)
    assert [int(np.argmax(whole[k * 16000 - 4000 : k * 16000 + 4000])) - 4000 for k in (1, 3, 5)] == [0, 0, 0]
    for start in (0.3, 1.7, 3.9, 5.2):
        window = Clip(data, "a.ogg").waveform(start, start + 0.7, 16000)
        np.testing.assert_array_equal(window, whole[round(start * 16000) :][: len(window)])


@pytest.mark.parametrize("codec", ["flac", "libopus"])
def test_lost_pages_are_found(tmp_path, codec):
    path = tmp_path / "a.ogg"
    write_media(path, None, sine(6, 48000), rate=48000, audio_codec=codec, options={"page_duration": "200000"})
    lacking = [page for i, page in enumerate(pages(path.read_bytes())) if not 12 <= i < 15]
    with pytest.raises(MediaError, match=r"a\.ogg: damaged: its sound from .* is missing"):
        Clip(written(lacking), "a.ogg").waveform(0, 6, 16000)


@pytest.mark.parametrize(("file", "codec"), [("a.m4a", "aac"), ("a.ogg", "libopus")])
def test_eight_channels(tmp_path, file, codec):
    """PyAV counts a plane too many of these."""
    sound = np.concatenate([0.2 * sine(2, 48000, 200 + 50 * k) for k in range(8)])
    path = tmp_path / file
    write_media(path, None, sound, rate=48000, audio_codec=codec)
    waveform = Clip(path).waveform(0.5, 1.5, 48000)
    expected = sound.mean(0)[24000:72000]
    # AAC keeps nothing but the lowest tones of the fourth channel, the one for them
    assert waveform.std() == pytest.approx(expected.std(), rel=0.1)
    held = decode_all(Clip(path), {"waveform"}, 0.0, 2.0, None, 16000)
    np.testing.assert_allclose(held.waveform(0.5, 1.5, 16000), Clip(path).waveform(0.5, 1.5, 16000), atol=1e-3)


def test_pre_skip_of_opus_is_no_part_of_the_length(tmp_path):
    """Any 16-bit number of samples may be skipped (RFC 7845, 4.2)."""
    path = tmp_path / "a.opus"
    write_media(path, None, sine(4, 48000), rate=48000, audio_codec="libopus", format="ogg")
    first, *others = pages(path.read_bytes())
    assert Clip(path).duration == pytest.approx(4.0, abs=1e-3)
    body = first.body[:10] + (60000).to_bytes(2, "little") + first.body[12:]
    late = Clip(written([first._replace(body=body), *others]), "a.opus")
    expected = 4.0 - (60000 - int.from_bytes(first.body[10:12], "little")) / 48000
    assert late.duration == pytest.approx(expected, abs=1e-3)
    waveform = late.waveform(0, 4, 48000)
    assert np.flatnonzero(waveform)[-1] / 48000 == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("told", ["00:00:05.000", "00:00:02.000", "00:00:00.000", "00:00:01.000", "09:00:00.000"])
def test_length_of_matroska_is_what_its_packets_say(tmp_path, told):
    """DURATION is an end, as FFmpeg writes it, or a length, as mkvmerge does, or wrong."""
    path = tmp_path / "a.mkv"
    write_media(path, counting(125), sine(2, 16000), audio_codec="pcm_s16le", audio_start=3.0)
    data = path.read_bytes()
    at = data.rindex(b"00:00:05.000")  # of the sound
    clip = Clip(data[:at] + told.encode() + data[at + len(told) :], "a.mkv")
    assert clip.duration_of("waveform") == pytest.approx(5.0, abs=0.05)
    assert clip.duration == pytest.approx(5.0, abs=0.05)
    assert clip.waveform(4.0, 4.5, 16000).std() > 0.3


@pytest.mark.parametrize(("file", "codec"), [("a.webm", "libopus"), ("a.ogg", "flac"), ("a.mkv", "aac")])
def test_packed_and_held_sound_is_that_of_the_clip(tmp_path, file, codec):
    write_media(tmp_path / file, None, clicks(6, 48000, [1, 3.3, 5]), rate=48000, audio_codec=codec)
    (tmp_path / "m.csv").write_text(f"id,path\na,{file}\n")
    reads = {"audio": "waveform"}
    pack(tmp_path / "m.csv", reads, DataConfig(), tmp_path / "shards", workers=1)
    packed = Manifest.read(tmp_path / "shards", reads, DataConfig()).row(0).sources["audio"]
    held = decode_all(Clip(tmp_path / file), {"waveform"}, 2.0, 6.0, None, 16000)
    for start in (2.0, 3.1, 4.77):
        expected = Clip(tmp_path / file).waveform(start, start + 1, 16000)
        np.testing.assert_allclose(open_clip(packed.path).waveform(start, start + 1, 16000), expected, atol=2e-4)
        np.testing.assert_allclose(held.waveform(start, start + 1, 16000), expected, atol=2e-4)
    assert open_clip(packed.path).duration == held.duration == Clip(tmp_path / file).duration


def test_damage_before_a_window_does_not_matter(tmp_path):
    """Nor where the start tells the places of frames."""
    write_media(tmp_path / "a.mkv", None, sine(16, 48000), rate=48000, audio_codec="flac")
    data = bytearray((tmp_path / "a.mkv").read_bytes())
    begin = data.index(b"\xff\xf8")  # a frame of FLAC
    data[begin + 20 : begin + 400] = bytes(380)
    with pytest.raises(MediaError, match=r"a\.mkv: cannot decode its audio"):
        Clip(bytes(data), "a.mkv").waveform(0, 1, 48000)
    window = Clip(bytes(data), "a.mkv").waveform(12, 13, 48000)
    np.testing.assert_allclose(window, sine(16, 48000)[0][576000:624000], atol=1e-4)

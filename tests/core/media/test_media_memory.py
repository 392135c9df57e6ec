"""`MemoryClip` gives what the clip it was decoded from gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from media_files import clicks, counting, shown, sine, write_image, write_media

from mbt_core.media import Clip, MediaError, MemoryClip, decode_all

BOTH = {"frames", "waveform"}


@pytest.fixture(scope="module")
def mp4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("media") / "a.mp4"
    options = {"preset": "fast", "qp": "4", "g": "12", "bf": "3"}
    # ALAC: AAC would fill in noise that depends on where decoding begins.
    sound = sine(2, 44100, channels=2)
    return write_media(path, counting(50), sound, rate=44100, audio_codec="alac", video_options=options)


@pytest.fixture(params=["kept", "saved"])
def whole(request, mp4, tmp_path):
    """The clip decoded from 0 to 3 s, though it ends at 2."""
    held = decode_all(Clip(mp4), BOTH, 0.0, 3.0, 24, 16000)
    if request.param == "saved":
        held.save(tmp_path / "held.npz")
        assert [p.name for p in tmp_path.iterdir()] == ["held.npz"]
        held = MemoryClip.load(tmp_path / "held.npz")
    return held


@pytest.mark.parametrize("times", [[0.0, 0.51, 1.02], [1.9, 0.3, 0.3], [-1.0, 5.0], [i / 25 for i in range(50)]])
def test_frames_are_equal(whole, mp4, times):
    np.testing.assert_array_equal(whole.frames(times, short_side=24), Clip(mp4).frames(times, short_side=24))


@pytest.mark.parametrize("window", [(0.0, 2.0), (0.123, 1.456), (1.5, 4.0), (-0.5, 0.25), (6.0, 7.0)])
def test_waveform_is_equal(whole, mp4, window):
    expected = Clip(mp4).waveform(*window, 16000)
    waveform = whole.waveform(*window, 16000)
    assert waveform.dtype == np.float32
    np.testing.assert_allclose(waveform, expected, atol=2e-5)


def test_facts_are_equal(whole, mp4):
    clip = Clip(mp4)
    assert whole.name == clip.name
    assert (whole.duration, whole.frame_rate, whole.sample_rate) == (2.0, 25, 44100)
    assert (whole.duration, whole.frame_rate, whole.sample_rate) == (clip.duration, clip.frame_rate, clip.sample_rate)
    for reads in ("frames", "waveform", "array", "text"):
        assert whole.has(reads) == clip.has(reads)
        assert whole.duration_of(reads) == clip.duration_of(reads)
    held = whole.frames([0.0], 24).nbytes * 50 + 2 * 16000 * 4
    assert held <= whole.nbytes < held + 5000


def test_part_of_a_clip_keeps_its_times(mp4):
    with Clip(mp4) as clip:
        held = decode_all(clip, BOTH, 0.5, 1.5, None, 16000)
        times = [0.5, 0.99, 1.5]
        np.testing.assert_array_equal(held.frames(times), clip.frames(times))
        np.testing.assert_allclose(held.waveform(0.5, 1.5, 16000), clip.waveform(0.5, 1.5, 16000), atol=2e-5)
        np.testing.assert_allclose(held.waveform(0.7001, 1.2, 16000), clip.waveform(0.7001, 1.2, 16000), atol=2e-5)


def test_what_is_not_held_is_an_error(mp4):
    held = decode_all(Clip(mp4), {"frames", "waveform"}, 0.5, 1.5, 24, 16000)
    with pytest.raises(MediaError, match=r"a\.mp4: 0\.5 to 1\.5 s are held, asked for 0\.4 to 1 s"):
        held.frames([0.4, 1.0], short_side=24)
    with pytest.raises(MediaError, match=r"0\.5 to 1\.5 s are held, asked for 1 to 1\.6 s"):
        held.waveform(1.0, 1.6, 16000)
    with pytest.raises(MediaError, match="held at 16000 Hz, asked for 8000 Hz"):
        held.waveform(0.5, 1.0, 8000)
    with pytest.raises(MediaError, match=r"frames of \(24, 32\) .* asked for short side 32"):
        held.frames([0.5], short_side=32)
    with pytest.raises(MediaError, match="array is not held"):
        held.array()
    np.testing.assert_array_equal(held.frames([0.5], size=(24, 32)), held.frames([0.5], short_side=24))


def test_only_what_is_read_is_decoded(mp4):
    held = decode_all(Clip(mp4), {"waveform"}, 0.0, 2.0, 24, 16000)
    assert not held.has("frames")
    assert set(held.parts) == {"waveform"}


def test_what_the_clip_lacks_is_absent(tmp_path):
    path = write_media(tmp_path / "silent.mp4", counting(5))
    held = decode_all(Clip(path), BOTH, 0.0, 1.0, 24, 16000)
    assert held.has("frames")
    assert not held.has("waveform")


def test_stills_arrays_and_text(tmp_path):
    still = decode_all(Clip(write_image(tmp_path / "a.png", counting(4)[3])), BOTH, 0.0, 1.0, 24, 16000)
    assert still.duration is None
    assert shown(still.frames([0.0, 0.7, 9.0], short_side=24)) == [3, 3, 3]
    np.save(tmp_path / "a.npy", np.arange(6.0).reshape(2, 3))
    array = decode_all(Clip(tmp_path / "a.npy"), {"array"}, 0.0, 1.0, None, 16000)
    words = decode_all(Clip.of_text("Grüße", "row 1"), {"text", "frames"}, 0.0, 1.0, None, 16000)
    for held in (array, words):
        held.save(tmp_path / "held.npz")
        again = MemoryClip.load(tmp_path / "held.npz")
        assert again.ends == held.ends
    np.testing.assert_array_equal(array.array(), Clip(tmp_path / "a.npy").array())
    assert again.text() == again.source_text() == "Grüße"
    with words as held:
        assert held.has("text")


def test_silence_costs_nothing(tmp_path):
    path = write_media(tmp_path / "a.wav", None, clicks(2, 16000, [0.2]), audio_codec="pcm_s16le")
    held = decode_all(Clip(path), {"waveform"}, 0.0, 600.0, None, 16000)
    assert held.nbytes < 20000
    assert held.waveform(0.0, 60.0, 16000).shape == (960000,)


def test_damaged_file(tmp_path, mp4):
    path = tmp_path / "held.npz"
    decode_all(Clip(mp4), BOTH, 0.0, 1.0, 24, 16000).save(path)
    data = path.read_bytes()
    for damaged in (b"", data[:100], data[:-50], b"x" * 200):
        path.write_bytes(damaged)
        with pytest.raises(MediaError, match=r"held\.npz: cannot read the decoded clip"):
            MemoryClip.load(path)
    with pytest.raises(MediaError, match="cannot read the decoded clip"):
        MemoryClip.load(tmp_path / "none.npz")


def test_failed_save_leaves_the_old_file(tmp_path, mp4, monkeypatch):
    path = tmp_path / "held.npz"
    held = decode_all(Clip(mp4), BOTH, 0.0, 1.0, 24, 16000)
    held.save(path)
    before = path.read_bytes()

    def fail(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        held.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["held.npz"]
    assert path.read_bytes() == before

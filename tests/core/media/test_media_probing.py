"""Sound files whose opening is cut short are what they are without that."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from media_files import write_media

from mbt_core.media import open_clip
from mbt_core.media.container import Container
from mbt_core.media.probing import SYNC_WORDS, probe_options

RATE = 44_100


def write(path: Path, codec: str, channels: int = 2, **options: str) -> Path:
    """A second of noise."""
    noise = np.random.default_rng(0).normal(0, 0.1, (channels, RATE)).astype(np.float32)
    return write_media(path, audio=noise, rate=RATE, audio_codec=codec, options=options)


def as_pcm(path: Path, content: bytes, silence: int = 0) -> Path:
    """The content as the samples of a .wav, which says that they are PCM, after `silence` samples."""
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, RATE, 0, "NONE", ""))
        file.writeframes(bytes(4 * silence) + content[: len(content) // 4 * 4])
    return path


def facts(path: Path) -> dict[str, Any]:
    with open_clip(str(path)) as clip:
        media = clip._media()
        context = media.audio.codec_context
        stream = [media.audio.duration, media.audio.time_base, context.name, context.sample_rate, context.channels]
        return {"stream": stream, "length": media.length, "zero": media.zero, "sound": clip.waveform(0.1, 0.9, 16_000)}


@pytest.mark.parametrize(
    ("name", "codec", "channels", "options"),
    [
        ("a.wav", "pcm_s16le", 1, {}),
        ("a.wav", "pcm_s16le", 2, {}),
        ("a.wav", "pcm_s16le", 6, {}),
        ("a.wav", "pcm_s24le", 6, {}),
        ("a.wav", "pcm_u8", 2, {}),
        ("a.wav", "pcm_f32le", 2, {}),
        ("a.wav", "pcm_s16le", 2, {"write_bext": "1"}),
        ("a.wav", "pcm_s16le", 2, {"rf64": "always"}),
        ("a.wav", "adpcm_ms", 2, {}),
        ("a.wav", "mp3", 2, {}),
        ("a.w64", "pcm_s16le", 2, {}),
        ("a.w64", "pcm_s24le", 1, {}),
        ("a.flac", "flac", 2, {}),
    ],
)
def test_it_is_read_as_without(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    codec: str,
    channels: int,
    options: dict[str, str],
) -> None:
    path = write(tmp_path / name, codec, channels, **options)
    ours = facts(path)
    monkeypatch.setattr("mbt_core.media.container.probe_options", lambda file: {})
    assert str(ours) == str(facts(path))
    assert np.array_equal(ours["sound"], facts(path)["sound"])


@pytest.mark.parametrize(("name", "short"), [("a.wav", True), ("a.w64", True), ("a.flac", False)])
def test_what_is_cut_short(tmp_path: Path, name: str, short: bool) -> None:
    path = write(tmp_path / name, "flac" if name.endswith("flac") else "pcm_s16le")
    assert probe_options(io.BytesIO(path.read_bytes())) == ({"probesize": "32"} if short else {})


def spdif() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="spdif") as out:
        stream = out.add_stream("ac3", rate=RATE, layout="stereo")
        for part in range(60):
            noise = np.random.default_rng(part).normal(0, 0.1, (2, 1536)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(noise, "fltp", "stereo")
            frame.sample_rate, frame.pts = RATE, 1536 * part
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize("silence", [0, 5000])
def test_what_is_declared_as_pcm_and_is_not(tmp_path: Path, silence: int) -> None:
    path = as_pcm(tmp_path / "a.wav", spdif(), silence)
    with path.open("rb") as file:
        assert Container(file, "a.wav", ".wav", 60.0).audio.codec_context.name == "ac3"


@pytest.mark.parametrize("silence", [0, 100_000])
@pytest.mark.parametrize("words", SYNC_WORDS)
def test_a_sync_word_has_it_tried(tmp_path: Path, words: tuple[int, int], silence: int) -> None:
    """Also after two seconds of silence, where FFmpeg still looks for it; later it does not."""
    frame = np.array(words, "<u2").tobytes() + bytes(2000)
    for frames, before, options in (
        (2 * frame, silence, {}),
        (frame, silence, {"probesize": "32"}),  # once, it is chance
        (2 * frame, 200_000, {"probesize": "32"}),
    ):
        path = as_pcm(tmp_path / "a.wav", frames, before)
        assert probe_options(io.BytesIO(path.read_bytes())) == options


@pytest.mark.parametrize("cut", [0, 3, 14, 20, 30, 44, 45, 60])
def test_a_cut_header(tmp_path: Path, cut: int) -> None:
    content = write(tmp_path / "a.wav", "pcm_s16le").read_bytes()
    assert probe_options(io.BytesIO(content[:cut])) in ({}, {"probesize": "32"})

"""Clips from the wild: set MBT_REAL_CLIPS to a folder of video, image and sound files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from mbt_core.media import Clip, decode_all

FOLDER = os.environ.get("MBT_REAL_CLIPS")
SUFFIXES = {".mp4", ".mkv", ".webm", ".mov", ".avi", ".wav", ".mp3", ".flac", ".m4a", ".png", ".jpg"}
CLIPS = sorted(p for p in Path(FOLDER).rglob("*") if p.suffix.lower() in SUFFIXES) if FOLDER else []


@pytest.mark.skipif(not CLIPS, reason="MBT_REAL_CLIPS names no folder of clips")
@pytest.mark.parametrize("path", CLIPS, ids=lambda path: path.name)
def test_real_clip(path):
    with Clip(path) as clip:
        assert clip.has("frames") or clip.has("waveform")
        end = clip.duration or 1.0
        if clip.has("frames"):
            times = np.linspace(0, end, 9)[:8].tolist()
            frames = clip.frames(times, short_side=112)
            assert frames.shape[0] == 8
            assert min(frames.shape[1:3]) == 112
            assert frames.std() > 1
            for i in (7, 0, 4):
                np.testing.assert_array_equal(clip.frames([times[i]], short_side=112)[0], frames[i])
            np.testing.assert_array_equal(clip.frames([end + 5], 112), clip.frames([end + 50], 112))
        if clip.has("waveform"):
            waveform = clip.waveform(0.0, end + 1, 16000)
            assert waveform.std() > 1e-3
            assert np.abs(waveform).max() <= 1
            assert not waveform[-8000:].any()
        held = decode_all(clip, {"frames", "waveform"}, 0.0, min(end, 2.0), 64, 16000)
        if clip.has("frames"):
            np.testing.assert_array_equal(held.frames([0.1, 0.9], 64), clip.frames([0.1, 0.9], 64))
        if clip.has("waveform"):
            # AAC fills bands with noise that depends on where decoding begins.
            error = held.waveform(0.2, 1.0, 16000) - clip.waveform(0.2, 1.0, 16000)
            assert error.std() < 0.05 * waveform.std()

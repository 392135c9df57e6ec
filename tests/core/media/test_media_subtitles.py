"""Subtitles: what SubRip and WebVTT files say, and their way through `Clip`."""

from __future__ import annotations

import pytest

from mbt_core.media import Clip, MediaError, decode_all
from mbt_core.media.subtitles import Cue, end_of, parse, shown

SRT = """\ufeff1
00:00:01,500 --> 00:00:04,000
{\\an8}<i>Hello</i>
there &amp; <font color="#fff">you</font>

2
01:00:05,000 --> 01:00:06,250  X1:10 Y1:20
1 < 2 and 3 > 2

"""
VTT = """WEBVTT - a title

NOTE a remark
that is no cue

STYLE
::cue { color: red }

intro
00:01.000 --> 00:02.000 align:start
<v Ann>Hi <00:01.500><c.loud>you</c>

00:00:03.000 --> 00:00:04.5
"""


def test_subrip():
    assert parse(SRT.removeprefix("\ufeff")) == [
        Cue(1.5, 4.0, "Hello there & you"),
        Cue(3605.0, 3606.25, "1 < 2 and 3 > 2"),
    ]


def test_webvtt():
    assert parse(VTT) == [Cue(1.0, 2.0, "Hi you"), Cue(3.0, 4.5, "")]
    assert parse("WEBVTT\n") == []
    assert end_of(VTT) == 4.5
    assert end_of("WEBVTT\n") == 0


def test_line_ends_and_missing_blank_lines():
    lines = ["1", "00:00:01,000 --> 00:00:02,000", "one", "2", "00:00:02,000 --> 00:00:03,000", "two", "and more"]
    expected = [Cue(1, 2, "one"), Cue(2, 3, "two and more")]
    for end in ("\n", "\r\n", "\r"):
        assert parse(end.join(lines)) == expected


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="no subtitles in it; expected lines like 00:00:01,000 --> 00:00:04,000"):
        parse("just words")
    assert parse("\n") == []


def test_what_is_shown():
    content = "0:01.0 --> 0:03.0\na\n\n0:02.0 --> 0:04.0\nb\n\n0:06.0 --> 0:07.0\nc\n"
    assert shown(content, None, None) == "a\nb\nc"
    assert shown(content, 3.0, 6.0) == "b"
    assert shown(content, 2.5, 6.5) == "a\nb\nc"
    assert shown(content, 4.0, 6.0) == ""
    assert shown(content, None, 1.5) == "a"


def test_clips_of_subtitles(tmp_path):
    (tmp_path / "a.srt").write_text(SRT)
    (tmp_path / "a.VTT").write_text(VTT)
    (tmp_path / "b.srt").write_text("just words")
    with Clip(tmp_path / "a.srt") as clip:
        assert [reads for reads in ("frames", "waveform", "array", "text") if clip.has(reads)] == ["text"]
        assert clip.duration == clip.duration_of("text") == 3606.25
        assert clip.text(0, 10) == "Hello there & you"
        assert clip.text() == "Hello there & you\n1 < 2 and 3 > 2"
        held = decode_all(clip, {"text"}, 0, 10, None, 0)
        assert held.text(0, 10) == clip.text(0, 10)
        assert held.duration_of("text") == 3606.25
    assert Clip(tmp_path / "a.VTT").text() == "Hi you\n"
    with pytest.raises(MediaError, match=r"b\.srt: cannot read its subtitles: no subtitles in it"):
        Clip(tmp_path / "b.srt").text()


def test_other_text_has_no_times(tmp_path):
    (tmp_path / "a.txt").write_text(SRT)
    clip = Clip(tmp_path / "a.txt")
    assert clip.text(0, 1) == clip.text() == SRT.removeprefix("\ufeff")
    assert clip.duration_of("text") is None
    assert decode_all(clip, {"text"}, 0, 10, None, 0).text(0, 1) == clip.text()

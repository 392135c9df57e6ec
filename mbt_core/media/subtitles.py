"""Subtitles: SubRip (.srt) and WebVTT (.vtt)."""

from __future__ import annotations

import html
import re
from typing import NamedTuple

SUFFIXES = (".srt", ".vtt")

_TIME = r"(?:(\d+):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
_TIMES = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}")
# <i>, </font>, <v Speaker>, <00:00:01.500> and {\an8}, but not a smaller-than sign
_TAG = re.compile(r"</?[A-Za-z0-9][^<>]*>|\{\\[^{}]*\}")


class Cue(NamedTuple):
    """A text shown from `start` to `stop` seconds."""

    start: float
    stop: float
    text: str


def parse(content: str) -> list[Cue]:
    """The cues of a file in their order, without markup; headers, notes and styles are no cues.

    Raises:
        ValueError: for a text that is neither WebVTT nor has any cue.
    """
    cues: list[Cue] = []
    times: tuple[float, float] | None = None
    lines: list[str] = []
    for line in [*content.splitlines(), ""]:
        found = _TIMES.match(line)
        if line.strip() and not found:
            lines.append(line.strip())
            continue
        if times is not None:
            if found and lines and lines[-1].isdigit():  # no blank line before the next cue's number
                lines.pop()
            cues.append(Cue(*times, html.unescape(_TAG.sub("", " ".join(lines))).strip()))
        times = (_seconds(*found.groups()[:4]), _seconds(*found.groups()[4:])) if found else None
        lines = []
    if not cues and content.strip() and not content.startswith("WEBVTT"):
        raise ValueError("no subtitles in it; expected lines like 00:00:01,000 --> 00:00:04,000")
    return cues


def shown(content: str, start: float | None, stop: float | None) -> str:
    """The texts of the cues shown at some time between `start` and `stop` seconds, one a line. None: no bound."""
    low, high = (-1.0 if start is None else start), (float("inf") if stop is None else stop)
    return "\n".join(cue.text for cue in parse(content) if cue.start < high and cue.stop > low)


def end_of(content: str) -> float:
    """Seconds until the last cue ends; 0 without any."""
    return max((cue.stop for cue in parse(content)), default=0.0)


def _seconds(hours: str | None, minutes: str, seconds: str, fraction: str) -> float:
    return 3600 * int(hours or 0) + 60 * int(minutes) + int(seconds) + float(f"0.{fraction}")

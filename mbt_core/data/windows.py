"""Which span of a clip is read."""

from __future__ import annotations

from mbt_core.errors import DataError
from mbt_core.modality import Window


def window_for(
    duration: float | None, row_start: float | None, row_end: float | None, seconds: float | None, position: float
) -> Window:
    """The window at `position` of the span that a row is about.

    Args:
        duration: seconds of the clip; None: it has none (a still, a text).
        row_start, row_end: the row's span in seconds; None: the clip's start, the clip's end.
        seconds: length of the window; None: the whole span.
        position: 0 the first window that fits, 1 the last, 0.5 the middle one. A span shorter than the window has one
            window only, which starts with it and passes its end.

    Raises:
        DataError: if the span begins past the clip's end.
    """
    start = row_start or 0.0
    ends = [end for end in (duration, row_end) if end is not None]
    if duration is not None and start >= duration > 0:
        raise DataError(f"its row starts at {start:g} s, but it is only {duration:g} s long")
    span = max(0.0, min(ends) - start) if ends else 0.0
    if seconds is None:
        return Window(start, start + span)
    begin = start + position * max(0.0, span - seconds)
    return Window(begin, begin + seconds)


def view_positions(views: int) -> list[float]:
    """Positions of `views` windows spread uniformly over a clip; a single one is in the middle."""
    return [0.5] if views == 1 else [view / (views - 1) for view in range(views)]

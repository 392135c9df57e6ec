"""Which span of a clip is read."""

import pytest

from mbt_core.data.windows import view_positions, window_for
from mbt_core.errors import DataError


@pytest.mark.parametrize(
    ("duration", "start", "end", "seconds", "position", "expected"),
    [
        (10.0, None, None, 4.0, 0.0, (0, 4)),
        (10.0, None, None, 4.0, 0.5, (3, 7)),
        (10.0, None, None, 4.0, 1.0, (6, 10)),
        (10.0, 2.0, 8.0, 4.0, 1.0, (4, 8)),  # inside the row's span
        (10.0, 2.0, None, 4.0, 1.0, (6, 10)),
        (10.0, None, 8.0, None, 0.3, (0, 8)),  # the whole span
        (9.0, 2.0, 12.0, 4.0, 1.0, (5, 9)),  # the clip ends before the row does
        (3.0, None, None, 4.0, 0.7, (0, 4)),  # shorter than the window
        (10.0, 9.0, None, 4.0, 0.7, (9, 13)),
        (None, None, None, 4.0, 0.5, (0, 4)),  # a still
        (None, None, None, None, 0.5, (0, 0)),  # a text
        (None, 2.0, 8.0, 4.0, 0.5, (3, 7)),
        (0.0, None, None, 4.0, 0.5, (0, 4)),
    ],
)
def test_window(
    duration: float | None,
    start: float | None,
    end: float | None,
    seconds: float | None,
    position: float,
    expected: tuple[float, float],
) -> None:
    assert window_for(duration, start, end, seconds, position) == pytest.approx(expected)


def test_a_span_past_the_end_is_an_error() -> None:
    with pytest.raises(DataError, match="starts at 30 s, but it is only 10 s long"):
        window_for(10.0, 30.0, 40.0, 4.0, 0.5)


def test_views() -> None:
    assert view_positions(1) == [0.5]
    assert view_positions(2) == [0, 1]
    assert view_positions(4) == pytest.approx([0, 1 / 3, 2 / 3, 1])

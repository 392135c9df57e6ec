"""The pictures of a video stream at given times, as RGB of a given size.

Shapes: T times, H height, W width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from mbt_core.media.container import MAX_PIXELS, Container
from mbt_core.media.errors import MediaError

FAR_APART = 20.0  # seconds; over a longer gap, seeking costs less than decoding what nobody wants
# Without the last two, swscale's pictures are darker by 2 levels of 255.
FLAGS = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
LARGEST_PICTURE = 8 * MAX_PIXELS  # bytes of a still's file: four channels of 16 bits, not compressed
MAX_GREY_BITS = 10  # cameras write so many; what is written with more are measurements
# What `orientation` says for 0, 90, 180 and 270 degrees counter-clockwise.
QUARTER_TURNS = ((False, False, False), (True, True, False), (False, True, True), (True, False, True))


class Scaler:
    """Turns decoded frames into uint8 RGB arrays [H, W, 3], all of one size, as a player shows them.

    swscale converts colours (matrix and range as the frame states them; BT.601 and limited range where it does not)
    and scales (bilinear, over the whole area that shrinks into a pixel) in one pass. Rotation and mirroring are
    applied. Pixels count as square.

    Args:
        name: the file, for errors.
        short_side: length of the shorter side; the aspect ratio is kept.
        size: (height, width) instead; neither: the size of the first frame.
    """

    def __init__(self, name: str, short_side: int | None = None, size: tuple[int, int] | None = None) -> None:
        self.name = name
        self.short_side = short_side
        self.size = size
        self.reformatter = VideoReformatter()

    def __call__(self, frame: Any) -> np.ndarray:
        """[H, W, 3] uint8. Raises `MediaError` for grey levels of which 8 bits would lose most (depth, X-rays)."""
        if grey_bits(frame) > MAX_GREY_BITS:
            raise MediaError(
                f"{self.name}: grey pictures of {grey_bits(frame)} bits, of which RGB frames would keep 8; read them "
                "as an array (a folder for each clip, in it a sub-folder with its pictures), or convert them to 8 bits"
            )
        transpose, flip_rows, flip_columns = orientation(frame)
        if self.size is None:
            self.size = self._target(*((frame.width, frame.height) if transpose else (frame.height, frame.width)))
        height, width = reversed(self.size) if transpose else self.size
        scaled = self.reformatter.reformat(frame, width, height, "rgb24", interpolation=FLAGS, threads=1)
        picture_HW3 = scaled.to_ndarray()
        if transpose:
            picture_HW3 = picture_HW3.transpose(1, 0, 2)
        return picture_HW3[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]

    def _target(self, height: int, width: int) -> tuple[int, int]:
        if self.short_side is not None:
            scale = self.short_side / min(height, width)
            height, width = max(1, round(height * scale)), max(1, round(width * scale))
        if height * width > MAX_PIXELS:
            raise MediaError(f"{self.name}: pictures of {width} x {height} pixels are too large")
        return height, width


def grey_bits(frame: Any) -> int:
    """Bits of the grey levels of a decoded frame; 0 if it has colours."""
    form = frame.format
    is_grey = form.name.startswith(("gray", "ya"))
    return form.components[0].bits if is_grey else 0


def orientation(frame: Any) -> tuple[bool, bool, bool]:
    """How the display matrix places a frame, in quarter turns: transpose first, then flip rows, flip columns.

    The matrix [[a, b, u], [c, d, v], [x, y, w]] takes (column, row) to (a column + c row, b column + d row):
    ISO/IEC 14496-12, track header.
    """
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV 18 knows no name for some side data (EXIF of a photo); then mirroring is not known
        return QUARTER_TURNS[round(frame.rotation / 90) % 4]
    if matrix is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, d < 0, a < 0
    return True, b < 0, c < 0


def shown_frames(container: Container, start: float, stop: float) -> Iterator[tuple[float, Any]]:
    """The frames shown from `start` to `stop` seconds, each with the time from which it is shown.

    The first one is the frame shown at `start`: the last one not later, or the first of the stream.
    """
    stream = container.video
    # A timestamp is a rounded time: a frame counts as shown up to half a tick before it.
    slack = min(float(stream.time_base) / 2, 5e-4) + 1e-6
    held = None
    for at, frame in container.decode(stream, start + slack):
        since = at - slack
        if held is not None and since > start:
            yield held
            if since > stop:
                return
        held = since, frame
    assert held is not None
    yield held


def frames_at(
    container: Container, times: Sequence[float], short_side: int | None, size: tuple[int, int] | None
) -> np.ndarray:
    """[T, H, W, 3] uint8: the frame shown at each of `times`, see `Clip.frames`."""
    scaler = Scaler(container.name, short_side, size)
    picture_of: dict[int, np.ndarray] = {}
    for run in runs(times):
        waiting = deque(run)
        frames = shown_frames(container, times[run[0]], times[run[-1]])
        _, held = next(frames)
        for since, frame in frames:
            if times[waiting[0]] < since:
                picture_HW3 = scaler(held)
                while times[waiting[0]] < since:
                    picture_of[waiting.popleft()] = picture_HW3
            held = frame
        picture_of.update(dict.fromkeys(waiting, scaler(held)))
    return np.stack([picture_of[i] for i in range(len(times))])


def frames_between(
    container: Container, start: float, stop: float, short_side: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """[N] float64 and [N, H, W, 3] uint8: see `Clip.frames_between`."""
    scaler = Scaler(container.name, short_side)
    shown = [(since, scaler(frame)) for since, frame in shown_frames(container, start, stop)]
    return np.array([since for since, _ in shown]), np.stack([picture_HW3 for _, picture_HW3 in shown])


def runs(times: Sequence[float]) -> list[list[int]]:
    """The indices of `times` in rising order, cut where the next one is far off."""
    found: list[list[int]] = []
    for i in sorted(range(len(times)), key=times.__getitem__):
        if not found or times[i] - times[found[-1][-1]] > FAR_APART:
            found.append([])
        found[-1].append(i)
    return found

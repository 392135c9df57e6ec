"""Fields of displacements: computed from pairs of frames, scaled, and shown in colours.

Shapes: T fields, H height, W width. A field's last axis is the displacement in pixels: to the right, and down.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

PRESETS = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}


def write_fields(path: Path, fields: np.ndarray, source: str) -> Path:
    """Writes a file (``npy``) or folder (``jpeg``) as the modality reads it, for examples.

    Args:
        path: without a suffix.
        fields: float32 [2, T, H, W] displacements; for ``jpeg`` grey levels from 0 to 255.
    """
    if source == "npy":
        np.save(path.with_suffix(".npy"), fields)
        return path.with_suffix(".npy")
    for axis, pictures in zip("uv", fields, strict=True):
        (path / axis).mkdir(parents=True)
        for number, picture in enumerate(pictures):
            cv2.imwrite(str(path / axis / f"{number:06d}.jpg"), picture)
    return path


def dense_flow(first: np.ndarray, second: np.ndarray, preset: str) -> np.ndarray:
    """How each pixel of `first` moves to get to where it is in `second` (DIS: Kroeger et al., arXiv 1603.03590).

    Args:
        first, second: uint8 RGB [T, H, W, 3].
        preset: a key of `PRESETS`.

    Returns:
        float32 [T, H, W, 2].
    """
    with _one_thread():
        method = cv2.DISOpticalFlow.create(PRESETS[preset])
        return np.stack([method.calc(_grey(a), _grey(b), None) for a, b in zip(first, second, strict=True)])


def _grey(picture: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Loaders run one process per core; and DIS cuts a picture into as many stripes as there are threads."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def scaled(field: np.ndarray, short_side: int, sides: tuple[int, int]) -> np.ndarray:
    """The field on a picture of another size, the aspect ratio kept, displacements in its pixels.

    Args:
        field: [T, H, W, 2].
        short_side: length of the shorter side; more if the picture would not cover `sides` (height, width).

    Returns:
        float32 [T, H', W', 2].
    """
    height, width = field.shape[1:3]
    factor = max(short_side / min(height, width), sides[0] / height, sides[1] / width)
    size = (max(sides[0], round(height * factor)), max(sides[1], round(width * factor)))
    if size == (height, width):
        return field
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    resized = np.stack([cv2.resize(one, size[::-1], interpolation=how) for one in field])
    return resized * np.array([size[1] / width, size[0] / height], np.float32)


def flow_colours(field: np.ndarray, largest: float) -> np.ndarray:
    """Direction as hue (right: red), length as saturation: white where nothing moves.

    Args:
        field: [..., 2].
        largest: the length that is shown fully saturated.

    Returns:
        uint8 [..., 3].
    """
    right, down = np.moveaxis(field, -1, 0)
    hue = np.arctan2(-down, right) / (2 * np.pi) * 6
    saturation = np.clip(np.hypot(right, down) / max(largest, 1e-6), 0, 1)[..., None]
    colour = np.clip(np.abs((hue[..., None] + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return (255 * (1 - saturation * (1 - colour))).round().astype(np.uint8)

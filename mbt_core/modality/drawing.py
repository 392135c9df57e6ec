"""What plugins share in drawing: colour tables, and relevance of patches laid over a picture. Imports numpy only.

Shapes: H height, W width of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Control points of the perceptually uniform maps of matplotlib, CC0.
TABLES = {
    "viridis": ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)),
    "inferno": ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)),
}


def colours(values: np.ndarray, table: str = "viridis") -> np.ndarray:
    """Values in [0, 1] (others are clipped), of any shape, as uint8 [..., 3]."""
    points = np.asarray(TABLES[table], np.float64)
    at = np.linspace(0, 1, len(points))
    return np.stack([np.interp(values, at, points[:, i]) for i in range(3)], -1).round().astype(np.uint8)


def spread(relevance: np.ndarray, patch: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """Relevance of patches as one value a pixel, linearly interpolated between the patches' centres.

    Args:
        relevance: [..., rows, columns].
        patch: (height, width) of a patch.
        size: (height, width) of the picture; a remainder past the last whole patch gets 0.

    Returns:
        float [..., height, width].
    """
    for axis, (length, pixels) in enumerate(zip(patch, size, strict=True), start=relevance.ndim - 2):
        count = relevance.shape[axis]
        at = np.clip((np.arange(count * length) + 0.5) / length - 0.5, 0, count - 1)
        low = np.floor(at).astype(int)
        shape = [-1 if i == axis else 1 for i in range(relevance.ndim)]
        weight = (at - low).reshape(shape)
        left, right = (np.take(relevance, i, axis) for i in (low, np.minimum(low + 1, count - 1)))
        rest = [(0, pixels - count * length if i == axis else 0) for i in range(relevance.ndim)]
        relevance = np.pad(left * (1 - weight) + right * weight, rest)
    return relevance


def overlay(picture: np.ndarray, relevance: np.ndarray) -> np.ndarray:
    """Glowing colours over `picture` where relevance is high.

    Args:
        picture: uint8 [..., H, W, 3].
        relevance: [..., H, W] in [0, 1].

    Returns:
        uint8 [..., H, W, 3].
    """
    weight = 0.75 * relevance[..., None]
    mixed = picture * (1 - weight) + colours(relevance, "inferno") * weight
    return mixed.round().astype(np.uint8)

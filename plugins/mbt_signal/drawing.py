"""Curves and spectrograms of a signal as a picture.

Shapes: C channels, S samples, W columns and H rows of a channel's picture, T frames and F frequencies of a spectrogram.
"""

from __future__ import annotations

import numpy as np

from mbt_core.modality.drawing import overlay

WIDTH, HEIGHT = 768, 72
MARGIN = 6
"""Rows left free above and below a curve."""
GROUND, LINE, RULE = 255, (31, 64, 122), 214


def curves(x_CS: np.ndarray, shade_S: np.ndarray | None = None) -> np.ndarray:
    """One curve per channel, each scaled to its own range, one below the other.

    Args:
        x_CS: the signal.
        shade_S: what the ground is coloured by, in [0, 1].

    Returns:
        uint8 [72 * C, 768, 3].
    """
    C, S = x_CS.shape
    picture = np.full((C * HEIGHT, WIDTH, 3), GROUND, np.uint8)
    if shade_S is not None:
        shade_W = np.interp(np.linspace(0, S - 1, WIDTH), np.arange(S), shade_S)
        picture = overlay(picture, np.broadcast_to(shade_W, picture.shape[:2]))
    picture[HEIGHT::HEIGHT] = RULE
    for channel, x_S in enumerate(x_CS):
        picture[channel * HEIGHT : (channel + 1) * HEIGHT][_trace(x_S)] = LINE
    return picture


def stacked(spectrograms: np.ndarray) -> np.ndarray:
    """Spectrograms, one below the other: time to the right, low frequencies at the bottom.

    Args:
        spectrograms: uint8 [C, T, F, 3].

    Returns:
        uint8 [C * (F' + 1), T', 3], T' and F' being multiples of T and F, so that they are large enough to be seen.
    """
    enlarged = spectrograms.transpose(0, 2, 1, 3)[:, ::-1]
    factor = max(1, WIDTH // 2 // enlarged.shape[2])
    enlarged = enlarged.repeat(factor, 1).repeat(factor, 2)
    ruled = np.pad(enlarged, ((0, 0), (0, 1), (0, 0), (0, 0)), constant_values=RULE)
    return np.concatenate(ruled)


def _trace(x_S: np.ndarray) -> np.ndarray:
    """bool [H, W]: the pixels of one curve."""
    points = -(-len(x_S) // WIDTH) + 1  # in a column, its last one being the next column's first
    at = np.linspace(0, len(x_S) - 1, WIDTH * (points - 1) + 1)
    y = np.interp(at, np.arange(len(x_S)), x_S)
    low, high = y.min(), y.max()
    row = HEIGHT - 1 - MARGIN - (y - low) / max(high - low, 1e-12) * (HEIGHT - 1 - 2 * MARGIN)
    index = np.arange(WIDTH)[:, None] * (points - 1) + np.arange(points)
    top_W, bottom_W = np.floor(row[index].min(1)), np.ceil(row[index].max(1))
    rows_H1 = np.arange(HEIGHT)[:, None]
    return (rows_H1 >= top_W) & (rows_H1 <= bottom_W)

"""How the reference starts an MBT from an image ViT, in plain numpy, written from its description."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


def initialised(params: Arrays, source: Arrays, config: dict[str, Any], grids: dict[str, tuple[int, int]]) -> Arrays:
    """All parameters after the start.

    Args:
        params: before it.
        source: of a ViT with a class token.
        grids: ``spectrogram`` -> its (time, mel) grid, ``frames`` -> (number of frames in time, tokens of all frames).
    """
    token = config["classifier"] == "token"
    new = dict(params)
    for path in params:
        block = path.replace("_spectrogram", "")
        if path.startswith(("Transformer/encoderblock", "Transformer/encoder_norm")):
            new[path] = source[block]
        elif path.startswith("embedding") and path.endswith("bias"):
            new[path] = source["embedding/bias"]
        elif path.startswith("embedding"):
            new[path] = _kernel(source["embedding/kernel"], params[path].shape, config)
    if "cls" in params:
        new["cls"] = source["cls"]
    given = source["Transformer/posembed_input/pos_embedding"]
    cls, grid = given[:, :1], given[:, 1:]
    side = math.isqrt(grid.shape[1])
    time, tokens = grids["frames"]
    per_frame = tokens // time
    frame = (math.isqrt(per_frame), per_frame // math.isqrt(per_frame))
    assert frame[0] * frame[1] == per_frame
    n = config["n_bottlenecks"]
    for path, (size, repeats) in {
        "Transformer/posembed_input/pos_embedding": (frame, time),
        "Transformer/posembed_input_spectrogram/pos_embedding": (grids["spectrogram"], 1),
        "bottleneck": ((math.isqrt(n), n // math.isqrt(n)), 1),
    }.items():
        if params[path].shape == given.shape:
            new[path] = given
            continue
        same = repeats > 1 and per_frame == grid.shape[1]
        resized = grid if same else _resize(grid.reshape(side, side, -1), size).reshape(1, -1, grid.shape[2])
        parts = ([cls] if token else []) + [resized] * repeats
        new[path] = np.concatenate(parts, 1).astype(np.float32)
    return new


def _kernel(kernel: np.ndarray, shape: tuple[int, ...], config: dict[str, Any]) -> np.ndarray:
    if kernel.shape == shape:
        return kernel
    frames = shape[0]
    if config["temporal_encoding_config"]["kernel_init_method"] == "average_frame_initializer":
        return np.stack([kernel / frames] * frames)
    inflated = np.zeros(shape, np.float32)
    inflated[frames // 2] = kernel
    return inflated


def _resize(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Linear along each axis, corners aligned: [h, w, D] -> [*size, D] in float64."""
    for axis, count in enumerate(size):
        old = grid.shape[axis]
        places = np.linspace(0, old - 1, count) if count > 1 else np.zeros(1)
        low = np.minimum(np.floor(places).astype(int), old - 1)
        high = np.minimum(low + 1, old - 1)
        share = (places - low).reshape([-1, *[1] * (grid.ndim - axis - 1)])
        grid = np.take(grid, low, axis) * (1 - share) + np.take(grid, high, axis) * share
    return grid

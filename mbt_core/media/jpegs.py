"""JPEGs by libjpeg-turbo.

Shapes: H height, W width.
"""

from __future__ import annotations

import numpy as np

from mbt_core.media.container import MAX_PIXELS
from mbt_core.media.errors import MediaError, reason


def decode_jpeg(data: bytes, name: str) -> np.ndarray:
    """[H, W, 3] uint8 RGB, by libjpeg-turbo. Raises `MediaError` for damaged data."""
    import torch
    from torchvision.io import ImageReadMode
    from torchvision.io import decode_jpeg as decode

    height, width = jpeg_size(data)
    if not height * width:
        raise MediaError(f"{name}: cannot decode the picture: its header does not say its size")
    if height * width > MAX_PIXELS:
        raise MediaError(f"{name}: pictures of {width} x {height} pixels are too large")
    try:
        picture = decode(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    except (RuntimeError, ValueError) as error:
        raise MediaError(f"{name}: cannot decode the picture: {reason(error).rpartition(', ')[2]}") from None
    decoded: np.ndarray = picture.permute(1, 2, 0).numpy()
    return decoded


def jpeg_size(data: bytes) -> tuple[int, int]:
    """(height, width) as the header of a JPEG says; (0, 0) if it does not, or so that decoders could see another."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xFF:  # markers may be filled up
            at += 1
            continue
        if marker < 0xC0 or 0xD0 <= marker <= 0xD9:  # has no length, and no place before the frame
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        at += 2 + length
    return 0, 0


def encode_jpeg(picture_HW3: np.ndarray, quality: int) -> bytes:
    """uint8 RGB [H, W, 3] -> JPEG with 4:2:0 chroma."""
    import torch
    from torchvision.io import encode_jpeg as encode

    planes = torch.from_numpy(np.ascontiguousarray(picture_HW3)).permute(2, 0, 1).contiguous()
    return bytes(encode(planes, quality).numpy())

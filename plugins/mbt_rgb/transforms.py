"""Augmentation of a batch of clips on the device, with other parameters for each clip and the same for its frames.

Shapes: B batch, T frames, H, W input height and width, h, w output height and width. Values are in [0, 1]. Colours are
changed as TensorFlow's `tf.image` does, which the reference was trained with.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def resample(x: Tensor, box_B4: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear interpolation of a box of each clip, without anti-aliasing.

    Args:
        x: [B, 3, T, H, W].
        box_B4: top, left, height, width in pixels; edges of pixels are at whole numbers.
        size: (h, w).

    Returns:
        [B, 3, T, h, w].
    """
    B, _, T, H, W = x.shape
    h, w = size
    top, left, height, width = box_B4.unsqueeze(-1).unbind(1)
    y_Bh = top + height * (torch.arange(h, device=x.device) + 0.5) / h
    x_Bw = left + width * (torch.arange(w, device=x.device) + 0.5) / w
    grid = torch.stack(
        ((2 * x_Bw / W - 1).unsqueeze(1).expand(-1, h, -1), (2 * y_Bh / H - 1).unsqueeze(2).expand(-1, -1, w)), -1
    )
    out = F.grid_sample(x.reshape(B, 3 * T, H, W), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return out.reshape(B, 3, T, h, w)


def jitter_colours(x: Tensor, colour_B4: Tensor) -> Tensor:
    """Brightness, saturation, contrast and hue, in this order, then clipped to [0, 1].

    Args:
        x: [B, 3, T, H, W].
        colour_B4: brightness added; factor on the saturation; factor on the contrast; hue shift, 1 being the circle.
    """
    brightness, saturation, contrast, hue = colour_B4[:, :, None, None, None, None].unbind(1)
    x = adjust_saturation(x + brightness, saturation)
    x = adjust_hue(adjust_contrast(x, contrast), hue)
    return x.clamp_(0, 1)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Scales the saturation of HSV, at most to 1. `x`: [B, 3, T, H, W]; `factor`: [B, 1, 1, 1, 1]."""
    value, chroma = _value_and_chroma(x)
    # saturation is chroma / value: a factor of value / chroma makes it 1
    limit = value.clamp(min=0) / chroma.clamp(min=1e-8)
    return value.lerp(x, torch.minimum(factor, limit))


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Scales the distance from the mean of each frame and channel. `x`: [B, 3, T, H, W]; `factor`: [B, 1, 1, 1, 1]."""
    return x.mean((3, 4), keepdim=True).lerp(x, factor)


def adjust_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue of HSV. `x`: [B, 3, T, H, W]; `shift`: [B, 1, 1, 1, 1], 1 being the whole circle."""
    value, chroma = _value_and_chroma(x)
    red, green, blue = x.split(1, 1)
    divisor = chroma.clamp(min=1e-8)
    sector = torch.where(
        red == value,
        (green - blue) / divisor,
        torch.where(green == value, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    # a channel is value - chroma * clamp(min(k, 4 - k), 0, 1), k its distance from the hue in sixths of the circle
    offset = torch.arange(5, 0, -2, device=x.device)[:, None, None, None]
    k = (sector + 6 * shift + offset).remainder_(6)
    return value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)


def drop_colours(x: Tensor) -> Tensor:
    """Luma (BT.601) in all three channels. `x`: [B, 3, T, H, W]."""
    red, green, blue = x.split(1, 1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).expand_as(x)


def _value_and_chroma(x: Tensor) -> tuple[Tensor, Tensor]:
    red, green, blue = x.split(1, 1)
    value = torch.maximum(torch.maximum(red, green), blue)
    return value, value - torch.minimum(torch.minimum(red, green), blue)

"""The rgb plugin's colour operations, in tensor form, against the usual libraries."""

import colorsys

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from mbt_rgb.transforms import (
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    drop_colours,
    jitter_colours,
)

RELEASED = {"frames": 32, "stride": 2, "tubelet": 2, "scale_jitter": (0.9, 1.33), "colour_drop": 0.1}
SMALL = {"frames": 4, "seconds": 2.0, "size": 32, "patch": 16, "short_side": 40}
ALL_ON = SMALL | {"scale_jitter": (0.9, 1.33), "colour_drop": 0.5}


# Colours


@pytest.fixture
def pictures():
    x = torch.rand(3, 3, 2, 6, 5, generator=torch.Generator().manual_seed(0))
    x[0, :, 0, 0, 0] = 0.4  # grey
    x[0, :, 0, 0, 1] = 0  # black
    x[0, :, 0, 0, 2] = 1  # white
    return x


def per_sample(values) -> torch.Tensor:
    return torch.tensor(values)[:, None, None, None, None]


def test_hue_is_torchvisions(pictures):
    shifts = [0.15, -0.2, 0.5]
    out = adjust_hue(pictures, per_sample(shifts))
    for x, y, shift in zip(pictures, out, shifts, strict=True):
        torch.testing.assert_close(y.transpose(0, 1), tv.adjust_hue(x.transpose(0, 1), shift), atol=2e-6, rtol=0)


def test_contrast_is_torchvisions_on_each_channel(pictures):
    factors = [0.6, 1.0, 1.4]
    out = adjust_contrast(pictures, per_sample(factors)).clamp(0, 1)
    for x, y, factor in zip(pictures, out, factors, strict=True):
        expected = tv.adjust_contrast(x.reshape(6, 1, 6, 5), factor).reshape(3, 2, 6, 5)
        torch.testing.assert_close(y, expected, atol=1e-6, rtol=0)


def test_grey_is_torchvisions(pictures):
    expected = tv.rgb_to_grayscale(pictures.transpose(1, 2), num_output_channels=3).transpose(1, 2)
    torch.testing.assert_close(drop_colours(pictures), expected, atol=1e-6, rtol=0)


def test_saturation_is_that_of_hsv(pictures):
    factors = [0.6, 1.4, 100.0]
    out = adjust_saturation(pictures, per_sample(factors))
    for x, y, factor in zip(pictures, out, factors, strict=True):
        for before, after in zip(x.flatten(1).T.tolist(), y.flatten(1).T.tolist(), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*before)
            expected = colorsys.hsv_to_rgb(hue, min(1, saturation * factor), value)
            assert after == pytest.approx(expected, abs=1e-5)


def test_brightness_is_added_and_the_result_clipped(pictures):
    out = jitter_colours(pictures, torch.tensor([[0.1, 1, 1, 0], [-0.1, 1, 1, 0], [0, 1, 1, 0]]))
    # between brightness and clipping nothing else changes: only out of range colours lose their saturation
    inside = (pictures > 0.1).all(1, keepdim=True).expand_as(pictures)
    torch.testing.assert_close(out[0], (pictures[0] + 0.1).clamp(max=1), atol=2e-6, rtol=0)
    torch.testing.assert_close(out[1][inside[1]], (pictures[1] - 0.1)[inside[1]], atol=2e-6, rtol=0)
    torch.testing.assert_close(out[2], pictures[2], atol=2e-6, rtol=0)
    assert out.min() >= 0


def test_order_of_the_colour_changes(pictures):
    colour = torch.tensor([[0.05, 1.3, 0.7, 0.1]] * 3)
    x = adjust_saturation(pictures + 0.05, per_sample([1.3] * 3))
    x = adjust_hue(adjust_contrast(x, per_sample([0.7] * 3)), per_sample([0.1] * 3))
    torch.testing.assert_close(jitter_colours(pictures, colour), x.clamp(0, 1))

"""Position embeddings between explicit grids."""

import pytest
import torch
from torch.nn import functional as F

from mbt_core.model.position import resample_positions


def ramp(*grid):
    """Positions of a grid whose embedding is the position itself: [prod(grid), axes], in pixel centres of [0, 1]."""
    axes = [(torch.arange(n) + 0.5) / n for n in grid]
    return torch.stack([axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")], 1)


@pytest.mark.parametrize("grid", [(6,), (3, 4), (2, 3, 4)])
def test_same_grid_is_left_alone(grid):
    positions = ramp(*grid)
    assert resample_positions(positions, grid, list(grid)) is positions


@pytest.mark.parametrize(
    ("old", "new"), [((8,), (5,)), ((5,), (8,)), ((4, 6), (7, 3)), ((3, 9), (6, 4)), ((2, 4, 6), (4, 8, 3))]
)
def test_a_ramp_stays_a_ramp_inside(old, new):
    found = resample_positions(ramp(*old), old, new)
    assert found.shape == (torch.tensor(new).prod(), len(old))
    inside = torch.ones(found.shape[0], dtype=torch.bool)
    for n, axis in zip(old, ramp(*new).T, strict=True):
        inside &= (axis > 1 / n) & (axis < 1 - 1 / n)
    tolerance = 0.03  # anti-aliasing reaches the border of a coarse grid
    torch.testing.assert_close(found[inside], ramp(*new)[inside], rtol=0, atol=tolerance)


def test_rows_and_columns_are_not_mixed_up():
    """Not square, and as many tokens as a square would have."""
    found = resample_positions(ramp(2, 8), (2, 8), (4, 8))
    columns = found.reshape(4, 8, 2)[:, :, 1]
    torch.testing.assert_close(columns, ramp(2, 8).reshape(2, 8, 2)[:1, :, 1].expand(4, -1))


@pytest.mark.parametrize("align", [False, True])
def test_two_dimensions_are_interpolated_as_a_picture(align):
    positions = torch.randn(12, 5)
    picture = positions.T.reshape(1, 5, 3, 4)
    expected = F.interpolate(picture, size=(2, 7), mode="bilinear", align_corners=align, antialias=not align)
    found = resample_positions(positions, (3, 4), (2, 7), align)
    torch.testing.assert_close(found, expected.reshape(5, 14).T)


def test_aligned_corners_stay():
    positions = torch.randn(12, 5)
    found = resample_positions(positions, (3, 4), (5, 9), align_corners=True).reshape(5, 9, 5)
    corners = positions.reshape(3, 4, 5)[::2, ::3]
    torch.testing.assert_close(found[::4, ::8], corners)


def test_pictures_to_videos_repeat_over_time():
    positions = torch.randn(12, 5)
    found = resample_positions(positions, (3, 4), (2, 6, 4)).reshape(2, 24, 5)
    torch.testing.assert_close(found[0], resample_positions(positions, (3, 4), (6, 4)))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_pictures_to_sequences_run_along_the_rows():
    positions = torch.arange(12.0)[:, None]
    torch.testing.assert_close(resample_positions(positions, (3, 4), (12,)), positions)
    found = resample_positions(positions, (3, 4), (6,))
    torch.testing.assert_close(found[:, 0], torch.arange(6) * 2 + 0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_type_stays(dtype):
    found = resample_positions(torch.ones(4, 3, dtype=dtype), (2, 2), (3, 3))
    assert found.dtype == dtype
    torch.testing.assert_close(found, torch.ones(9, 3, dtype=dtype))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ((3, 3), (3, 4), r"12 position embeddings do not fill a grid of \(3, 3\)"),
        ((12,), (3, 4), r"no rule leads from a grid of \(12,\) to one of \(3, 4\)"),
        ((2, 2, 3), (3, 4), r"no rule leads from a grid of \(2, 2, 3\) to one of \(3, 4\)"),
        ((1, 2, 2, 3), (1, 2, 2, 4), r"no rule leads from a grid of \(1, 2, 2, 3\)"),
    ],
)
def test_what_has_no_rule_is_refused(old, new, message):
    with pytest.raises(ValueError, match=message):
        resample_positions(torch.zeros(12, 2), old, new)

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mbt_core.modality.drawing import colours, overlay, spread


def test_colours_run_from_end_to_end():
    out = colours(np.array([[-1.0, 0.0], [1.0, 2.0]]))
    assert out.shape == (2, 2, 3)
    assert out.dtype == np.uint8
    assert out[0].tolist() == [[68, 1, 84]] * 2
    assert out[1].tolist() == [[253, 231, 37]] * 2
    assert colours(np.array(0.5)).tolist() == [33, 145, 140]


@pytest.mark.parametrize("table", ["viridis", "inferno"])
def test_colours_get_brighter(table):
    luma = colours(np.linspace(0, 1, 50), table) @ [0.299, 0.587, 0.114]
    assert (np.diff(luma) > 0).all()


def test_spread_is_linear_interpolation():
    relevance = np.random.default_rng(0).random((2, 3, 4))
    expected = F.interpolate(torch.from_numpy(relevance)[:, None], size=(24, 20), mode="bilinear")[:, 0]
    np.testing.assert_allclose(spread(relevance, (8, 5), (24, 20)), expected, atol=1e-6)
    padded = spread(relevance, (8, 5), (27, 24))
    np.testing.assert_allclose(padded[:, :24, :20], expected, atol=1e-6)
    assert padded[:, 24:].max() == padded[:, :, 20:].max() == 0


def test_overlay_changes_only_what_is_relevant():
    picture = np.full((4, 6, 3), 100, np.uint8)
    relevance = np.zeros((4, 6))
    relevance[1, 2] = 1
    out = overlay(picture, relevance)
    assert out.dtype == np.uint8
    assert out[1, 2].tolist() == [214, 216, 148]  # a quarter of the picture, three of the brightest colour
    out[1, 2] = 100
    assert np.array_equal(out, picture)

"""The patch tokenizer against a convolution."""

import pytest
import torch
from torch.nn import functional as F

import mbt_core as mbt


@pytest.mark.parametrize(
    ("size", "patch", "grid"),
    [
        ((12,), (4,), (3,)),
        ((15,), (4,), (3,)),
        ((8, 6), (2, 3), (4, 2)),
        ((9, 8), (2, 3), (4, 2)),
        ((4, 6, 8), (2, 3, 4), (2, 2, 2)),
        ((5, 7, 11), (2, 3, 4), (2, 2, 2)),
        ((1, 4, 4), (1, 4, 4), (1, 1, 1)),
    ],
)
def test_equals_a_convolution_that_ignores_the_remainder(size, patch, grid):
    tokenizer = mbt.PatchTokenizer(3, size, patch, 5).double()
    torch.nn.init.normal_(tokenizer.bias)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    convolution = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(size)]
    expected = convolution(x, tokenizer.weight, tokenizer.bias, stride=patch)
    tokens = tokenizer(x)
    assert tokens.mask is None
    assert (tokenizer.grid, tokenizer.dim) == (grid, 5)
    assert tuple(expected.shape[2:]) == grid
    torch.testing.assert_close(tokens.x, expected.flatten(2).transpose(1, 2))
    beyond = x.clone()
    for axis, (n, p) in enumerate(zip(grid, patch, strict=True), start=2):
        if n * p < x.shape[axis]:
            beyond.narrow(axis, n * p, x.shape[axis] - n * p).fill_(torch.nan)
    torch.testing.assert_close(tokenizer(beyond).x, tokens.x, rtol=0, atol=0)


def test_mask_passes():
    mask = torch.tensor([[True, False, False]])
    tokens = mbt.PatchTokenizer(1, (6,), (2,), 4)(torch.zeros(1, 1, 6), mask)
    assert tokens.mask is mask


def test_starts_lecun_normal():
    torch.manual_seed(0)
    tokenizer = mbt.PatchTokenizer(3, (16, 16), (16, 16), 64)
    std = (3 * 16 * 16) ** -0.5
    assert tokenizer.weight.std().item() == pytest.approx(std, rel=0.02)
    assert tokenizer.weight.abs().max() <= 2 * std / 0.8796
    assert not tokenizer.bias.any()


@pytest.mark.parametrize("shape", [(2, 3, 8), (2, 3, 8, 7), (2, 1, 8, 6), (2, 3, 8, 6, 1)])
def test_other_inputs_are_refused(shape):
    with pytest.raises(ValueError, match=r"the tokenizer's input is \[B, .*\], expected \[B, 3, 8, 6\]"):
        mbt.PatchTokenizer(3, (8, 6), (2, 3), 4)(torch.zeros(shape))


def test_input_smaller_than_a_patch_is_refused():
    with pytest.raises(mbt.ConfigError, match=r"an input of \(8, 2\) is smaller than one patch of \(2, 3\)"):
        mbt.PatchTokenizer(3, (8, 2), (2, 3), 4)

"""A ViT's patch kernel on other inputs: what stays exact, and the rules for the rest."""

import pytest
import torch
from torch.nn import functional as F

from mbt_core import ConfigError
from mbt_core.modality.patch_weights import VitWeights, adapt_kernel

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def vit(*shape, mean=None, std=None, bias=True):
    torch.manual_seed(0)
    state = {"patch_embed.proj.weight": torch.randn(*shape), "pos_embed": torch.zeros(1, 1, shape[0])}
    if bias:
        state["patch_embed.proj.bias"] = torch.randn(shape[0])
    return VitWeights(state, (1, 1), 0, mean, std, source="SOURCE")


def answer(kernel, bias, patch):
    """The kernel on one patch [C, *patch]."""
    return torch.einsum("dx,x->d", kernel.flatten(1).double(), patch.flatten().double()) + bias


def test_the_same_patch_is_left_alone():
    source = vit(5, 3, 4, 6)
    found = adapt_kernel(source, 3, (4, 6))
    assert torch.equal(found["weight"], source.kernel)
    assert torch.equal(found["bias"], source.bias)


def test_normalisation_is_folded_exactly():
    source, pixels = vit(5, 3, 4, 4, mean=IMAGENET[0], std=IMAGENET[1]), torch.rand(3, 4, 4)
    ours = ((0.5, 0.4, 0.3), (0.5, 0.25, 0.125))
    found = adapt_kernel(source, 3, (4, 4), ours)

    def normalised(statistics):
        mean, std = (torch.tensor(v)[:, None, None] for v in statistics)
        return (pixels - mean) / std

    expected = answer(source.kernel, source.bias, normalised(IMAGENET))
    torch.testing.assert_close(answer(found["weight"], found["bias"], normalised(ours)), expected, rtol=0, atol=1e-5)


def test_a_video_s_normalisation_is_folded_over_all_frames():
    source, pixels = vit(5, 3, 2, 4, 4, mean=(0.4,) * 3, std=(0.2,) * 3), torch.rand(3, 2, 4, 4)
    found = adapt_kernel(source, 3, (2, 4, 4), ((0.5,) * 3, (0.5,) * 3))
    expected = answer(source.kernel, source.bias, (pixels - 0.4) / 0.2)
    ours = answer(found["weight"], found["bias"], (pixels - 0.5) / 0.5)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


def test_unknown_normalisation_is_taken_for_ours():
    source = vit(5, 3, 4, 4)
    assert torch.equal(adapt_kernel(source, 3, (4, 4), IMAGENET)["weight"], source.kernel)


def test_one_channel_sees_a_grey_image():
    source, grey = vit(5, 3, 4, 4), torch.rand(1, 4, 4)
    found = adapt_kernel(source, 1, (4, 4))
    expected = answer(source.kernel, source.bias, grey.expand(3, -1, -1))
    torch.testing.assert_close(answer(found["weight"], found["bias"], grey), expected, rtol=0, atol=1e-5)


def test_more_channels_share_the_sum():
    source = vit(5, 3, 4, 4)
    found = adapt_kernel(source, 6, (4, 4))["weight"]
    torch.testing.assert_close(found.sum(1), source.kernel.sum(1))
    assert torch.equal(found[:, 0], found[:, 5])


def test_a_one_dimensional_patch_sees_rows_that_are_all_the_signal():
    source, signal = vit(5, 3, 4, 6), torch.rand(3, 6)
    found = adapt_kernel(source, 3, (6,))
    assert found["weight"].shape == (5, 3, 6)
    expected = answer(source.kernel, source.bias, signal[:, None].expand(-1, 4, -1))
    torch.testing.assert_close(answer(found["weight"], found["bias"], signal), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (6, 10)])
def test_a_larger_patch_answers_alike_on_the_enlarged_image(size):
    """The pseudo-inverse of interpolation: exact where the patch grows (FlexiViT, equation 3)."""
    source, patch = vit(5, 3, 4, 4), torch.rand(3, 4, 4)
    found = adapt_kernel(source, 3, size)
    enlarged = F.interpolate(patch[None], size=size, mode="bilinear", antialias=True)[0]
    expected = answer(source.kernel, source.bias, patch)
    torch.testing.assert_close(answer(found["weight"], found["bias"], enlarged), expected, rtol=0, atol=1e-4)


def test_tubelets():
    source = vit(5, 3, 4, 4)
    central = adapt_kernel(source, 3, (3, 4, 4))["weight"]
    assert torch.equal(central[:, :, 1], source.kernel)
    assert central[:, :, [0, 2]].abs().sum() == 0
    assert torch.equal(adapt_kernel(source, 3, (2, 4, 4))["weight"][:, :, 1], source.kernel)
    average = adapt_kernel(source, 3, (2, 4, 4), inflate="average")["weight"]
    torch.testing.assert_close(average.sum(2), source.kernel)
    assert torch.equal(average[:, :, 0], average[:, :, 1])


def test_tubelets_of_a_video_s_kernel():
    source = vit(5, 3, 2, 4, 4)
    assert torch.equal(adapt_kernel(source, 3, (2, 4, 4))["weight"], source.kernel)
    torch.testing.assert_close(adapt_kernel(source, 3, (4, 4))["weight"], source.kernel.sum(2))
    torch.testing.assert_close(adapt_kernel(source, 3, (3, 4, 4))["weight"][:, :, 1], source.kernel.sum(2))
    resized = adapt_kernel(source, 3, (2, 8, 8))["weight"]
    assert resized.shape == (5, 3, 2, 8, 8)
    frame = vit(5, 3, 4, 4)
    frame.state["patch_embed.proj.weight"] = source.kernel[:, :, 0]
    torch.testing.assert_close(resized[:, :, 0], adapt_kernel(frame, 3, (8, 8))["weight"])


def test_series():
    source = vit(5, 2, 4)
    assert adapt_kernel(source, 2, (8,))["weight"].shape == (5, 2, 8)
    with pytest.raises(ConfigError, match=r"SOURCE: no rule makes a patch of \[4, 4\] from one of \[4\]"):
        adapt_kernel(source, 2, (4, 4))


def test_a_vit_without_bias_has_a_bias_of_zero():
    """CLIP's patch embedding has none; folding gives it one."""
    source = vit(5, 3, 4, 4, mean=IMAGENET[0], std=IMAGENET[1], bias=False)
    assert torch.equal(adapt_kernel(source, 3, (4, 4))["bias"], torch.zeros(5))
    assert adapt_kernel(source, 3, (4, 4), ((0.5,) * 3, (0.5,) * 3))["bias"].abs().min() > 0

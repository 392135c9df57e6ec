"""The convolutional stem: grid, receptive field, masks, settings, pre-trained weights."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import mbt_core as mbt
from mbt_core.config import parse_modalities
from mbt_core.modality.conv_tokenizer import prime_factors, stage_windows
from mbt_core.training.flops import count

PATCHED = [kind for kind in mbt.registry().modalities if "stem" in mbt.registry().config_class(kind).model_fields]
MODEL = {"backbone": {"dim": 32, "depth": 2, "heads": 2}, "fusion": {"layer": 1}, "head": {"classes": 3}}


def small(kind: str) -> dict[str, Any]:
    """Settings of an input that is known without data."""
    sizes = {"signal": {"channels": 2, "rate": 8.0, "seconds": 8.0, "patch": 4, "mean": 0.0, "std": 1.0},
             "audio": {"seconds": 1, "mean": 0.0, "std": 1.0}}  # fmt: skip
    return sizes.get(kind, {"frames": 2, "size": 32})


def shake(tokenizer: mbt.ConvTokenizer) -> None:
    """No parameter is where it starts."""
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)


@pytest.mark.parametrize(
    ("patch", "windows"),
    [
        ((16,), [(2,), (2,), (2,), (2,)]),
        ((16, 32), [(1, 2), (2, 2), (2, 2), (2, 2), (2, 2)]),
        ((2, 16, 16), [(1, 2, 2), (1, 2, 2), (1, 2, 2), (2, 2, 2)]),
        ((14, 14), [(7, 7), (2, 2)]),
        ((10, 1), [(5, 1), (2, 1)]),
        ((1, 1), []),
    ],
)
def test_stages_pool_over_prime_factors(patch, windows):
    assert stage_windows(patch) == windows


@given(st.integers(1, 5000))
def test_prime_factors_multiply_to_the_number(number):
    factors = prime_factors(number)
    assert torch.tensor(factors, dtype=torch.int64).prod().item() == number
    assert factors == sorted(factors, reverse=True)
    assert all(prime_factors(factor) == [factor] for factor in set(factors))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(0, 8)), min_size=1, max_size=3))
def test_any_size_and_patch_gives_the_grid_of_patches_without_the_remainder(axes):
    patch = [p for p, _, _ in axes]
    size = [p * n + extra % p for p, n, extra in axes]
    torch.manual_seed(0)
    conv, linear = mbt.ConvTokenizer(2, size, patch, 16), mbt.PatchTokenizer(2, size, patch, 16)
    assert conv.grid == linear.grid
    x = torch.randn(2, 2, *size)
    tokens = conv(x)
    assert tokens.x.shape == linear(x).x.shape
    beyond = x.clone()
    for axis, (n, p) in enumerate(zip(conv.grid, patch, strict=True), start=2):
        beyond.narrow(axis, n * p, x.shape[axis] - n * p).fill_(torch.nan)
    torch.testing.assert_close(conv(beyond).x, tokens.x, rtol=0, atol=0)


def test_equals_a_sequence_of_convolutions_and_pools():
    torch.manual_seed(0)
    tokenizer = mbt.ConvTokenizer(3, (9, 8), (4, 4), 32)
    shake(tokenizer)
    x = torch.randn(2, 3, 9, 8)
    expected = x[:, :, :8]
    for stage in tokenizer.stages:
        expected = nn.functional.max_pool2d(nn.functional.conv2d(expected, stage.conv.weight, padding=1), 2)
        expected = nn.functional.gelu(nn.functional.group_norm(expected, 8, stage.norm.weight, stage.norm.bias))
    expected = torch.einsum("bfhw,df->bhwd", expected, tokenizer.proj.weight) + tokenizer.proj.bias
    torch.testing.assert_close(tokenizer(x).x, expected.flatten(1, 2))
    assert [stage.conv.out_channels for stage in tokenizer.stages] == [16, 32]


@pytest.mark.parametrize(("size", "patch", "axis"), [((24,), (4,), 0), ((8, 12), (2, 3), 0), ((8, 12), (2, 3), 1)])
def test_a_padded_input_gives_what_the_shorter_one_gives(size, patch, axis):
    torch.manual_seed(0)
    dim, cut = 16, 2
    full = mbt.ConvTokenizer(2, size, patch, dim)
    shorter = [s - cut * p if a == axis else s for a, (s, p) in enumerate(zip(size, patch, strict=True))]
    short = mbt.ConvTokenizer(2, shorter, patch, dim)
    shake(full)
    short.load_state_dict(full.state_dict())
    real = torch.ones(2, *full.grid, dtype=torch.bool)
    real.narrow(1 + axis, full.grid[axis] - cut, cut)[1] = False  # the second example is padded
    x = 100 * torch.randn(2, 2, *size)
    tokens = full(x, real.flatten(1))
    expected = short(x[1:].narrow(2 + axis, 0, shorter[axis])).x[0]
    torch.testing.assert_close(tokens.x[1][real[1].flatten()], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tokens.x[0], full(x[:1]).x[0], rtol=1e-4, atol=1e-4)
    assert tokens.mask is not None


def test_starts_with_the_variance_of_its_input():
    torch.manual_seed(0)
    tokens = mbt.ConvTokenizer(3, (64, 64), (16, 16), 128)(torch.randn(8, 3, 64, 64)).x
    assert 0.3 < tokens.std().item() < 1.5


@pytest.mark.parametrize("shape", [(2, 3, 8), (2, 3, 8, 7), (2, 1, 8, 6), (2, 3, 8, 6, 1)])
def test_other_inputs_are_refused(shape):
    with pytest.raises(ValueError, match=r"the tokenizer's input is \[B, .*\], expected \[B, 3, 8, 6\]"):
        mbt.ConvTokenizer(3, (8, 6), (2, 3), 4)(torch.zeros(shape))


def test_an_input_smaller_than_a_patch_is_refused():
    with pytest.raises(mbt.ConfigError, match=r"an input of \(8, 6\) is smaller than one patch of \(2, 7\)"):
        mbt.ConvTokenizer(3, (8, 6), (2, 7), 4)


@pytest.mark.parametrize("kind", PATCHED)
def test_every_kind_that_patches_takes_a_stem(kind):
    config = parse_modalities({kind: {"stem": "conv"}})[kind]
    assert config.stem == "conv"
    assert parse_modalities({kind: {}})[kind].stem == "patch"
    with pytest.raises(mbt.ConfigError, match=rf"modalities\.{kind}\.stem: input should be 'patch' or 'conv'"):
        parse_modalities({kind: {"stem": "convolution"}})


@pytest.mark.parametrize("kind", PATCHED)
def test_auto_is_conv_from_scratch_and_the_weights_own_stem(kind, tmp_path):
    def built(stem: str, pretrained: str | None) -> mbt.MBT:
        settings = small(kind) | {"stem": stem}
        return mbt.build({"modalities": {kind: settings}, "pretrained": pretrained, **MODEL})

    for stem in ("patch", "conv"):
        built(stem, None).save_pretrained(tmp_path / stem)
        again = built("auto", str(tmp_path / stem))
        assert again.config.modalities[kind].stem == stem
        whole = load_file(tmp_path / stem / "model.safetensors")
        for key, value in again.streams[kind].tokenizer.state_dict().items():
            torch.testing.assert_close(value, whole[f"streams.{kind}.tokenizer.{key}"], rtol=0, atol=0)
    assert built("auto", None).config.modalities[kind].stem == "conv"


def test_auto_that_nothing_has_filled_is_an_error():
    with pytest.raises(mbt.ConfigError, match=r"stem is still 'auto': it follows from model\.pretrained"):
        mbt.make_tokenizer("auto", 1, (8,), (4,), 8)


def test_its_operations_are_counted():
    def flops(stem: str) -> int:
        settings = {"seconds": 1, "mean": 0.0, "std": 1.0, "stem": stem}
        return count(mbt.MBTConfig.model_validate({"modalities": {"audio": settings}, **MODEL})).flops["tokenizers"]

    # 96 x 128 in patches of 16 x 16: maps of 96 x 128, 48 x 64, 24 x 32 and 12 x 16 with 16, 16, 16 and 32 features
    maps, features = [96 * 128, 48 * 64, 24 * 32, 12 * 16], [1, 16, 16, 16, 32]
    expected = sum(2 * n * 9 * features[i] * features[i + 1] for i, n in enumerate(maps)) + 2 * 48 * 32 * 32
    assert flops("conv") == expected
    assert flops("patch") == 2 * 48 * 16 * 16 * 32


def test_pretrained_patch_kernels_need_patches(tmp_path):
    audio = {"seconds": 1, "mean": 0.0, "std": 1.0}
    vit = {"patch_embed.proj.weight": torch.zeros(32, 3, 16, 16), "patch_embed.proj.bias": torch.zeros(32),
           "cls_token": torch.zeros(1, 1, 32), "pos_embed": torch.zeros(1, 5, 32), "norm.weight": torch.ones(32),
           "norm.bias": torch.zeros(32)}  # fmt: skip
    block = mbt.MBT({"modalities": {"audio": audio}, **MODEL}).blocks["audio"]["0"].state_dict()
    vit |= {f"blocks.{layer}.{key}": value.clone() for layer in range(2) for key, value in block.items()}
    save_file(vit, tmp_path / "vit.safetensors")
    pretrained = {"pretrained": str(tmp_path / "vit.safetensors"), **MODEL}
    mbt.build({"modalities": {"audio": audio}, **pretrained})
    with pytest.raises(mbt.ConfigError, match=r"modalities\.audio\.stem: 'conv' has no patch embedding .*stem=patch"):
        mbt.build({"modalities": {"audio": {**audio, "stem": "conv"}}, **pretrained})


def test_a_trained_stem_starts_another_model(tmp_path):
    config = {"modalities": {"audio": {"seconds": 1, "mean": 0.0, "std": 1.0, "stem": "conv"}}, **MODEL}
    model = mbt.MBT(config)
    model.save_pretrained(tmp_path / "model")
    again = mbt.build({**config, "pretrained": str(tmp_path / "model")})
    ours, theirs = (m.streams["audio"].tokenizer.state_dict() for m in (model, again))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    inputs = {"audio": torch.randn(2, 1, 100, 128)}
    loaded = mbt.MBT.from_pretrained(tmp_path / "model").eval()
    torch.testing.assert_close(loaded(inputs).logits, model.eval()(inputs).logits)


@pytest.mark.parametrize("size", [(512,), (64, 64), (4, 32, 32)])
def test_an_even_input_is_normalised_exactly(size):
    torch.manual_seed(0)
    patch = [1 if s == 4 else 16 for s in size]
    tokenizer = mbt.ConvTokenizer(2, size, patch, 32)
    x = torch.full((3, 2, *size), 5.0)
    tokens = tokenizer(x).x
    torch.testing.assert_close(tokens, tokenizer.double()(x.double()).x.float(), rtol=0, atol=3e-5)

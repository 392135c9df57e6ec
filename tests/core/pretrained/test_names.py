from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mbt_core.errors import DataError
from mbt_core.pretrained.names import (
    block_from_timm,
    block_to_timm,
    kernel_from_torch,
    kernel_to_torch,
    to_linen,
    vit_to_timm,
)

INIT = Path(__file__).parents[2] / "data" / "goldens" / "dev" / "init"
GEOMETRY = {"img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 4, "num_heads": 4, "mlp_ratio": 2}
QUERY = "MultiHeadDotProductAttention_0/query/kernel"


@pytest.fixture
def vit() -> dict[str, np.ndarray]:
    with np.load(INIT / "source_vit.npz") as arrays:
        return {name: arrays[name] for name in arrays}


@pytest.fixture
def block(vit) -> dict[str, np.ndarray]:
    prefix = "Transformer/encoderblock_2/"
    return {name.removeprefix(prefix): value for name, value in vit.items() if name.startswith(prefix)}


def test_vit_equals_what_timm_itself_loads(vit):
    model = timm.models.vision_transformer.VisionTransformer(**GEOMETRY, num_classes=11)
    model.load_pretrained(str(INIT / "source_vit_augreg.npz"))
    state = vit_to_timm(vit)
    expected = model.state_dict()
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(state[key], value.numpy(), err_msg=key)


def test_optional_parts(vit):
    for name in ("cls", "output_projection/kernel", "output_projection/bias"):
        del vit[name]
    vit |= {"pre_logits/kernel": np.ones((32, 24), np.float32), "pre_logits/bias": np.ones(24, np.float32)}
    state = vit_to_timm(vit)
    assert state["pre_logits.fc.weight"].shape == (24, 32)
    assert not {"cls_token", "head.weight", "head.bias"} & state.keys()


def test_vit_lists_what_is_missing_and_unknown(vit):
    del vit["embedding/bias"]
    vit["conv_root/kernel"] = np.ones(2, np.float32)
    with pytest.raises(DataError, match=r"one ViT: missing embedding/bias; unknown conv_root/kernel$"):
        vit_to_timm(vit)


def test_vit_without_blocks_or_with_a_gap(vit):
    gap = {name: value for name, value in vit.items() if not name.startswith("Transformer/encoderblock_1/")}
    with pytest.raises(DataError, match=r"missing Transformer/encoderblock_1$"):
        vit_to_timm(gap)
    none = {name: value for name, value in vit.items() if "encoderblock" not in name}
    with pytest.raises(DataError, match=r"missing Transformer/encoderblock_0$"):
        vit_to_timm(none)


def test_two_streams_are_no_single_vit(vit):
    vit["Transformer/encoderblock_0_other/LayerNorm_0/bias"] = np.zeros(32, np.float32)
    with pytest.raises(DataError, match="unknown Transformer/encoderblock_0_other"):
        vit_to_timm(vit)


def test_block_has_timms_keys_and_computes_the_same(block):
    state = {key: torch.from_numpy(value) for key, value in block_to_timm(block).items()}
    model = timm.models.vision_transformer.Block(32, 4, mlp_ratio=2, qkv_bias=True)
    model.load_state_dict(state)
    x = torch.linspace(-1, 1, 5 * 32).reshape(1, 5, 32)
    q, k, v = (
        torch.einsum("bnd,dhe->bhne", x, torch.from_numpy(block[f"MultiHeadDotProductAttention_0/{p}/kernel"]))
        + torch.from_numpy(block[f"MultiHeadDotProductAttention_0/{p}/bias"])[:, None]
        for p in ("query", "key", "value")
    )
    mixed = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v
    out = torch.from_numpy(block["MultiHeadDotProductAttention_0/out/kernel"])
    expected = torch.einsum("bhne,hed->bnd", mixed, out)
    expected += torch.from_numpy(block["MultiHeadDotProductAttention_0/out/bias"])
    torch.testing.assert_close(model.attn(x), expected, atol=1e-6, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(dim=st.integers(1, 6), heads=st.integers(1, 4), head_dim=st.integers(1, 5), mlp=st.integers(1, 7))
def test_block_round_trip_is_exact(dim, heads, head_dim, mlp):
    rng = np.random.default_rng(0)
    attention = "MultiHeadDotProductAttention_0"
    shapes = {
        f"{attention}/out/kernel": (heads, head_dim, dim),
        "MlpBlock_0/Dense_0/kernel": (dim, mlp),
        "MlpBlock_0/Dense_0/bias": (mlp,),
        "MlpBlock_0/Dense_1/kernel": (mlp, dim),
    }
    for part in ("query", "key", "value"):
        shapes |= {f"{attention}/{part}/kernel": (dim, heads, head_dim), f"{attention}/{part}/bias": (heads, head_dim)}
    for name in ("LayerNorm_0/scale", "LayerNorm_0/bias", "LayerNorm_1/scale", "LayerNorm_1/bias"):
        shapes[name] = (dim,)
    for name in (f"{attention}/out/bias", "MlpBlock_0/Dense_1/bias"):
        shapes[name] = (dim,)
    block = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    again = block_from_timm(block_to_timm(block), heads)
    assert again.keys() == block.keys()
    for name, value in block.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)


def test_block_refuses_wrong_names_and_shapes(block):
    with pytest.raises(DataError, match=r"one block: missing LayerNorm_1/bias$"):
        block_to_timm({name: value for name, value in block.items() if name != "LayerNorm_1/bias"})
    with pytest.raises(DataError, match=r"one block: unknown extra$"):
        block_to_timm(block | {"extra": np.zeros(1)})
    with pytest.raises(DataError, match=r"MlpBlock_0/Dense_1/kernel is \[3, 32\], expected \[64, 32\]"):
        block_to_timm(block | {"MlpBlock_0/Dense_1/kernel": np.zeros((3, 32))})
    with pytest.raises(DataError, match=r"query/kernel is \[32, 32\], expected \[width, heads, head width\]"):
        block_to_timm(block | {QUERY: np.zeros((32, 32))})


def test_block_from_timm_refuses_what_scenic_has_no_place_for(block):
    state = block_to_timm(block)
    with pytest.raises(DataError, match=r"unknown ls1\.gamma"):
        block_from_timm(state | {"ls1.gamma": np.ones(32)}, heads=4)
    with pytest.raises(DataError, match=r"missing attn\.qkv\.bias"):
        block_from_timm({key: value for key, value in state.items() if key != "attn.qkv.bias"}, heads=4)
    with pytest.raises(DataError, match="32 wide cannot have 5 heads"):
        block_from_timm(state, heads=5)


def test_vit_names_the_block_that_does_not_fit(vit):
    vit["Transformer/encoderblock_3/LayerNorm_0/bias"] = np.zeros(5, np.float32)
    with pytest.raises(DataError, match=r"encoderblock_3: LayerNorm_0/bias is \[5\], expected \[32\]"):
        vit_to_timm(vit)


@pytest.mark.parametrize(
    ("kernel", "weight"),
    [((3, 5), (5, 3)), ((16, 8, 3, 5), (5, 3, 16, 8)), ((2, 16, 8, 3, 5), (5, 3, 2, 16, 8))],
    ids=["dense", "2-D", "3-D"],
)
def test_kernels_turn_and_turn_back(kernel, weight):
    values = np.random.default_rng(0).standard_normal(kernel)
    turned = kernel_to_torch(values)
    assert turned.shape == weight
    assert turned[4, 1, ...].tolist() == values[..., 1, 4].tolist()
    np.testing.assert_array_equal(kernel_from_torch(turned), values)


def test_linen_names_stay_and_collisions_are_refused():
    one = np.zeros(1)
    assert to_linen({"a/LayerNorm_1/bias": one, "cls": one}).keys() == {"a/LayerNorm_1/bias", "cls"}
    with pytest.raises(DataError, match="output_projection/bias is there twice"):
        to_linen({"head/bias": one, "output_projection/bias": one})

"""Attention of a processor in bf16, as matrix products."""

import pytest
import torch
from torch.nn import functional as F

from mbt_core.model import attention
from mbt_core.model.attention import attend


def qkv(queries, keys, dtype=torch.bfloat16):
    """Cut out of larger tensors, as a block's projection leaves them."""
    generator = torch.Generator().manual_seed(0)

    def one(count):
        packed = torch.randn(2, count, 3, 4, 16, generator=generator)
        return packed[:, :, 1].transpose(1, 2).to(dtype).requires_grad_()

    return one(queries), one(keys), one(keys)


@pytest.fixture
def products(monkeypatch):
    """As on a processor with bf16 products, a few heads at a time."""
    monkeypatch.setattr(attention, "HAS_PRODUCTS", True)
    monkeypatch.setattr(attention, "SCORES", 1000 // torch.get_num_threads() + 1)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize(("queries", "keys"), [(17, 17), (5, 33), (1, 1)])
@pytest.mark.parametrize("autocast", [False, True])
def test_outputs_and_gradients(queries, keys, autocast):
    given = qkv(queries, keys)
    exact = [x.detach().double().requires_grad_() for x in given]
    weight = torch.randn(2, 4, queries, 16, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = attend(*given, None, 0.0)
    expected = F.scaled_dot_product_attention(*exact)
    assert found.dtype == torch.bfloat16
    assert found.grad_fn.name() != expected.grad_fn.name()
    torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0.02)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    for ours, theirs in zip(given, exact, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=0.02, atol=0.02 * theirs.grad.abs().max())


@pytest.mark.usefixtures("products")
def test_the_operator_keeps_its_contracts():
    torch.library.opcheck(attention._attend_bf16, qkv(6, 9), test_utils=("test_schema", "test_faketensor"))
    given = tuple(x.detach() for x in (torch.randn(2, 4, 6, 16).bfloat16(), *qkv(6, 9)))
    torch.library.opcheck(attention._attend_bf16_backward, given, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.usefixtures("products")
def test_what_else_is_left_to_pytorch():
    """Other precisions, masks, dropout: to the last bit."""
    mask = torch.arange(9) < torch.tensor([[4], [9]])
    for dtype, chosen, dropout in (
        (torch.float32, None, 0.0),
        (torch.bfloat16, mask, 0.0),
        (torch.bfloat16, None, 0.5),
    ):
        given = qkv(6, 9, dtype)
        torch.manual_seed(2)
        found = attend(*given, chosen, dropout)
        torch.manual_seed(2)
        attended = None if chosen is None else chosen[:, None, None]
        expected = F.scaled_dot_product_attention(*given, attn_mask=attended, dropout_p=dropout)
        assert torch.equal(found, expected)


@pytest.mark.slow
@pytest.mark.usefixtures("products")
def test_compiled():
    given = qkv(6, 9)
    compiled = torch.compile(lambda q, k, v: attend(q * 2, k, v, None, 0.0), fullgraph=True)
    assert torch.equal(compiled(*given), attend(given[0] * 2, *given[1:], None, 0.0))

"""Tokens that training leaves out."""

import pytest
import torch

import mbt_core as mbt
from mbt_core.model.stream import keep_some, kept_tokens
from toy.models import STRATEGIES, build_tiny, inputs_for

pytestmark = pytest.mark.usefixtures("toys")


@pytest.mark.parametrize(("count", "drop", "kept"), [(10, 0.0, 10), (10, 0.25, 8), (1568, 0.5, 784), (3, 0.99, 1)])
def test_how_many_stay(count, drop, kept):
    assert kept_tokens(count, drop) == kept


def test_each_example_keeps_its_own_in_order_and_padding_goes_first():
    torch.manual_seed(0)
    x = torch.arange(10.0).expand(64, 10)[..., None]
    kept, mask = keep_some(x, None, 4)
    assert mask is None
    assert (kept.diff(dim=1) > 0).all()
    assert len({tuple(row) for row in kept[..., 0].tolist()}) > 32
    counts = kept.flatten().long().bincount(minlength=10)
    assert counts.min() > 10  # every place is kept about 64 * 4 / 10 times
    real = torch.arange(10) < torch.tensor([[2], [4], [7]])
    kept, mask = keep_some(x[:3], real, 4)
    assert mask.sum(1).tolist() == [2, 4, 4]
    assert kept[0, :, 0][mask[0]].tolist() == [0, 1]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_only_in_training(strategy):
    model = build_tiny(strategy, 3, patch_drop=0.5)
    whole = build_tiny(strategy, 3)
    inputs = inputs_for(model)
    torch.testing.assert_close(model(inputs).logits, whole(inputs).logits, rtol=0, atol=0)
    out, full = model.train()(inputs), whole.train()(inputs)
    for name, tokens in out.tokens.items():
        assert tokens.shape[1] == 1 + kept_tokens(full.tokens[name].shape[1] - 1, 0.5)
    (out.logits.square().sum() + sum(x.sum() for x in out.modality_logits.values())).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_kept_tokens_have_their_own_positions():
    model = build_tiny(count=1, pool="mean", patch_drop=0.5).train()
    stream = model.stream("gamma")
    embedded = stream.tokenizer(*inputs_for(model)["gamma"])
    torch.manual_seed(3)
    some = stream(embedded)
    whole = stream.eval()(embedded)
    for row, mask, source in zip(some.x, some.mask, whole.x, strict=True):
        for token in row[mask]:
            assert (source == token).all(1).any()


def test_by_modality():
    model = build_tiny(count=2, patch_drop={"alpha": 0.5}).train()
    assert [model.stream(name).patch_drop for name in model.modalities] == [0.0, 0.5]
    with pytest.raises(mbt.ConfigError, match=r"model\.patch_drop: unknown modality 'alpa'. Did you mean 'alpha'"):
        build_tiny(count=2, patch_drop={"alpa": 0.5})
    for wrong in (1.0, -0.1, {"alpha": 1}):
        with pytest.raises(mbt.ConfigError, match=r"model\.patch_drop: expected 0 <= p < 1, got"):
            build_tiny(count=2, patch_drop=wrong)

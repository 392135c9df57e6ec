"""Mixup of tokens with the reversed batch."""

import numpy as np
import pytest
import torch

import mbt_core as mbt
from mbt_core.training.mixup import Mixup

NAMES = ["alpha", "beta"]
LABELS = {"label": torch.eye(3)}


def test_one_weight_for_the_batch():
    mixup = Mixup.draw(np.random.default_rng(0), 0.5, NAMES, per_modality=False)
    assert set(mixup.weights) == {"alpha", "beta", ""}
    assert len(set(mixup.weights.values())) == 1
    assert mixup == Mixup.draw(np.random.default_rng(0), 0.5, NAMES, per_modality=False)
    assert mixup != Mixup.draw(np.random.default_rng(1), 0.5, NAMES, per_modality=False)


def test_one_weight_for_each_modality():
    mixup = Mixup.draw(np.random.default_rng(0), 0.5, NAMES, per_modality=True)
    assert set(mixup.weights) == {"alpha", "beta"}
    assert mixup.weights["alpha"] != mixup.weights["beta"]
    targets = mixup.targets(LABELS, NAMES, None)
    assert set(targets) == {"alpha", "beta"}
    for name, w in mixup.weights.items():
        torch.testing.assert_close(targets[name]["label"], w * torch.eye(3) + (1 - w) * torch.eye(3).flip(0))


@pytest.mark.parametrize("alpha", [0.3, 2.0])
def test_weights_are_beta_distributed(alpha):
    rng = np.random.default_rng(0)
    drawn = np.array([Mixup.draw(rng, alpha, NAMES, False).weights[""] for _ in range(4000)])
    assert drawn.mean() == pytest.approx(0.5, abs=0.02)
    assert drawn.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


def test_equals_mixing_the_inputs_of_a_patch_embedding():
    tokenizer = mbt.PatchTokenizer(2, (4, 6), (2, 3), 8)
    torch.nn.init.normal_(tokenizer.bias)
    x = torch.randn(3, 2, 4, 6)
    mixed = Mixup({"alpha": 0.3}).tokens({"alpha": tokenizer(x)}, None)["alpha"]
    torch.testing.assert_close(mixed.x, tokenizer(0.3 * x + 0.7 * x.flip(0)).x)
    assert mixed.mask is None


def test_unmixed_where_the_partner_lacks_the_modality():
    mixup = Mixup({"alpha": 0.25, "beta": 0.25, "": 0.25})
    present = {"alpha": torch.tensor([True, True, False]), "beta": torch.tensor([True, True, True])}
    x = torch.randn(3, 2, 4)
    tokens = mixup.tokens({name: mbt.Tokens(x) for name in NAMES}, present)
    mixed = 0.25 * x + 0.75 * x.flip(0)
    torch.testing.assert_close(tokens["beta"].x, mixed)
    torch.testing.assert_close(tokens["alpha"].x[:2], torch.stack([x[0], mixed[1]]))
    targets = mixup.targets(LABELS, NAMES, present)
    both = 0.25 * torch.eye(3) + 0.75 * torch.eye(3).flip(0)
    torch.testing.assert_close(targets["beta"]["label"], both)
    torch.testing.assert_close(targets["alpha"]["label"][0], torch.eye(3)[0])
    torch.testing.assert_close(targets[""]["label"], both)


def test_fused_label_is_mixed_only_if_something_was():
    """A partner that could not be read, or has other modalities only, leaves the label as it is."""
    mixup = Mixup(dict.fromkeys([*NAMES, ""], 0.25))
    eye = torch.eye(4)
    present = {"alpha": torch.tensor([True, True, False, False]), "beta": torch.tensor([True, False, True, False])}
    found = mixup.targets({"label": eye}, NAMES, present)[""]["label"]
    torch.testing.assert_close(found, eye)
    present["beta"][3] = True
    found = mixup.targets({"label": eye}, NAMES, present)[""]["label"]
    mixed = 0.25 * eye + 0.75 * eye.flip(0)
    torch.testing.assert_close(found, torch.stack([mixed[0], eye[1], eye[2], mixed[3]]))


def test_padding_adds_nothing_and_the_longer_mask_holds():
    mixup = Mixup({"alpha": 0.25})
    x = torch.randn(3, 4, 2)
    mask = torch.arange(4) < torch.tensor([1, 2, 3])[:, None]
    padded = torch.where(mask[..., None], x, torch.nan)
    found = mixup.tokens({"alpha": mbt.Tokens(padded, mask)}, None)["alpha"]
    assert found.mask.sum(1).tolist() == [3, 2, 3]
    torch.testing.assert_close(found.x[0, :1], 0.25 * x[0, :1] + 0.75 * x[2, :1])
    torch.testing.assert_close(found.x[0, 1:3], 0.75 * x[2, 1:3])
    torch.testing.assert_close(found.x[2, 1:3], 0.25 * x[2, 1:3])
    assert not found.x[~found.mask].any()
    present = {"alpha": torch.tensor([True, True, False])}
    alone = mixup.tokens({"alpha": mbt.Tokens(padded, mask)}, present)["alpha"]
    assert alone.mask.sum(1).tolist() == [1, 2, 3]
    torch.testing.assert_close(alone.x[0, 0], x[0, 0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_type_of_the_tokens_stays(dtype):
    tokens = {"alpha": mbt.Tokens(torch.ones(2, 3, 4, dtype=dtype))}
    present = {"alpha": torch.tensor([True, True])}
    for here in (None, present):
        assert Mixup({"alpha": 0.3}).tokens(tokens, here)["alpha"].x.dtype == dtype

"""What every modality must keep to, checked on one instance and one clip."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbt_core import MBT, Clip, Modality, Window
from mbt_core.modality.patch_weights import VitWeights

DIM = 16


def small_vit(patch: int = 8, grid: int = 4) -> VitWeights:
    """A random image ViT of width `DIM`."""
    generator = torch.Generator().manual_seed(0)
    state = {
        "patch_embed.proj.weight": torch.randn(DIM, 3, patch, patch, generator=generator),
        "patch_embed.proj.bias": torch.randn(DIM, generator=generator),
        "pos_embed": torch.randn(1, 1 + grid * grid, DIM, generator=generator),
    }
    return VitWeights(state, (grid, grid), 1, [0.5] * 3, [0.5] * 3)


def as_dict(sample: Any) -> dict[str, Tensor]:
    return sample if isinstance(sample, dict) else {"": sample}


def equal(one: Any, two: Any) -> bool:
    one, two = as_dict(one), as_dict(two)
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def inputs(modality: Modality, *samples: Any) -> tuple[Tensor, Tensor | None]:
    """Samples as they come to the tokenizer, and their mask."""
    given = modality.preprocessor()(modality.collate(samples))
    return given if isinstance(given, tuple) else (given, None)


def model_of(modality: Modality, **settings: Any) -> MBT:
    """A small model, in evaluation, whose output depends on everything."""
    torch.manual_seed(0)
    backbone = {"dim": DIM, "depth": 2, "heads": 2}
    config = {"modalities": {modality.name: modality.config}, "backbone": backbone, "fusion": {"layer": 1}}
    model = MBT({**config, "head": {"classes": 3}, **settings})
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter)
    return model.eval()


def check_samples(modality: Modality, clip: Clip, window: Window, augments: bool, fixed: bool = True) -> None:
    """Keys, types and shapes of training, evaluation and stand-in; determinism; pickling.

    Args:
        augments: whether training differs from evaluation.
        fixed: whether all samples have one shape.
    """

    def read(seed: int | None, of: Modality = modality) -> Any:
        return of.read(clip, window, None if seed is None else np.random.default_rng(seed))

    evaluated, trained, blank = as_dict(read(None)), as_dict(read(1)), as_dict(modality.blank())
    assert evaluated.keys() == trained.keys() == blank.keys()
    for key, value in evaluated.items():
        assert value.dtype == trained[key].dtype == blank[key].dtype
        assert value.shape == trained[key].shape
        assert value.shape == blank[key].shape or not fixed
    assert equal(read(None), evaluated)
    assert equal(read(1), trained)
    assert equal(read(1), read(2)) is not augments
    assert equal(read(None, pickle.loads(pickle.dumps(modality))), evaluated)
    modality.collate([evaluated[""], blank[""]] if "" in evaluated else [evaluated, blank])


def check_tokens(modality: Modality, sample: Any) -> None:
    """Grid, width and mask of the tokens; gradients reach every parameter."""
    tokenizer = modality.tokenizer(DIM)
    x, mask = inputs(modality, sample, modality.blank())
    tokens = tokenizer(x, mask)
    count = int(np.prod(tokenizer.grid))
    assert tokens.x.shape[0] == 2
    assert tokens.x.shape[2] == tokenizer.dim == DIM
    assert tokens.x.shape[1] == count if tokens.mask is None else tokens.x.shape[1] <= count
    if tokens.mask is not None:
        assert tokens.mask.dtype == torch.bool
        assert tokens.mask.any(1).all()
    tokens.x.square().sum().backward()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def check_adapt(modality: Modality) -> dict[str, Tensor]:
    """What `adapt` makes of an image ViT fits the tokenizer; returned."""
    tokenizer = modality.tokenizer(DIM)
    state = modality.adapt(small_vit())
    missing, unexpected = tokenizer.load_state_dict(state, strict=False)
    assert not unexpected
    assert not state or not missing
    return state


def check_card(modality: Modality) -> None:
    card = modality.card
    assert all((card.title, card.units, card.shape, card.normalisation, card.citation))
    fields = type(modality.config).model_fields
    assert [name for name, field in fields.items() if not field.description] == []

"""Checks of tokens and of a small model: grid, padding, absence, gradients, weights of an image ViT, pictures.

Shapes: B batch, N tokens, D width, H, W height and width of a picture.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from mbt_core.modality import Picture
from mbt_core.modality.patch_weights import VitWeights
from mbt_core.modality.tokens import Tokenizer, Tokens
from mbt_core.testing.conformance.case import DIM, Case, Fault, named

TOLERANCE = 1e-4
PATCH, GRID = 16, 4
"""Of the image ViT, in pixels and patches along a side."""


def check_grid(case: Case) -> None:
    """There are as many tokens as the grid has places (with a mask: at most), of the model's width"""
    tokenizer = case.modality.tokenizer(DIM)
    if not isinstance(tokenizer, Tokenizer):
        raise Fault(f"tokenizer returns a {type(tokenizer).__name__}, expected a subclass of mbt_core.Tokenizer")
    grid, dim = getattr(tokenizer, "grid", None), getattr(tokenizer, "dim", None)
    if not isinstance(grid, tuple) or not grid or not all(isinstance(n, int) and n > 0 for n in grid):
        raise Fault(f"the tokenizer's grid is {grid!r}, expected a tuple of numbers of tokens")
    if dim != DIM:
        raise Fault(f"the tokenizer's dim is {dim}, expected {DIM}, that it was asked for")
    samples = [*case.samples, case.modality.blank()]
    tokens = tokenizer(*case.inputs(samples))
    if not isinstance(tokens, Tokens):
        raise Fault(f"the tokenizer returns a {type(tokens).__name__}, expected Tokens")
    if tokens.x.ndim != 3 or (len(tokens.x), tokens.x.shape[2]) != (len(samples), DIM):
        raise Fault(f"tokens are {list(tokens.x.shape)}, expected [{len(samples)}, N, {DIM}]")
    number = tokens.x.shape[1]
    count = math.prod(grid)
    if tokens.mask is None:
        if number != count:
            raise Fault(f"{number} tokens, but the grid {grid} has {count} places")
        return
    if tokens.mask.shape != tokens.x.shape[:2]:
        raise Fault(f"the tokens' mask is {list(tokens.mask.shape)}, expected {list(tokens.x.shape[:2])}")
    if number > count or (len(grid) > 1 and number != count):
        raise Fault(f"{number} tokens with a mask, but the grid {grid} has {count} places")
    if not tokens.mask.any(1).all():
        raise Fault("a sample without any real token; give every sample at least one, also the blank")


def check_padding(case: Case) -> None:
    """A sample's result depends neither on the other samples of the batch nor on padding"""
    together, mask = case.inputs([*case.samples, case.modality.blank()])
    with torch.no_grad():
        logits = case.logits(together, mask)
        for number, sample in enumerate(case.samples):
            alone = case.logits(*case.inputs([sample]))[0]
            if not torch.allclose(alone, logits[number], atol=TOLERANCE):
                raise Fault(
                    "a sample gives another result in a batch than alone: "
                    + ("statistics of the batch enter it" if mask is None else "padding, or the batch, enters it")
                )
        if mask is not None and together.shape[:2] == mask.shape and not mask.all():
            filled = together.clone()
            filled[~mask] = together[mask][:1]
            if not torch.allclose(case.logits(filled, mask), logits, atol=TOLERANCE):
                raise Fault("what is written into padding changes the result; pass the mask on in Tokens")


def check_absence(case: Case) -> None:
    """What stands in for an absent sample never matters"""
    first, *others = case.samples
    present = torch.tensor([True, False])
    with torch.no_grad():
        expected = case.logits(*case.inputs([first]))[0]
        for stand_in in (case.modality.blank(), *others):
            logits = case.logits(*case.inputs([first, stand_in]), present)[0]
            if not torch.allclose(logits, expected, atol=TOLERANCE):
                raise Fault("the content of an absent sample changes the result of a present one")


def check_gradients(case: Case) -> None:
    """The loss reaches every parameter of the tokenizer"""
    model = case.model
    model.zero_grad()
    case.logits(*case.inputs(case.samples)).square().sum().backward()
    tokenizer = next(iter(model.streams.values())).tokenizer
    for name, parameter in tokenizer.named_parameters():  # type: ignore[union-attr]
        if not parameter.requires_grad:
            continue
        if parameter.grad is None or not parameter.grad.any():
            raise Fault(f"no gradient reaches the tokenizer's {name}")
        if not parameter.grad.isfinite().all():
            raise Fault(f"the gradient of the tokenizer's {name} is not finite")


def check_adapt(case: Case) -> None:
    """What `adapt` makes of an image ViT fits the tokenizer"""
    vit = image_vit()
    before = {key: value.clone() for key, value in vit.state.items()}
    state = case.modality.adapt(vit)
    if not all(torch.equal(before[key], value) for key, value in vit.state.items()):
        raise Fault("adapt changes the weights it is given; return new tensors")
    own = case.modality.tokenizer(DIM).state_dict()
    for key, value in state.items():
        if key not in own:
            raise Fault(f"adapt gives {key!r}, but the tokenizer has {', '.join(own)}")
        if value.shape != own[key].shape:
            raise Fault(f"adapt gives {key!r} as {list(value.shape)}, the tokenizer's is {list(own[key].shape)}")
        if not value.isfinite().all():
            raise Fault(f"adapt gives {key!r} with values that are not finite")
    if state and (missing := own.keys() - state.keys()):
        raise Fault(f"adapt leaves out {', '.join(sorted(missing))}; give all of the tokenizer's state, or nothing")


def image_vit() -> VitWeights:
    """A random image ViT of width `DIM`."""
    generator = torch.Generator().manual_seed(0)
    state = {
        "patch_embed.proj.weight": torch.randn(DIM, 3, PATCH, PATCH, generator=generator),
        "patch_embed.proj.bias": torch.randn(DIM, generator=generator),
        "pos_embed": torch.randn(1, 1 + GRID * GRID, DIM, generator=generator),
    }
    return VitWeights(state, (GRID, GRID), 1, [0.5] * 3, [0.5] * 3)


def check_pictures(case: Case) -> None:
    """`draw` shows a sample, with relevance over it or without"""
    grid = case.modality.tokenizer(DIM).grid
    ramp = np.arange(math.prod(grid), dtype=np.float32).reshape(grid)
    for relevance in (None, np.zeros(grid, np.float32), ramp):
        sample = case.read()
        kept = {key: value.clone() for key, value in named(sample).items()}
        picture = case.modality.draw(sample, relevance)
        if not isinstance(picture, Picture):
            raise Fault(f"draw returns a {type(picture).__name__}, expected a Picture")
        for key, value in named(sample).items():
            if not torch.equal(value, kept[key]):
                raise Fault("draw changes the sample")
        if not (len(picture.stills) or len(picture.frames) or picture.html):
            raise Fault("draw shows nothing; return Picture(stills=[...]) or Picture(html=...)")
        for image in map(np.asarray, (*picture.stills, *picture.frames)):
            if image.dtype != np.uint8 or image.shape[2:] != (3,) or 0 in image.shape:
                came = f"{image.dtype} {list(image.shape)}"
                raise Fault(f"draw gives a picture that is {came}, expected uint8 [H, W, 3]")

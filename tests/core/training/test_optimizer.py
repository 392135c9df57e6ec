"""Schedule, parameter groups, what is trained."""

import math

import numpy as np
import pytest
import torch

import mbt_core as mbt
from mbt_core.config import TrainConfig
from mbt_core.model.block import Block
from mbt_core.training.loop import seed_generators
from mbt_core.training.optimizer import freeze, lr_factor, make_optimizer, parameter_groups, set_lr, set_training
from toy.models import build_tiny, inputs_for

pytestmark = pytest.mark.usefixtures("toys")
CPU = torch.device("cpu")


def test_schedule_of_the_reference():
    """15,900 steps with 795 of warm-up at a base rate of 0.5; the figures are the reference's."""
    expected = {0: 0.0, 1: 0.000628930807, 397: 0.2496855408, 794: 0.4993710816, 795: 0.5, 1000: 0.4997727871}
    expected |= {5000: 0.4103314877, 8347: 0.2500260174, 12000: 0.0778312236, 15500: 0.00086463988, 15900: 0.0}
    for step, rate in expected.items():
        assert 0.5 * lr_factor(step, 15_900, 0.05) == pytest.approx(rate, abs=1e-7)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 0.05), (7, 0.3), (100, 0.0), (3, 0.99)])
def test_schedule_of_short_runs(steps, warmup):
    rates = [lr_factor(step, steps, warmup) for step in range(steps + 1)]
    assert all(0 <= rate <= 1 for rate in rates)
    top = int(np.argmax(rates))
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert warmup > 0.9 or rates[-1] == pytest.approx(0, abs=1e-12)
    assert rates[0] == (1 if round(warmup * steps) == 0 else 0)


def trained(model, **config):
    freeze(model, TrainConfig(**config))
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("strategy", ["bottleneck", "self-attention"])
def test_what_is_tuned(strategy):
    model = build_tiny(strategy, 2, head={"representation": 4})
    names = {name for name, _ in model.named_parameters()}
    assert trained(model, tune="all") == names
    lower = {n for n in names if n.startswith(("streams.", "blocks.gamma.0.", "blocks.alpha.0."))}
    assert trained(model, tune="fused") == names - lower
    head = {n for n in names if n.startswith(("head.classifiers.", "head.representations."))}
    assert trained(model, tune="head") == head
    assert trained(model, tune="all") == names


def test_patterns_that_are_frozen():
    model = build_tiny(count=2)
    names = {name for name, _ in model.named_parameters()}
    frozen = names - trained(model, freeze=["streams.*.tokenizer.*", "*.pos_embed"])
    assert frozen == {n for n in names if ".tokenizer." in n or n.endswith("pos_embed")}
    with pytest.raises(mbt.ConfigError) as error:
        freeze(model, TrainConfig(freeze=["stream.*"]))
    assert str(error.value).startswith("train.freeze: 'stream.*' matches no parameter; names look like 'streams.gamma.")
    with pytest.raises(mbt.ConfigError, match=r"train\.freeze: nothing is left to train"):
        freeze(model, TrainConfig(freeze=["*"]))


def groups_by_name(model, **config):
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, TrainConfig(**config))
    found = [(names[id(p)], (g["scale"], g["weight_decay"])) for g in groups for p in g["params"]]
    assert len(found) == len(dict(found))
    return dict(found)


def test_weight_decay_spares_biases_norms_and_learned_tokens():
    model = build_tiny(count=2, backbone={"registers": 1, "layer_scale": 0.1, "qk_norm": True})
    found = groups_by_name(model, weight_decay=0.1)
    assert found.keys() == {name for name, _ in model.named_parameters()}
    decayed = {name.rpartition(".")[0].rpartition(".")[2] for name, (_, decay) in found.items() if decay}
    assert decayed == {"tokenizer", "embed", "qkv", "proj", "fc1", "fc2", "label"}
    spared = {name.rpartition(".")[2] for name, (_, decay) in found.items() if not decay}
    assert spared == {"bias", "gamma", "weight", "cls_token", "reg_token", "pos_embed", "bottlenecks"}
    assert not any(decay for name, (_, decay) in found.items() if "norm" in name)


def test_layer_decay():
    found = groups_by_name(build_tiny(count=2), layer_decay=0.5)
    expected = {"streams": 1 / 16, "blocks.gamma.0": 1 / 8, "blocks.alpha.1": 1 / 4, "blocks.alpha.2": 1 / 2}
    expected |= {"head": 1, "fusion": 1}
    for prefix, scale in expected.items():
        scales = {s for name, (s, _) in found.items() if name.startswith(f"{prefix}.")}
        assert scales == {scale}, prefix


def test_factors_of_modalities_reach_their_own_parameters_only():
    """Also where a modality is called like a part of the model or like a task."""
    modalities = {name: {"kind": "alpha"} for name in ("head", "blocks", "verb", "fusion", "weight")}
    factors = {name: 2.0 + i for i, name in enumerate(modalities)}
    head = {"classes": None, "tasks": {"verb": 2, "weight": 3}}
    for shared in (False, True):
        model = mbt.MBT(
            {
                "modalities": modalities,
                "backbone": {"dim": 8, "depth": 2, "heads": 2},
                "fusion": {"layer": 1},
                "head": {**head, "shared": shared},
            }
        )
        for name, (scale, _) in groups_by_name(model, lr_factors=factors).items():
            parts = name.split(".")
            owner = (
                {"streams": parts[1], "blocks": parts[1], "head": parts[2], "fusion": ""}[parts[0]]
                if len(parts) > 2
                else ""
            )
            assert scale == factors.get(owner, 1.0), name


def test_shared_blocks_have_no_modality():
    found = groups_by_name(build_tiny(count=2, shared_encoder=True), lr_factors={"gamma": 3})
    assert {name.split(".")[0] for name, (scale, _) in found.items() if scale == 3} == {"streams"}


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_optimizers(name, kind):
    model = build_tiny(count=2)
    config = TrainConfig(optimizer=name, lr=0.1, momentum=0.8, betas=(0.7, 0.8), lr_factors={"gamma": 0.5})
    optimizer = make_optimizer(model, config, CPU)
    assert type(optimizer) is kind
    set_lr(optimizer, 0.2)
    assert {group["lr"] for group in optimizer.param_groups} == {0.2, 0.1}
    if name == "adamw":
        assert optimizer.defaults["betas"] == (0.7, 0.8)
    else:
        assert (optimizer.defaults["momentum"], optimizer.defaults["nesterov"]) == (0.8, False)


def test_frozen_parameters_stay():
    model = build_tiny(count=2)
    freeze(model, TrainConfig(tune="fused"))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, TrainConfig(weight_decay=0.1), CPU)
    model(inputs_for(model)).logits.square().sum().backward()
    optimizer.step()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (not p.requires_grad), name


def test_momentum_is_that_of_the_reference():
    """v = m v + g; p = p - lr v."""
    model = build_tiny(count=1)
    optimizer = make_optimizer(model, TrainConfig(lr=0.1, momentum=0.9), CPU)
    parameter = model.streams["gamma"].pos_embed
    expected, velocity = parameter.detach().clone(), 0.0
    for step in range(3):
        optimizer.zero_grad()
        model(inputs_for(model, seed=step)).logits.square().sum().backward()
        velocity = 0.9 * velocity + parameter.grad
        rate = 0.1 * math.cos(step)
        set_lr(optimizer, rate)
        expected = expected - rate * velocity
        optimizer.step()
        torch.testing.assert_close(parameter.detach(), expected)


def test_only_blocks_with_nothing_trained_stay_in_evaluation():
    model = build_tiny(count=2)
    for frozen, expected in (([], []), (["blocks.gamma.*", "blocks.alpha.0.attn.*"], ["blocks.gamma"])):
        freeze(model, TrainConfig(freeze=frozen))
        set_training(model)
        still = {n for n, m in model.named_modules() if isinstance(m, Block) and not m.training}
        assert still == {f"{name}.{i}" for name in expected for i in range(3)}
        assert model.training
        assert all(stream.training for stream in model.streams.values())


def test_a_step_draws_as_after_seeding_everything():
    seed_generators(11, torch.device("cpu"))
    drawn = torch.rand(5)
    torch.manual_seed(11)
    assert torch.equal(drawn, torch.rand(5))

"""What holds for every strategy, number of modalities and pool, on anonymous modalities."""

from functools import cache

import pytest
import torch

from mbt_core import MBT
from toy.models import COUNTS, POOLS, STRATEGIES, build_tiny, inputs_for, sample

pytestmark = pytest.mark.usefixtures("toys")
BATCH = 4
build = cache(build_tiny)
everything = [
    pytest.mark.parametrize("strategy", STRATEGIES),
    pytest.mark.parametrize("count", COUNTS),
    pytest.mark.parametrize("pool", POOLS),
]


def combinations(test):
    for mark in everything:
        test = mark(test)
    return test


def draw_presence(names):
    """Sample 0 has everything, 1 nothing, 2 only one modality, the others a random subset that is not empty."""
    generator = torch.Generator().manual_seed(len(names))
    here = torch.rand(BATCH, len(names), generator=generator) < 0.5
    here[0], here[1], here[2] = True, False, False
    here[2, -1] = True
    here[3:, 0] |= ~here[3:].any(1)
    return {name: here[:, i].clone() for i, name in enumerate(names)}


def objective(out, index, present_names):
    """A scalar of everything a sample's forward pass gives, each output with a weight of its own."""
    parts = [out.logits, out.embedding]
    for name in present_names:
        if name in out.modality_logits:
            parts += [out.modality_logits[name], out.modality_embeddings[name]]
        parts.append(out.tokens[name][:, 0])
    flat = torch.cat([part[index] for part in parts])
    return (flat * torch.linspace(0.5, 1.5, len(flat), dtype=flat.dtype)).sum()


def gradients(model, loss):
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(loss, parameters.values(), allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, found, strict=True))


def poison(inputs, present):
    """Stand-ins of absent samples and padding become not-a-number."""
    poisoned = {}
    for name, given in inputs.items():
        x, mask = given if isinstance(given, tuple) else (given, None)
        x = x.clone()
        x[~present[name]] = torch.nan
        poisoned[name] = x if mask is None else (x, mask & present[name][:, None])
    return poisoned


@combinations
def test_absent_equals_running_without(strategy, count, pool):
    model = build(strategy, count, pool)
    names = list(model.modalities)
    inputs, present = inputs_for(model, BATCH), draw_presence(names)
    mixed = model(poison(inputs, present), present)
    torch.testing.assert_close(mixed.logits[1], torch.zeros(5).double(), rtol=0, atol=0)
    assert not mixed.embedding[1].any()
    mixed_loss = torch.zeros(()).double()
    alone_gradients = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for index in (0, 2, 3):
        here = [name for name in names if present[name][index]]
        alone = model(sample(inputs, index, here))
        torch.testing.assert_close(mixed.logits[index], alone.logits[0], rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(mixed.embedding[index], alone.embedding[0], rtol=1e-9, atol=1e-11)
        for name in here:
            real = alone.tokens[name].shape[1]
            torch.testing.assert_close(mixed.tokens[name][index, :real], alone.tokens[name][0], rtol=1e-9, atol=1e-11)
            if pool != "mean-joint":
                torch.testing.assert_close(mixed.modality_logits[name][index], alone.modality_logits[name][0])
        mixed_loss = mixed_loss + objective(mixed, index, here)
        for name, gradient in gradients(model, objective(alone, 0, here)).items():
            alone_gradients[name] += gradient
    for name, gradient in gradients(model, mixed_loss + mixed.logits[1].sum()).items():
        torch.testing.assert_close(gradient, alone_gradients[name], rtol=1e-8, atol=1e-10, msg=name)


@combinations
def test_padding_never_leaks(strategy, count, pool):
    model = build(strategy, count, pool)
    inputs = inputs_for(model, BATCH)
    expected = model(inputs)
    for value in (0.0, 1e30, torch.inf, torch.nan):
        changed = dict(inputs)
        for name, given in inputs.items():
            if isinstance(given, tuple):
                x, mask = given
                changed[name] = (torch.where(mask[..., None], x, value), mask)
        torch.testing.assert_close(model(changed).logits, expected.logits, rtol=0, atol=0)
    x, mask = inputs["gamma"]
    longer = (
        torch.cat((x, torch.full((BATCH, 2, 3), 7.0).double()), 1),
        torch.cat((mask, mask.new_zeros(BATCH, 2)), 1),
    )
    torch.testing.assert_close(model({**inputs, "gamma": longer}).logits, expected.logits, rtol=1e-9, atol=1e-11)


@combinations
def test_lower_layers_run_apart_and_the_rest_on_top_of_them(strategy, count, pool):
    model = build(strategy, count, pool)
    names = list(model.modalities)
    inputs, present = inputs_for(model, BATCH), draw_presence(names)
    lower = model.encode_alone(model.embed(inputs))
    for here in (names, names[:1], names[-1:]):
        expected = model({name: inputs[name] for name in here}, present)
        found = model.encode({name: lower[name] for name in here}, present, start=model.first_fused)
        torch.testing.assert_close(found.logits, expected.logits, rtol=1e-9, atol=1e-11)
        absent = {name: present[name] & torch.tensor(name in here) for name in names}
        torch.testing.assert_close(model(inputs, absent).logits, expected.logits, rtol=1e-9, atol=1e-11)


@combinations
def test_inputs_are_never_changed(strategy, count, pool):
    model = build(strategy, count, pool)
    inputs, present = inputs_for(model, BATCH), draw_presence(list(model.modalities))
    kept = {n: tuple(t.clone() for t in g) if isinstance(g, tuple) else g.clone() for n, g in inputs.items()}
    kept_present = {name: here.clone() for name, here in present.items()}
    order = list(inputs)
    model(inputs, present, return_intermediates=True)
    model.train()
    model(inputs, present)
    model.eval()
    assert list(inputs) == order
    torch.testing.assert_close(inputs, kept, rtol=0, atol=0)
    torch.testing.assert_close(present, kept_present)


@combinations
def test_no_parameter_is_unused(strategy, count, pool):
    """Not even where a modality is absent from the whole batch, or nothing is there at all."""
    model = build(strategy, count, pool)
    inputs, names = inputs_for(model, 2), list(model.modalities)
    for here in (names[:1], []):
        present = {name: torch.full((2,), name in here) for name in names}
        out = model(inputs, present)
        loss = out.logits.sum() + sum(x.sum() for x in out.modality_logits.values())
        found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        unused = [name for (name, _), gradient in zip(model.named_parameters(), found, strict=True) if gradient is None]
        assert unused == []
        assert all(gradient.isfinite().all() for gradient in found)


def with_weights_of(model, other):
    model.load_state_dict(other.state_dict())
    return model


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("count", [2, 3, 5])
def test_order_of_modalities(strategy, count):
    model = build(strategy, count)
    inputs = inputs_for(model)
    turned_inputs = dict(reversed(inputs.items()))
    torch.testing.assert_close(model(turned_inputs).logits, model(inputs).logits, rtol=0, atol=0)
    config = model.config.model_copy(update={"modalities": dict(reversed(model.config.modalities.items()))})
    turned = with_weights_of(MBT(config).double().eval(), model)
    assert list(turned.modalities) == list(reversed(model.modalities))
    difference = (turned(inputs).logits - model(inputs).logits).abs().max()
    if strategy == "bottleneck-sequential":
        assert difference > 1e-4
    else:
        assert difference < 1e-12


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("pool", POOLS)
def test_fusion_at_the_end_is_late(strategy, count, pool):
    late = build("late", count, pool)
    model = with_weights_of(build_tiny(strategy, count, pool, fusion={"layer": 3}), late)
    inputs, present = inputs_for(model), draw_presence(list(model.modalities))
    out, expected = model(inputs, present), late(inputs, present)
    torch.testing.assert_close(out.logits, expected.logits, rtol=0, atol=0)
    torch.testing.assert_close(out.tokens, expected.tokens, rtol=0, atol=0)


@pytest.mark.parametrize("count", COUNTS)
def test_late_fusion_runs_every_modality_alone(count):
    model = build("late", count)
    inputs = inputs_for(model)
    out = model(inputs)
    for name in inputs:
        alone = model({name: inputs[name]})
        torch.testing.assert_close(out.modality_logits[name], alone.logits)
    torch.testing.assert_close(out.logits, torch.stack(list(out.modality_logits.values())).mean(0))


@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s != "late"])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_modalities_hear_of_each_other(strategy, count):
    """Every modality's logits depend on every other modality, and not below the fusion layer."""
    model = build(strategy, count)
    inputs = inputs_for(model)
    changed = {**inputs, "alpha": inputs["alpha"] + 1}
    before, after = (model(x, return_intermediates=True) for x in (inputs, changed))
    for name in inputs:
        moved = (after.modality_logits[name] - before.modality_logits[name]).abs().max()
        assert moved > 1e-6, name
        first = [out.intermediates[0].tokens[name] for out in (before, after)]
        assert torch.equal(*first) == (name != "alpha")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_evaluation_without_exchange(strategy):
    """`eval_bottlenecks: false`: each modality alone in evaluation, exchange in training."""
    config = {"fusion": {"eval_bottlenecks": False}}
    model = with_weights_of(build_tiny(strategy, **config), build(strategy))
    inputs = inputs_for(model)
    out = model(inputs, return_intermediates=True)
    for name in inputs:
        torch.testing.assert_close(out.modality_logits[name], model({name: inputs[name]}).logits)
    assert out.intermediates[-1].bottlenecks is None
    assert out.intermediates[-1].sources == {name: [(name, x.shape[1])] for name, x in out.tokens.items()}
    torch.testing.assert_close(model.train()(inputs).logits, build(strategy)(inputs).logits)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_modality_has_no_bottlenecks(strategy):
    """A model built with one modality is a plain ViT, whatever the strategy."""
    model = build(strategy, 1)
    assert not list(model.fusion.parameters())
    inputs = inputs_for(model)
    plain = build("late", 1)
    renamed = {key.replace("blocks._joint", "blocks.gamma"): value for key, value in model.state_dict().items()}
    expected = with_weights_of(build_tiny("late", 1), plain)
    expected.load_state_dict(renamed)
    torch.testing.assert_close(model(inputs).logits, expected(inputs).logits)

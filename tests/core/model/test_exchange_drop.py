"""In training, a share of the batch runs without exchange."""

import pytest
import torch

from mbt_core import ConfigError, registry
from toy.models import build_tiny, inputs_for

pytestmark = pytest.mark.usefixtures("toys")
STRATEGIES = sorted(registry().fusions)
BATCH = 8


def of_rows(inputs, rows, names):
    return {n: tuple(t[rows] for t in x) if isinstance(x, tuple) else x[rows] for n, x in inputs.items() if n in names}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("count", [2, 3])
def test_the_first_examples_are_classified_by_each_stream_alone(strategy, count):
    model = build_tiny(strategy, count, fusion={"exchange_drop": 0.5})
    inputs = inputs_for(model, BATCH)
    model.train()
    mixed = model(inputs)
    model.eval()
    together = model(inputs)
    for name in model.modalities:
        alone = model(of_rows(inputs, slice(4), [name])).modality_logits[name]
        torch.testing.assert_close(mixed.modality_logits[name][:4], alone)
        torch.testing.assert_close(mixed.modality_logits[name][4:], together.modality_logits[name][4:])


def test_absent_modalities_stay_absent():
    model = build_tiny("bottleneck", 3, fusion={"exchange_drop": 0.5})
    inputs = inputs_for(model, BATCH)
    generator = torch.Generator().manual_seed(1)
    present = {name: torch.rand(BATCH, generator=generator) < 0.6 for name in model.modalities}
    present["alpha"] |= ~torch.stack(list(present.values())).any(0)
    model.train()
    mixed = model(inputs, present)
    model.eval()
    torch.testing.assert_close(mixed.logits[4:], model(inputs, present).logits[4:])
    alone = torch.stack([model(of_rows(inputs, slice(4), [name])).logits for name in model.modalities])
    here = torch.stack([present[name][:4] for name in model.modalities])[..., None]
    torch.testing.assert_close(mixed.logits[:4], (alone * here).sum(0) / here.sum(0))


def test_how_many_is_the_share_in_expectation_and_one_always_exchanges():
    model = build_tiny("bottleneck", 2, fusion={"exchange_drop": 0.3})
    inputs = inputs_for(model, 4)
    model.eval()
    together = model(inputs).modality_logits["alpha"]
    model.train()
    counts = []
    for _ in range(200):
        same = torch.isclose(model(inputs).modality_logits["alpha"], together).all(1)
        counts.append(4 - int(same.sum()))
    assert set(counts) == {1, 2}
    assert sum(counts) / len(counts) == pytest.approx(1.2, abs=0.1)
    one = inputs_for(model, 1)
    trained = model(one).modality_logits["alpha"]
    torch.testing.assert_close(trained, model.eval()(one).modality_logits["alpha"])


def test_every_parameter_gets_a_gradient():
    model = build_tiny("bottleneck", 2, fusion={"exchange_drop": 0.9})
    model.train()
    model(inputs_for(model, 3)).logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_share_of_one_is_refused():
    with pytest.raises(ConfigError, match=r"fusion\.exchange_drop: input should be less than 1, got 1"):
        build_tiny("bottleneck", 2, fusion={"exchange_drop": 1})

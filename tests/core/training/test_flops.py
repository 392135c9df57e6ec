"""Counts of operations and parameters, on anonymous modalities."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mbt_core import MBT, ConfigError, Experiment, MBTConfig
from mbt_core.analysis.measure.bench import CLASSES, over_layers, settle, strategies, with_fusion
from mbt_core.analysis.measure.plot import cost_figure, require_plot, save_figure
from mbt_core.config import TrainConfig
from mbt_core.training.flops import PARTS, count, count_step
from toy.models import COUNTS, POOLS, STRATEGIES, tiny

pytestmark = pytest.mark.usefixtures("toys")
D, HIDDEN, Z = 8, 12, 2
TOKENS = {"gamma": 6, "alpha": 3, "beta": 4, "delta": 2, "epsilon": 4}


def config_of(*args, **over):
    return MBTConfig(**tiny(*args, **over))


def block(queries, context=0):
    """Operations of one block, by hand: projections, attention, MLP."""
    keys = queries + context
    projections = 2 * queries * D * D + 2 * keys * D * D
    return 2 * (projections + 2 * queries * keys * D + 2 * queries * D * HIDDEN)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("number", COUNTS)
@pytest.mark.parametrize("pool", POOLS)
def test_counts_by_hand(strategy, number, pool):
    found = count(config_of(strategy, number, pool))
    tokens = dict(list(TOKENS.items())[:number])
    assert found.tokens == tokens
    lengths = [n + (pool == "cls") for n in tokens.values()]
    z = Z if number > 1 else 0
    fused = {
        "bottleneck": sum(block(n + z) for n in lengths),
        "bottleneck-sequential": sum(block(n + z) for n in lengths),
        "cross-attention": sum(block(n, sum(lengths) - n) for n in lengths),
        "self-attention": block(sum(lengths)),
        "late": sum(block(n) for n in lengths),
    }[strategy]
    values = {"gamma": 3, "alpha": 8, "beta": 6, "delta": 4, "epsilon": 2}
    embedded = tokens | {name: 1 for name in ("gamma", "epsilon") if name in tokens}  # elements of a stand-in
    assert found.flops["stream layers"] == sum(map(block, lengths))
    assert found.flops["fused layers"] == 2 * fused
    assert found.flops["head"] == 2 * D * 5 * (1 if pool == "mean-joint" else number)
    assert found.flops["tokenizers"] == sum(2 * n * values[name] * D for name, n in embedded.items())
    assert found.gflops == sum(found.flops.values()) / 1e9


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_training_step_by_hand(strategy):
    """Twice a forward pass back through what is trained; inputs have no gradient; once what is frozen below."""
    config = config_of(strategy, 2)
    forward, every = count(config), sum(count(config).parameters.values())
    whole = count_step(config, TrainConfig())
    assert whole.flops == 3 * sum(forward.flops.values()) - forward.flops["tokenizers"]
    assert (whole.parameters, whole.tokens) == (every, 9)
    head = count_step(config, TrainConfig(tune="head"))
    assert head.flops == sum(forward.flops.values()) + forward.flops["head"]
    above = count_step(config, TrainConfig(freeze=["streams.*", "blocks.*.0.*"]))
    assert forward.flops["tokenizers"] + forward.flops["stream layers"] < above.flops < whole.flops
    assert head.parameters < above.parameters < every


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("over", [{}, {"shared_encoder": True}, {"fusion": {"layer": 0}}, {"fusion": {"layer": 3}}])
def test_equals_what_a_real_model_does(strategy, over):
    names = {"alpha": {}, "beta": {}}  # of fixed length
    config = config_of(strategy, 0, modalities=names, **over)
    model = MBT(config).eval()
    inputs = {"alpha": torch.zeros(1, 2, 13), "beta": torch.zeros(1, 1, 4, 6)}
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(inputs)
    found = count(config)
    assert sum(found.flops.values()) == counter.get_total_flops() > 0
    assert sum(found.parameters.values()) == sum(p.numel() for p in model.parameters())
    assert list(found.flops) == list(found.parameters) == list(PARTS)
    assert found.parameters["head"] == sum(p.numel() for p in model.head.parameters())


def test_counting_draws_no_numbers():
    state = torch.get_rng_state()
    count(config_of())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_over_fusion_layers():
    config = config_of("self-attention", 3)
    curves = over_layers(config)
    assert set(curves) == set(strategies(config)) >= set(STRATEGIES)
    assert next(iter(curves)) == "self-attention"
    for name, curve in curves.items():
        assert list(curve) == [0, 1, 2, 3]
        assert curve[3] == pytest.approx(curves["late"][0])  # nothing is left to fuse
        assert curve[1] == count(with_fusion(config, name, 1)).gflops
        if name != "late":
            assert curve[0] > curve[1] > curve[2] > curve[3]
    assert list(over_layers(config, ["bottleneck"], [2])["bottleneck"]) == [2]


def test_other_strategies_leave_the_rest_and_forget_options():
    config = config_of("bottleneck", 2, pretrained="somewhere")
    other = with_fusion(config, "late")
    assert (other.fusion.layer, other.fusion.bottlenecks, other.pretrained) == (1, 2, None)
    assert config.fusion.strategy == "bottleneck"
    config.fusion.options = {"x": 1}
    assert with_fusion(config, "bottleneck", 2).fusion.options == {"x": 1}
    assert with_fusion(config, "late").fusion.options == {}


def test_what_data_would_tell():
    tree = tiny("bottleneck", 2)
    del tree["head"]
    experiment = Experiment(modalities=tree.pop("modalities"), model=tree)
    settled = settle(experiment)
    assert settled.model.head.classes == CLASSES
    assert settled.mbt_config().fusion.layer == 1
    assert experiment.model.head.classes is None
    experiment.modalities["alpha"].channels = "auto"
    with pytest.raises(ConfigError, match=r"^modalities\.alpha\.channels: 'auto' .* --set modalities\.alpha\.chan"):
        settle(experiment)


def test_figure(tmp_path):
    figure = cost_figure({"a": {0: 3.0, 1: 2.0}, "b": {0: 1.0, 1: 1.0}}, "alpha + beta")
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.get_lines()] == ["a", "b"]
    assert axes.get_lines()[0].get_xydata().tolist() == [[0, 3], [1, 2]]
    for kind, start in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        save_figure(figure, tmp_path / f"x.{kind}")
        assert (tmp_path / f"x.{kind}").read_bytes().startswith(start)
    with pytest.raises(ConfigError, match=r"expected a name ending in \.png, \.svg, \.pdf"):
        require_plot(tmp_path / "x.jpg")

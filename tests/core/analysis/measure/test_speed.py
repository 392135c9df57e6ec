"""What is repeated, counted and left alone; no time is judged."""

import pytest
import torch

from mbt_core import MBT, ConfigError, Experiment
from mbt_core.analysis.measure import speed
from mbt_core.analysis.measure.bench import bench
from mbt_core.analysis.measure.speed import Memory, inference, training
from mbt_core.data.collate import Preprocess, blank_batch
from mbt_core.model.block import Block
from toy.models import POOLS, STRATEGIES, tiny

pytestmark = pytest.mark.usefixtures("toys")
CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when told."""
    now = [0.0]
    monkeypatch.setattr(speed, "_now", lambda device: now[0])
    return now


@pytest.mark.parametrize(
    ("first", "later", "limit", "runs", "rate"),
    [
        (3.0, 0.5, 3.5, 1 + 7, 8 / 0.5),  # a slow first time does not count
        (0.5, 0.8, 2.0, 1 + 3, 8 / 0.8),
        (9.0, 1.0, 5.0, 1, 8 / 9.0),  # unless it took all the time there is
    ],
)
def test_repeats_for_the_time_given(clock, first, later, limit, runs, rate):
    times = []

    def run():
        clock[0] += later if times else first
        times.append(1)

    found = speed._repeat(run, 8, Memory(CPU), limit)
    assert len(times) == runs
    assert found.clips_per_second == pytest.approx(rate)


def experiment_of(*args, **train):
    tree = tiny(*args)
    return Experiment(modalities=tree.pop("modalities"), model=tree, train=train)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_training_step_computes_everything_and_changes_nothing(strategy, pool, optimizer):
    experiment = experiment_of(strategy, 3, pool, optimizer=optimizer, precision="bf16" if optimizer == "sgd" else "32")
    model = MBT(experiment.mbt_config())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    touched = set()
    for name, parameter in model.named_parameters():
        parameter.register_hook(lambda gradient, name=name: touched.add(name))
    batch = blank_batch(model.modalities, 2)
    found = training(model, Preprocess(model.modalities), batch, Memory(CPU), 0.0, experiment.train)
    assert touched == {name for name, _ in model.named_parameters()}
    assert found.clips_per_second > 0
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("train", [{"tune": "head"}, {"freeze": ["blocks.*", "streams.*"]}])
def test_what_is_frozen_takes_no_part_in_a_step(train):
    experiment = experiment_of("bottleneck", 2, optimizer="adamw", **train)
    model = MBT(experiment.mbt_config())
    touched = set()
    for name, parameter in model.named_parameters():
        parameter.register_hook(lambda gradient, name=name: touched.add(name))
    batch = blank_batch(model.modalities, 2)
    training(model, Preprocess(model.modalities), batch, Memory(CPU), 0.0, experiment.train)
    assert touched
    assert {name.partition(".")[0] for name in touched} <= {"head", "fusion"}
    assert not any(block.training for block in model.modules() if isinstance(block, Block))


def test_compiled_blocks_are_measured_compiled(monkeypatch):
    """The first step, which compiles, is none of those that are measured."""
    compiled, runs = [], []
    monkeypatch.setattr(Block, "compile", lambda block: compiled.append(block))  # noqa: PLW0108 -- bound to the block
    experiment = experiment_of("late", 1, compile=True)
    model = MBT(experiment.mbt_config())
    model.register_forward_hook(lambda *_: runs.append(1))
    batch = blank_batch(model.modalities, 2)
    monkeypatch.setattr(speed, "_repeat", lambda run, *_: len(runs))
    assert training(model, Preprocess(model.modalities), batch, Memory(CPU), 0.0, experiment.train) == 1
    assert compiled == [block for block in model.modules() if isinstance(block, Block)]


def test_sequences_are_run_at_full_length():
    experiment = experiment_of("late", 1)
    model = MBT(experiment.mbt_config())
    seen = []
    model.blocks["gamma"]["0"].register_forward_hook(lambda module, args, out: seen.append(out.shape))
    batch = blank_batch(model.modalities, 2)
    inference(model, Preprocess(model.modalities), batch, Memory(CPU), 0.0, experiment.train)
    assert seen[0] == (2, 1 + 6, 8)
    assert not model.training


def test_peak_memory_of_this_process():
    memory = Memory(CPU)
    memory.reset()
    if memory.peak() is None:
        pytest.skip("this system does not tell")
    kept = torch.ones(2**24)  # 64 MB
    high = memory.peak()
    assert 60e6 < high < 200e6
    del kept
    memory.reset()
    assert memory.peak() < high


@pytest.mark.slow
def test_a_pattern_of_one_strategy_does_not_stop_the_others():
    experiment = experiment_of("bottleneck", 2, freeze=["fusion.*", "streams.*"])
    assert all(cost.training for cost in bench(experiment, device=CPU, batch_size=2, seconds=0.0))
    with pytest.raises(ConfigError, match="'wrong' matches no parameter"):
        list(bench(experiment_of("bottleneck", 2, freeze=["wrong"]), device=CPU, seconds=0.0))


@pytest.mark.slow
def test_every_strategy_is_measured():
    costs = list(bench(experiment_of("cross-attention", 2), device=CPU, batch_size=2, seconds=0.0))
    assert costs[0].strategy == "cross-attention"
    assert {cost.strategy for cost in costs} >= set(STRATEGIES)
    assert all(cost.inference.clips_per_second > 0 and cost.training.clips_per_second > 0 for cost in costs)
    counted = list(bench(experiment_of("late", 2)))
    assert all(cost.inference is None and cost.training is None for cost in counted)

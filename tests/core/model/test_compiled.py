"""Compiled blocks: few graphs, shared by blocks that are called alike, and none left uncompiled."""

from itertools import product

import pytest
import torch

from mbt_core import MBTConfig
from mbt_core.model.block import Block, compile_blocks
from toy.models import tiny

pytestmark = pytest.mark.usefixtures("toys")


@pytest.fixture
def graphs(monkeypatch):
    """Every call of `Module.compile` uses a backend that runs graphs as they are; collects graphs, and their calls."""
    torch._dynamo.reset()
    made, calls = [], []

    def backend(graph, examples):
        made.append(graph)

        def run(*args):
            calls.append(graph)
            return graph(*args)

        return run

    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_module(module, backend=backend))
    yield made, calls
    torch._dynamo.reset()


def blocks_of(rates):
    config = MBTConfig(**tiny(count=1))
    return torch.nn.ModuleList(Block(config.backbone, config, rate) for rate in rates)


def test_layers_with_other_rates_of_stochastic_depth_share_a_graph(graphs):
    blocks = blocks_of([0.03 * (i + 1) for i in range(11)]).train()
    compile_blocks(blocks)
    x = torch.randn(2, 3, 8)
    for block in blocks:
        block(x).sum().backward()
    made, calls = graphs
    assert (len(made), len(calls)) == (1, 11)


@pytest.mark.slow
def test_all_ways_of_calling_a_block_are_compiled(graphs):
    """More than torch compiles of a function by default."""
    blocks = blocks_of([0.0, 0.2])
    compile_blocks(blocks)
    x, context = torch.randn(2, 3, 8), torch.randn(2, 4, 8)
    ways = [(True, *way) for way in product((None, context), (False, True))] + [(False, None, False)]
    for training, given, masked in ways:
        blocks.train(training)
        mask = torch.ones(2, 3 if given is None else 7, dtype=torch.bool) if masked else None
        for block in blocks:
            block(x, given, mask)
    made, calls = graphs
    assert len(made) > 8
    assert len(calls) == 2 * len(ways)


@pytest.mark.parametrize("rescale", [True, False])
def test_compiled_stochastic_depth_has_the_right_expectation(graphs, rescale):
    config = MBTConfig(**tiny(count=1, drop_path_rescale=rescale))
    path = Block(config.backbone, config, 0.3).drop_path1.train()
    path.compile()
    found = path(torch.ones(4000, 2, 3))
    kept = 1 / 0.7 if rescale else 1.0
    torch.testing.assert_close(found.unique(), torch.tensor([0.0, kept]))
    assert found.mean().item() == pytest.approx(0.7 * kept, abs=0.03)
    assert (found == found[:, :1, :1]).all()  # a sample is dropped as a whole
    path.eval()
    assert (path(torch.ones(4, 2, 3)) == 1).all()

"""No step waits for a value of the accelerator: all runs on tensors that have shapes only, and no values.

Nor does it copy anything to the accelerator, which waits too: a second test has tensors that claim to be on a GPU.
"""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from mbt_core import MBT
from mbt_core.model.loss import example_losses
from mbt_core.training.mixup import Mixup
from toy.models import FIRST_STRATEGY, POOLS, inputs_for, tiny

pytestmark = pytest.mark.usefixtures("toys")
TRAINING = {"drop_path": 0.3, "dropout": 0.1, "attention_dropout": 0.1, "patch_drop": 0.3}


@pytest.mark.parametrize("strategy", FIRST_STRATEGY)
@pytest.mark.parametrize("pool", POOLS)
def test_a_training_step(strategy, pool):
    with torch.device("meta"):
        model = MBT(tiny(strategy, 3, pool, **TRAINING)).double().train()
    inputs = tree_map(lambda x: x.to("meta"), inputs_for(model))
    present = {name: torch.ones(4, dtype=torch.bool, device="meta") for name in model.modalities}
    labels = {"label": torch.zeros(4, 5, device="meta")}
    mixup = Mixup.draw(np.random.default_rng(0), 0.3, list(inputs), per_modality=False)
    targets = mixup.targets(labels, list(inputs), present)
    out = model(inputs, present, transform=lambda tokens: mixup.tokens(tokens, present))
    example_losses(out, targets, model.config.head, present, 0.1).mean().backward()
    assert all(p.grad is not None and p.grad.is_meta for p in model.parameters())


class Crossings(TorchDispatchMode):
    """Notes the operations with tensors of two devices. One that needs both at once fails by itself."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        devices = {x.device.type for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)}
        if len(devices) > 1:
            self.seen.append(func)
        return out


@pytest.mark.parametrize("strategy", FIRST_STRATEGY)
@pytest.mark.parametrize("per_modality", [False, True])
@pytest.mark.parametrize("complete", [False, True])
def test_nothing_is_copied_to_a_gpu_in_a_step(strategy, per_modality, complete):
    """Its backward pass is left out: autograd asks for a real one."""
    with torch.device("meta"):
        model = MBT(tiny(strategy, 3, **TRAINING)).double().train()
    mixup = Mixup.draw(np.random.default_rng(0), 0.3, list(model.modalities), per_modality)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cuda")
        inputs = tree_map(lambda x: x.to("cuda"), inputs_for(model))
        labels = {"label": torch.zeros(4, 5, device="cuda")}
        present = {name: torch.ones(4, dtype=torch.bool, device="cuda") for name in model.modalities}
        given = None if complete else present
        with Crossings() as crossings:
            targets = mixup.targets(labels, list(inputs), given)
            out = model(inputs, given, transform=lambda tokens: mixup.tokens(tokens, given))
            loss = example_losses(out, targets, model.config.head, given, 0.1).mean()
        assert loss.device.type == "cuda"
    assert crossings.seen == []


def test_a_copy_would_be_noticed():
    with FakeTensorMode(), Crossings() as crossings:
        torch.as_tensor(0.5, device="cuda") + torch.zeros(3, device="cuda")
    assert crossings.seen == [torch.ops.aten._to_copy.default]

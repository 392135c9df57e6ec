"""No step waits for a value of the accelerator: all runs on tensors that have shapes only, and no values."""

import numpy as np
import pytest
import torch

from mbt_core import MBT
from mbt_core.model.loss import example_losses
from mbt_core.training.mixup import Mixup
from toy.models import POOLS, STRATEGIES, inputs_for, tiny

pytestmark = pytest.mark.usefixtures("toys")
TRAINING = {"drop_path": 0.3, "dropout": 0.1, "attention_dropout": 0.1, "patch_drop": 0.3}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("pool", POOLS)
def test_a_training_step(strategy, pool):
    with torch.device("meta"):
        model = MBT(tiny(strategy, 3, pool, **TRAINING)).double().train()
    inputs = torch.utils._pytree.tree_map(lambda x: x.to("meta"), inputs_for(model))
    present = {name: torch.ones(4, dtype=torch.bool, device="meta") for name in model.modalities}
    labels = {"label": torch.zeros(4, 5, device="meta")}
    mixup = Mixup.draw(np.random.default_rng(0), 0.3, list(inputs), per_modality=False)
    targets = mixup.targets(labels, list(inputs), present)
    out = model(inputs, present, transform=lambda tokens: mixup.tokens(tokens, present))
    example_losses(out, targets, model.config.head, present, 0.1).mean().backward()
    assert all(p.grad is not None and p.grad.is_meta for p in model.parameters())

"""The trial of a batch size, and words for a batch that does not fit."""

import pytest
import torch

from mbt_core import MBT
from mbt_core.config import TrainConfig
from mbt_core.data.collate import Preprocess
from mbt_core.errors import MBTError
from mbt_core.training.memory import DEFAULT_BATCH, explain_memory, largest_batch, run_blanks
from toy.models import tiny

pytestmark = pytest.mark.usefixtures("toys")
CPU = torch.device("cpu")


def test_a_trial_takes_the_memory_of_the_longest_sequences():
    """A stand-in of a sequence has one element: a batch of them would fit where one of real ones does not."""
    model = MBT(tiny("bottleneck", 1)).train()
    lengths = []
    model.blocks["gamma"]["0"].register_forward_hook(lambda module, args, out: lengths.append(tuple(out.shape)))
    run_blanks(model, Preprocess(model.modalities), 5, CPU)
    assert lengths == [(5, 1 + 6, 8)]
    assert model.blocks["gamma"]["0"].mlp.fc1.weight.grad is not None


def test_where_a_full_memory_kills_nothing_is_tried():
    assert largest_batch(MBT(tiny("late", 1)), Preprocess({}), CPU) == DEFAULT_BATCH


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried",
    ],
)
def test_every_way_to_say_that_memory_is_out(text):
    with pytest.raises(MBTError, match=r"out of memory with train.batch_size=64"), explain_memory(TrainConfig()):
        raise RuntimeError(text)


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="device-side assert"), explain_memory(TrainConfig()):
        raise RuntimeError("CUDA error: device-side assert triggered")

"""Messages between processes: whatever is sent arrives, in memory of its own, and nobody waits for anybody."""

import os
import pickle
from multiprocessing import Pipe

import numpy as np
import pytest
import torch

from mbt_core.data.messages import SMALL, receive, send


@pytest.mark.parametrize("size", [3, SMALL])
def test_tensors_and_arrays_arrive(size: int) -> None:
    """Through the socket or through shared memory, and may be written to."""
    message = {
        "half": torch.arange(size).to(torch.bfloat16),
        "empty": torch.empty(0, 3, dtype=torch.int16),
        "number": torch.tensor(2.5),
        "flags": torch.tensor([True, False]),
        "turned": torch.arange(6.0).reshape(2, 3).t(),
        "array": np.arange(size, dtype=np.float64),
        "text": ["a", 1, None],
    }
    one, other = Pipe()
    send(one, message)
    result = receive(other)
    for name, value in message.items():
        if isinstance(value, torch.Tensor):
            assert result[name].dtype == value.dtype
            assert torch.equal(result[name], value)
            result[name].zero_()
    assert np.array_equal(result["array"], message["array"])
    assert result["text"] == message["text"]
    assert torch.equal(message["turned"], torch.arange(6.0).reshape(2, 3).t())


def test_buffers_are_not_copied_into_the_pickle() -> None:
    one, other = Pipe()
    send(one, [pickle.PickleBuffer(b"abc" * SMALL), pickle.PickleBuffer(b"")])
    first, second = receive(other)
    assert (bytes(first), bytes(second)) == (b"abc" * SMALL, b"")


def test_sending_never_waits() -> None:
    """However much is sent before anybody reads it, and in both directions."""
    one, other = Pipe()
    for number in range(3):
        send(one, (number, b"x" * (1 << 22)))
        send(other, (number, torch.full((1 << 20,), number)))
    assert [receive(other)[0] for _ in range(3)] == [0, 1, 2]
    assert [int(receive(one)[1][-1]) for _ in range(3)] == [0, 1, 2]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files as Linux shows them")
def test_memory_and_files_live_as_long_as_what_is_in_them() -> None:
    one, other = Pipe()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        send(one, [torch.zeros(SMALL), torch.ones(SMALL)])
        zeros, ones = receive(other)
        view = ones[3:5]
        del zeros, ones
    assert view.tolist() == [1, 1]
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del view
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_other_side_is_gone() -> None:
    one, other = Pipe()
    other.close()
    with pytest.raises(OSError, match="Broken pipe"):
        send(one, torch.zeros(SMALL))
    with pytest.raises(EOFError):
        receive(one)

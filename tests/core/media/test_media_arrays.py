"""Arrays out of files."""

import io
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mbt_core.media.arrays import load_array
from mbt_core.media.deadline import Deadline


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_threads_do_not_parse_headers_side_by_side(suffix, monkeypatch):
    """In Python 3.11 one of them would fail now and then, and a good file be counted as unreadable."""
    load, active, most = np.load, [], []

    def watched(*args, **kwargs):
        active.append(1)
        most.append(len(active))
        time.sleep(0.002)
        try:
            return load(*args, **kwargs)
        finally:
            active.pop()

    monkeypatch.setattr(np, "load", watched)
    array, file = np.arange(12.0).reshape(3, 4), io.BytesIO()
    (np.save if suffix == ".npy" else np.savez)(file, array)
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda _: load_array(io.BytesIO(file.getvalue()), suffix, Deadline("a", 60)).array, range(40))
        )
    assert all(np.array_equal(one, array) for one in found)
    assert max(most) == 1

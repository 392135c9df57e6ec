"""Embeddings on disk."""

from pathlib import Path

import numpy as np
import pytest

from mbt_core.evaluate.embed import FUSED, Part, _write_arrays


@pytest.mark.parametrize("name", ["file", "allow_pickle", "args", "eye"])
def test_a_modality_of_any_name_is_an_array_of_an_npz(tmp_path: Path, name: str) -> None:
    parts = [Part([f"{n}ü"], {FUSED: np.full((1, 2), n, np.float32), name: np.zeros((1, 2))}) for n in range(3)]
    _write_arrays(tmp_path / "e.npz", parts, fused_only=False)
    with np.load(tmp_path / "e.npz") as arrays:
        assert sorted(arrays) == sorted(["ids", FUSED, name])
        assert arrays["ids"].tolist() == ["0ü", "1ü", "2ü"]
        assert arrays[FUSED].dtype == np.float32
        assert arrays[FUSED].tolist() == [[0, 0], [1, 1], [2, 2]]
        assert arrays[name].shape == (3, 2)

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mbt_core.errors import DataError
from mbt_core.pretrained.augreg import read_params

INIT = Path(__file__).parents[2] / "data" / "goldens" / "dev" / "init"


def arrays_of(npz: Path) -> dict[str, np.ndarray]:
    with np.load(npz) as arrays:
        return {name: arrays[name] for name in arrays}


def assert_same(read, expected):
    assert read.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(read[name], value, err_msg=name)
        assert read[name].dtype == np.float32


def test_release_layout_equals_the_scenic_source():
    assert_same(read_params(INIT / "source_vit_augreg.npz"), arrays_of(INIT / "source_vit.npz"))


def test_training_checkpoint_layout(tmp_path):
    target = {f"opt/target/{name}": value for name, value in arrays_of(INIT / "source_vit_augreg.npz").items()}
    state = {"opt/state/step": np.array(7), "extra/accum_train_time": np.array(3.0)}
    np.savez(tmp_path / "vit.npz", **target, **state)
    assert_same(read_params(tmp_path / "vit.npz"), arrays_of(INIT / "source_vit.npz"))


def test_bfloat16_and_transposed_storage(tmp_path):
    bias = np.array([0x3FC0, 0xC000], "<u2").view("V2")
    kernel = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    np.savez(tmp_path / "vit.npz", **{"embedding/bias": bias, "embedding/kernel": kernel})
    read = read_params(tmp_path / "vit.npz")
    assert_same(read, {"embedding/bias": np.array([1.5, -2]), "embedding/kernel": kernel})
    assert read["embedding/kernel"].flags.c_contiguous


def test_pickled_objects_are_refused(tmp_path):
    np.savez(tmp_path / "vit.npz", **{"embedding/kernel": np.array([{}], dtype=object)})
    with pytest.raises(DataError, match=r"vit\.npz: embedding/kernel\.npy holds pickled objects"):
        read_params(tmp_path / "vit.npz")


def test_other_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"absent\.npz: No such file"):
        read_params(tmp_path / "absent.npz")
    (tmp_path / "page.npz").write_text("<!DOCTYPE html>")
    with pytest.raises(DataError, match=r"page\.npz: a web page, where a numpy archive"):
        read_params(tmp_path / "page.npz")
    torch.save({"a": torch.zeros(1)}, tmp_path / "vit.pth")
    with pytest.raises(DataError, match="a torch file"):
        read_params(tmp_path / "vit.pth")
    np.savez(tmp_path / "other.npz", weights=np.zeros(2))
    with pytest.raises(DataError, match=r"no ViT: embedding/kernel.*found weights"):
        read_params(tmp_path / "other.npz")
    np.savez(tmp_path / "complex.npz", **{"embedding/kernel": np.zeros(2, complex)})
    with pytest.raises(DataError, match="elements of type complex128"):
        read_params(tmp_path / "complex.npz")


def test_damaged_archive(tmp_path):
    content = bytearray((INIT / "source_vit_augreg.npz").read_bytes())
    content[1000] ^= 1
    (tmp_path / "vit.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"vit\.npz: damaged, "):
        read_params(tmp_path / "vit.npz")
    (tmp_path / "vit.npz").write_bytes(content[:-1000])
    with pytest.raises(DataError, match="a damaged or truncated zip archive"):
        read_params(tmp_path / "vit.npz")


@pytest.mark.parametrize("shape", ["(2, 4)", "(1099511627776,)", "(-1, -8)", "(8, 99999999999999999999)"])
def test_shape_that_does_not_match_the_bytes(tmp_path, shape):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 28
    with zipfile.ZipFile(tmp_path / "vit.npz", "w") as archive:
        archive.writestr("embedding/kernel.npy", member)
    with pytest.raises(DataError, match=r"embedding/kernel\.npy"):
        read_params(tmp_path / "vit.npz")


@settings(max_examples=300, deadline=None)
@given(
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=4)), max_size=6),
    end=st.floats(0, 1),
    stored=st.booleans(),
)
def test_mutations_raise_nothing_but_data_errors(tmp_path_factory, edits, end, stored):
    buffer = io.BytesIO()
    (np.savez if stored else np.savez_compressed)(
        buffer, **{"embedding/kernel": np.ones((2, 3), np.float32), "cls": np.ones(4, np.float16)}
    )
    content = bytearray(buffer.getvalue())
    for where, data in edits:
        position = int(where * len(content))
        content[position : position + len(data)] = data
    path = tmp_path_factory.getbasetemp() / "mutated.npz"
    path.write_bytes(content[: int(end * len(content)) if end < 0.5 else None])
    try:
        read = read_params(path)
    except DataError as error:
        assert "mutated.npz: " in str(error)  # noqa: PT017
    else:
        assert all(value.dtype == np.float32 for value in read.values())

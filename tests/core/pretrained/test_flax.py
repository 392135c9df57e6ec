import pickle
import subprocess
import sys
from pathlib import Path

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from mbt_core.errors import DataError
from mbt_core.pretrained.flax import read_params, write_params

GOLDENS = Path(__file__).parents[2] / "data" / "goldens" / "dev"
CHUNKED = (GOLDENS / "checkpoint_chunked" / "checkpoint_7").read_bytes()
RELEASED = GOLDENS / "checkpoint" / "checkpoint_15900"


def params_of(npz: Path) -> dict[str, np.ndarray]:
    with np.load(npz) as arrays:
        return {name.removeprefix("params/"): arrays[name] for name in arrays if name.startswith("params/")}


def array(shape=(2,), dtype="float32", data=None, code=1):
    """A leaf as Flax writes it; `shape`, `dtype` and `data` may contradict each other."""
    data = np.zeros(shape, "float32").tobytes() if data is None else data
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, data)))


def checkpoint(tmp_path: Path, content) -> Path:
    path = tmp_path / "checkpoint_1"
    path.write_bytes(content if isinstance(content, bytes) else msgpack.packb(content))
    return path


def assert_same(read, expected):
    assert read.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(read[name], value, err_msg=name)
        assert read[name].dtype == np.float32


def test_released_layout_gives_every_parameter_and_nothing_else():
    assert_same(read_params(RELEASED), params_of(GOLDENS / "a.npz"))


def test_chunked_arrays_are_joined():
    reference = params_of(GOLDENS / "a.npz")
    read = read_params(GOLDENS / "checkpoint_chunked" / "checkpoint_7")
    assert len(read) == 4
    assert_same(read, {name: reference[name] for name in read})


def test_arrays_belong_to_the_caller():
    for value in read_params(GOLDENS / "checkpoint_chunked").values():
        assert value.flags.writeable
        assert value.flags.c_contiguous


def test_writing_gives_the_released_file_byte_for_byte(tmp_path):
    state = msgpack.unpackb(RELEASED.read_bytes())["optimizer"]["state"]["param_states"]
    params, momentum = params_of(GOLDENS / "a.npz"), {}
    for name in params:
        node = state
        for part in name.split("/"):
            node = node[part]
        shape, dtype, data = msgpack.unpackb(node["momentum"].data)
        momentum[name] = np.frombuffer(data, dtype).reshape(shape)
    write_params(tmp_path / "checkpoint_15900", params, momentum, step=15900)
    assert (tmp_path / "checkpoint_15900").read_bytes() == RELEASED.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint_15900"]


def test_round_trip_without_momentum(tmp_path):
    params = params_of(GOLDENS / "a.npz")
    write_params(tmp_path / "checkpoint_0", params)
    assert_same(read_params(tmp_path / "checkpoint_0"), params)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tree: {"optimizer": {"target": tree, "state": {"step": 3}}},
        lambda tree: {"optimizer": {"state": {"step": 3}, "target": {"params": tree}}, "global_step": 3},
        lambda tree: {"opt_state": {"0": {"Transformer": array()}}, "params": tree, "rng": array()},
        lambda tree: {"params": {"params": tree}},
        lambda tree: tree,
    ],
    ids=["target", "target-params", "params", "params-params", "bare"],
)
def test_layouts(tmp_path, wrap):
    tree = {"Transformer": {"encoder_norm": {"bias": array((3,), data=np.arange(3.0, dtype="<f4").tobytes())}}}
    read = read_params(checkpoint(tmp_path, wrap(tree)))
    assert_same(read, {"Transformer/encoder_norm/bias": np.arange(3.0)})


def test_pre_linen_names_become_linen(tmp_path):
    block = {
        "LayerNorm_0": {"bias": array()},
        "MultiHeadDotProductAttention_1": {"out": {"bias": array()}},
        "LayerNorm_2": {"bias": array()},
        "MlpBlock_3": {"Dense_1": {"bias": array()}},
    }
    tree = {"Transformer": {"encoderblock_3_spectrogram": block}, "head": {"bias": array()}}
    prefix = "Transformer/encoderblock_3_spectrogram"
    assert read_params(checkpoint(tmp_path, {"optimizer": {"target": {"params": tree}}})).keys() == {
        f"{prefix}/LayerNorm_0/bias",
        f"{prefix}/MultiHeadDotProductAttention_0/out/bias",
        f"{prefix}/LayerNorm_1/bias",
        f"{prefix}/MlpBlock_0/Dense_1/bias",
        "output_projection/bias",
    }


@pytest.mark.parametrize(
    ("dtype", "data"),
    [
        ("bfloat16", b"\xc0\x3f\x00\xc0"),
        ("float16", np.array([1.5, -2], "<f2").tobytes()),
        ("float64", np.array([1.5, -2], "<f8").tobytes()),
    ],
)
def test_every_width_becomes_float32(tmp_path, dtype, data):
    read = read_params(checkpoint(tmp_path, {"params": {"cls": array((2,), dtype, data)}}))
    assert_same(read, {"cls": np.array([1.5, -2])})


def test_numpy_scalars_are_arrays_without_axes(tmp_path):
    scalar = array((), data=np.float32(0.25).tobytes(), code=3)
    assert_same(read_params(checkpoint(tmp_path, {"params": {"scale": scalar}})), {"scale": np.array(0.25)})


def test_folder_takes_the_highest_step(tmp_path):
    for step in (9, 10):
        write_params(tmp_path / f"checkpoint_{step}", {"cls": np.full(2, step, np.float32)})
    (tmp_path / "checkpoint_11.tmp").write_bytes(b"")
    (tmp_path / "checkpoint_12").mkdir()
    assert read_params(tmp_path)["cls"].tolist() == [10, 10]


def test_missing_files(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_params(tmp_path / "absent")
    with pytest.raises(DataError, match=r"folder without a file checkpoint_N$"):
        read_params(tmp_path)
    (tmp_path / "checkpoint_12").mkdir()
    with pytest.raises(DataError, match="Orbax"):
        read_params(tmp_path)


def disguises(path: Path, kind: str) -> None:
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"params": 1}))
    elif kind == "torch":
        torch.save({"params": torch.zeros(2)}, path)
    elif kind == "npz":
        with path.open("wb") as file:
            np.savez(file, cls=np.zeros(2))
    elif kind == "broken zip":
        path.write_bytes(b"PK\x03\x04 and no more")
    elif kind == "safetensors":
        save_file({"cls": np.zeros(2, np.float32)}, path)
    elif kind == "pointer":
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    elif kind == "text":
        path.write_bytes(b"hello")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "an empty file"),
        ("pickle", "a Python pickle"),
        ("torch", "a torch file"),
        ("npz", "a numpy archive"),
        ("broken zip", "damaged or truncated zip"),
        ("safetensors", "a safetensors file"),
        ("pointer", "a Git LFS pointer"),
        ("text", "not a msgpack map"),
    ],
)
def test_other_files_are_named(tmp_path, kind, message):
    path = tmp_path / "checkpoint_1"
    disguises(path, kind)
    with pytest.raises(DataError, match=f"checkpoint_1: .*{message}"):
        read_params(path)


def deep(levels: int) -> dict:
    node = array()
    for _ in range(levels):
        node = {"a": node}
    return node


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "state_dict": {}}, "no parameters.*found epoch, state_dict"),
        ({"optimizer": {"state": {}}, "rng": 1}, "no parameters.*found optimizer/state, rng"),
        ({"params": {}}, "params holds no arrays"),
        ({"params": array()}, "params holds no arrays"),
        ({}, "found nothing"),
        ([1, 2], "not a msgpack map"),
        ({"params": {"cls": [1.0]}}, "params/cls is a list"),
        ({"params": {"cls": "x"}}, "cls is a str"),
        ({"params": {"cls": msgpack.ExtType(2, msgpack.packb((1.0, 2.0)))}}, "cls is a complex number"),
        ({"params": {"cls": msgpack.ExtType(9, b"")}}, "cls is of the unknown extension type 9"),
        (b"\x81\xa6params\x81\xa3cls\xd4\x80\x00", "params/cls is of the unknown extension type -128"),
        ({"params": {"cls": msgpack.ExtType(1, b"\xc1")}}, "params/cls: "),
        ({"params": {"cls": msgpack.ExtType(1, msgpack.packb([1]))}}, "not an array of shape, dtype and bytes"),
        ({"params": {"cls": array((3,), data=b"\0" * 8)}}, "8 bytes do not hold float32 .3."),
        ({"params": {"cls": array((2**30, 2**30), data=b"\0" * 8)}}, "8 bytes do not hold float32"),
        ({"params": {"cls": array((-2, -1), data=b"\0" * 8)}}, "is no shape"),
        ({"params": {"cls": array((0, 2**63), data=b"")}}, "is no shape"),
        ({"params": {"cls": array((1,) * 40, data=b"\0" * 4)}}, "params/cls: "),
        ({"params": {"cls": array((2,), "object", b"\0" * 16)}}, "elements of type object"),
        ({"params": {"cls": array((2,), "complex64", b"\0" * 16)}}, "elements of type complex64"),
        ({"params": {"cls": array((2,), "float32", 7)}}, "no bytes do not hold"),
        ({"params": {b"cls": array()}}, "not a string"),
        ({"params": {5: array()}}, "not a string"),
        ({5: array()}, "not a string"),
        ({"params": {"a/b": array()}}, "holds a slash"),
        ({"params": {"a" * 300: array()}}, "a name of 300 characters"),
        ({"params": {"LayerNorm_1": array(), "LayerNorm_2": array()}}, "LayerNorm_1 is there twice"),
        ({"params": deep(40)}, "nested deeper than 32"),
        ({"opt_state": deep(500), "params": deep(500)}, "nested deeper than 32"),
        (b"\x81\xa6params" + b"\x81\xa1a" * 5000, "nested too deeply"),
        (b"\x81\xa6params" + b"\x91" * 5000, "nested too deeply"),
        (b"\x81\xa6params\xc9\x7f\xff\xff\xff\x01abc", "truncated"),
        (b"\x81\xa6params\xc6\xff\xff\xff\xff", "truncated"),
        (b"\x81\xa6params\xdd\xff\xff\xff\xff", "truncated"),
        (b"\xdf\xff\xff\xff\xff\xa6params", "more than 100000 entries"),
        (b"\x81\xa6params\x82\xa1a\x00\xa1a\x00", "there twice"),
        (b"\x81\xa6params\xc1", "not valid msgpack"),
        (b"\x81\xa2\xff\xff\x00", "a name is not UTF-8"),
        (msgpack.packb({"params": {"cls": array()}}) + b"\0", "-?1 bytes follow the end"),
    ],
)
def test_damaged_and_foreign_content(tmp_path, content, message):
    path = checkpoint(tmp_path, content)
    with pytest.raises(DataError, match=message) as error:
        read_params(path)
    assert str(error.value).startswith(str(path))
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "change",
    [
        {"shape": {"0": 3}},
        {"shape": {"0": "4"}},
        {"shape": {"1": 4}},
        {"shape": 4},
        {"chunks": {}},
        {"chunks": {"0": array((2,)), "2": array((2,))}},
        {"chunks": {"0": array((2, 2))}},
        {"chunks": {"0": 1.0}},
    ],
)
def test_chunks_that_do_not_fit(tmp_path, change):
    chunked = {"__msgpack_chunked_array__": True, "shape": {"0": 4}, "chunks": {"0": array(), "1": array()}} | change
    with pytest.raises(DataError, match="params/cls: the chunks do not make up"):
        read_params(checkpoint(tmp_path, {"params": {"cls": chunked}}))


@pytest.mark.slow
def test_every_truncation_is_noticed(tmp_path):
    path = tmp_path / "checkpoint_7"
    for length in range(len(CHUNKED)):
        path.write_bytes(CHUNKED[:length])
        with pytest.raises(DataError, match="truncated" if length else "empty"):
            read_params(path)


def test_truncation_inside_the_skipped_state_is_noticed(tmp_path):
    with pytest.raises(DataError, match="truncated"):
        read_params(checkpoint(tmp_path, RELEASED.read_bytes()[:-30_000]))


@settings(max_examples=500, deadline=None)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(CHUNKED) - 1), st.integers(0, 2), st.binary(max_size=6)), min_size=1, max_size=8
    ),
    end=st.one_of(st.none(), st.integers(0, len(CHUNKED))),
)
def test_mutations_raise_nothing_but_data_errors(tmp_path_factory, edits, end):
    """Overwritten, inserted and deleted bytes anywhere, and cut tails."""
    content = bytearray(CHUNKED)
    for position, kind, data in edits:
        stop = position + (0 if kind == 1 else len(data))
        content[position:stop] = b"" if kind == 2 else data
    path = tmp_path_factory.getbasetemp() / "mutated"
    path.write_bytes(content[:end])
    try:
        read = read_params(path)
    except DataError:
        return
    assert all(value.dtype == np.float32 for value in read.values())


@settings(max_examples=300, deadline=None)
@given(header=st.integers(0, 40), data=st.binary(min_size=1, max_size=40))
def test_mutated_structure_raises_nothing_but_data_errors(tmp_path_factory, header, data):
    """As above, aimed at the bytes between the arrays, where a mutation changes the structure."""
    small = msgpack.packb({"params": {"cls": array(), "Transformer": {"a": array((), data=b"\0" * 4, code=3)}}})
    path = tmp_path_factory.getbasetemp() / "mutated"
    path.write_bytes(small[:header] + data + small[header + len(data) :])
    try:
        read_params(path)
    except DataError as error:
        assert "mutated: " in str(error)  # noqa: PT017


WRITE = """
import sys
import numpy as np
from pathlib import Path
from mbt_core.pretrained.flax import write_params

rng = np.random.default_rng(0)
shapes = {"cls": (1, 1, 768), "clsspectrogram": (1, 1, 768), "bottleneck": (1, 5, 768),
          "embedding/kernel": (2, 16, 16, 3, 768), "embedding_spectrogram/kernel": (16, 16, 3, 768),
          "Transformer/posembed_input/pos_embedding": (1, 3137, 768),
          "Transformer/posembed_input_spectrogram/pos_embedding": (1, 401, 768),
          "output_projection/kernel": (768, 527), "output_projection/bias": (527,)}
for stream in ("", "_spectrogram"):
    for i in range(12):
        block = f"Transformer/encoderblock_{i}{stream}"
        for part in ("query", "key", "value"):
            shapes[f"{block}/MultiHeadDotProductAttention_0/{part}/kernel"] = (768, 12, 64)
        shapes[f"{block}/MultiHeadDotProductAttention_0/out/kernel"] = (12, 64, 768)
        shapes[f"{block}/MlpBlock_0/Dense_0/kernel"] = (768, 3072)
        shapes[f"{block}/MlpBlock_0/Dense_1/kernel"] = (3072, 768)
flat = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
write_params(Path(sys.argv[1]), flat, momentum=flat, step=15900)
print(sum(float(value.sum(dtype=np.float64)) for value in flat.values()))
"""
READ = """
import re, sys, time
import numpy as np
from pathlib import Path
from mbt_core.pretrained.flax import read_params

def peak():  # not ru_maxrss: a child starts with its parent's
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

imports = peak()
start = time.perf_counter()
flat = read_params(Path(sys.argv[1]))
seconds = time.perf_counter() - start
print(seconds, peak(), peak() - imports, sum(value.nbytes for value in flat.values()))
print(sum(float(flat[name].sum(dtype=np.float64)) for name in flat))
"""


@pytest.mark.slow
def test_released_size_within_a_minute_and_four_gigabytes(tmp_path):
    """A two-stream ViT-B with momentum, 1.4 GB; memory is the peak of a process that only reads."""
    path = tmp_path / "checkpoint_15900"
    try:
        written = subprocess.run([sys.executable, "-c", WRITE, path], check=True, capture_output=True, text=True)
        size = path.stat().st_size
        read = subprocess.run([sys.executable, "-c", READ, path], check=True, capture_output=True, text=True)
    finally:
        path.unlink(missing_ok=True)
    figures, total = read.stdout.splitlines()
    seconds, peak_kib, grown_kib, parameter_bytes = (float(value) for value in figures.split())
    print(f"{size / 1e9:.2f} GB read in {seconds:.1f} s, peak {peak_kib / 2**20:.2f} GiB")
    assert size > 1.3e9
    assert float(total) == pytest.approx(float(written.stdout), rel=1e-9)
    assert seconds < 60
    assert peak_kib * 1024 < 4 * 2**30
    assert grown_kib * 1024 < parameter_bytes + 300 * 2**20, "more than the parameters was held"

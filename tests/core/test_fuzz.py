"""Readers of what others wrote: whatever a file holds, they read it or raise an `MBTError` of one clear message."""

import json
import random
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mbt_core as mbt
from mbt_core.config import DataConfig, HeadConfig, TrainConfig
from mbt_core.config.recipes import assemble
from mbt_core.data.manifest import Manifest
from mbt_core.data.missing import check_missing
from mbt_core.evaluate.answers import Answers
from mbt_core.io.files import read_json, read_safetensors
from mbt_core.model import MBT
from mbt_core.pretrained.sources import open_source
from mbt_core.training.folder import RunFolder
from mbt_core.training.optimizer import make_optimizer
from mbt_core.training.state import FILE, Progress, load_state, optimizer_tensors, read_progress, save_state
from toy.models import build_tiny, inputs_for

pytestmark = pytest.mark.usefixtures("toys")
FEW, MANY = 40, 2000
SHARED = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


def amounts(test):
    """The test with a few examples, and as a slow one with many."""
    return pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])(test)


def fuzz(strategy, examples, check):
    """Calls `check` with examples of the strategy; what it raises must be an `MBTError`."""

    @settings(max_examples=examples, **SHARED)
    @given(strategy)
    def run(example):
        with suppress(mbt.MBTError):
            check(example)

    run()


def mutated(original):
    """Bytes like `original`: cut off, some changed, some put in or left out."""

    def change(seed):
        rng, data = random.Random(seed), bytearray(original)
        for _ in range(rng.choice([1, 1, 2, 8])):
            at = rng.randrange(max(1, min(len(data), rng.choice([80, 400, len(data) or 1]))))
            match rng.randrange(5):
                case 0 if data:
                    data[at % len(data)] ^= 1 << rng.randrange(8)
                case 1:
                    data[at:at] = rng.choice([b"\0", b"\xff", b'"', b"\n", b"[", b"{", b"&a ", b"*a", b"9" * 400, b";"])
                case 2:
                    del data[at : at + rng.randrange(1, 9)]
                case 3:
                    data[at : at + 4] = rng.randbytes(4)
                case 4:
                    del data[max(1, at) :]
        return bytes(data)

    return st.integers(0, 2**32).map(change)


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
    st.sampled_from(
        ["auto", "rgb", "signal", "sgd", "bottleneck", "alpha", "none", "1e400", ".nan", "../x", "~", 0, 1, 2]
    ),
)
KNOWN = (
    "modalities model train data evaluate kind rgb alpha beta size frames backbone dim depth heads fusion layer "
    "options strategy bottlenecks head classes tasks task steps lr betas batch_size loggers freeze modality_dropout "
    "lr_factors pretrained path root folds fraction max_missing views workers cache joint"
)
KEYS = st.sampled_from(KNOWN.split()) | st.one_of(st.text(max_size=5), st.integers(), st.booleans(), st.none())
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4))
TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(["a", ": ", "- ", "\n", "  ", "&x ", "*x", "!!python/name:os.system ", "!!timestamp ", "!!int ",
                         "!!binary ", "!!set ", "!!omap ", "!!float ", "<<: ", "? ", "[", "]", "{", "}", "|", ">", "'",
                         '"', "#", "%YAML 9.9\n", "---\n", "...", "1:99", "2001-13-41", "0x", "train", "model"]),
        max_size=14,
    ).map("".join),
)  # fmt: skip


@amounts
def test_configurations(tmp_path, examples):
    recipe = tmp_path / "recipe.yaml"
    good = (Path(mbt.__file__).parent.parent / "plugins" / "mbt_benchmarks" / "recipes").glob("*.yaml")
    texts = [path.read_bytes() for path in sorted(good)][:1] or [b"modalities: {alpha: {}}\ntrain: {steps: 3}\n"]
    documents = st.one_of(
        TREES.map(lambda tree: yaml.safe_dump(tree).encode()),
        st.dictionaries(KEYS, TREES, max_size=4).map(lambda tree: yaml.safe_dump(tree).encode()),
        TEXTS.map(lambda text: text.encode(errors="replace")),
        *map(mutated, texts),
    )

    def check(content):
        recipe.write_bytes(content)
        assemble("alpha", str(recipe))
        assemble(None, str(recipe))[0].mbt_config()

    fuzz(documents, examples, check)


@amounts
def test_settings_on_the_command_line(examples):
    names = st.sampled_from(["modalities.alpha", "model", "train", "data", "evaluate", "modalities"])
    paths = st.lists(KEYS.map(str), max_size=3).map(".".join)
    values = TREES.map(lambda tree: yaml.safe_dump(tree, default_flow_style=True)) | TEXTS
    assignments = st.tuples(names, paths, values).map(lambda parts: f"{parts[0]}.{parts[1]}={parts[2]}") | st.text()
    fuzz(st.lists(assignments, min_size=1, max_size=2), examples, lambda sets: assemble("alpha", "small", None, sets))


ROWS = [{"id": f"c{i}", "path": f"{i}.mp4", "start": str(i / 2), "end": str(i + 2), "label": "ab"[i % 2],
         "split": ("train", "val", "test")[i % 3]} for i in range(9)]  # fmt: skip


def manifest_in(suffix):
    if suffix == ".parquet":
        buffer = pa.BufferOutputStream()
        pa.parquet.write_table(pa.Table.from_pylist(ROWS), buffer)
        return buffer.getvalue().to_pybytes()
    if suffix == ".jsonl":
        return b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
    return "\n".join([",".join(ROWS[0]), *(",".join(row.values()) for row in ROWS)]).encode() + b"\n"


@amounts
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_manifests(tmp_path, suffix, examples):
    path = tmp_path / f"m{suffix}"
    cells = st.text(max_size=6) | st.sampled_from(
        ["../x", "/etc/passwd", "a;b", "1e999", "-1", "nan", "\0", "c0", "train"]
    )
    tables = st.lists(st.lists(cells, max_size=7), max_size=5).map(
        lambda rows: "\n".join(",".join(row) for row in [["id", "path", "label", "split", "start"], *rows])
    )
    objects = st.lists(
        st.dictionaries(KEYS.map(str) | st.sampled_from(list(ROWS[0])), TREES, max_size=5), max_size=4
    ).map(lambda rows: "\n".join(json.dumps(row, default=str) for row in rows))
    contents = mutated(manifest_in(suffix)) | (tables if suffix == ".csv" else objects).map(
        lambda text: text.encode(errors="replace")
    )

    def check(content):
        path.write_bytes(content)
        for config in (DataConfig(), DataConfig(confine=True, group="label")):
            manifest = Manifest.read(path, {"rgb": "frames", "words": "text"} if b"words" in content else
                                     {"rgb": "frames"}, config)  # fmt: skip
            for index in range(len(manifest)):
                row = manifest.row(index)
                assert not config.confine or all(Path(file).is_relative_to(tmp_path) for file in row.files())
            check_missing(manifest, next(iter(manifest.splits)), 1.0)

    fuzz(contents, examples, check)


@pytest.fixture(scope="module")
def saved(toys, tmp_path_factory):
    """A folder with a saved model and a state."""
    folder = tmp_path_factory.mktemp("saved")
    model = build_tiny(count=2)
    optimizer = make_optimizer(model, TrainConfig(optimizer="adamw"), torch.device("cpu"))
    model(inputs_for(model, seed=0)).logits.sum().backward()
    optimizer.step()
    model.save_pretrained(folder)
    save_state(folder, model.state_dict(), optimizer_tensors(model, optimizer), Progress(3, results={"top1": 0.5}))
    return folder


@amounts
def test_checkpoints(saved, tmp_path, examples):
    """What was changed anywhere is an error: never other weights, nor other numbers."""
    weights, state = read_safetensors(saved / "model.safetensors"), load_state(saved)
    config = (saved / "config.json").read_bytes()

    def same(one, other):
        return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)

    def checked(content):  # a file without a checksum is taken as it is
        return b'"crc32":' in content

    def check_model(content):
        (tmp_path / "model.safetensors").write_bytes(content)
        found = read_safetensors(tmp_path / "model.safetensors")
        assert same(found, weights) or not checked(content)

    def check_progress(content):
        (tmp_path / FILE).write_bytes(content)
        assert read_progress(tmp_path) in (None, state[2]) or not checked(content)

    def check_state(content):
        (tmp_path / FILE).write_bytes(content)
        model, buffers, progress = load_state(tmp_path)
        whole = same(model, state[0]) and same(buffers, state[1]) and progress == state[2]
        assert whole or not checked(content)

    def check_config(content):
        (tmp_path / "config.json").write_bytes(content)
        (tmp_path / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
        MBT.from_pretrained(tmp_path)

    fuzz(mutated((saved / "model.safetensors").read_bytes()), examples, check_model)
    fuzz(mutated((saved / FILE).read_bytes()), examples, check_state)
    fuzz(mutated((saved / FILE).read_bytes()), examples, check_progress)
    fuzz(mutated(config), examples, check_config)


@amounts
def test_run_folders_and_json(saved, tmp_path, examples):
    run = b"modalities: {alpha: {}}\nmodel: {head: {classes: 3}}\ntrain: {steps: 3, lr: 0.1}\n"

    def check(content):
        (tmp_path / "config.yaml").write_bytes(content)
        (tmp_path / "any.json").write_bytes(content)
        try:
            read_json(tmp_path / "any.json")
        except mbt.DataError:
            RunFolder(tmp_path).experiment()

    fuzz(mutated(run) | mutated((saved / "config.json").read_bytes()), examples, check)


@amounts
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224.npz", "vit_tiny_patch16_224.pth", "checkpoint_1"])
def test_weights_to_start_from(tmp_path, name, examples):
    path = tmp_path / name
    if name.endswith("npz"):
        np.savez(
            path, **{"cls": np.zeros((1, 1, 8), np.float32), "embedding/kernel": np.zeros((4, 4, 3, 8), np.float32)}
        )
    elif name.endswith("pth"):
        torch.save({"cls_token": torch.zeros(1, 1, 8), "patch_embed.proj.weight": torch.zeros(8, 3, 4, 4)}, path)
    else:
        from mbt_core.pretrained.flax import write_params

        write_params(
            path, {"cls": np.zeros((1, 1, 8), np.float32), "embedding/kernel": np.zeros((4, 4, 3, 8), np.float32)}
        )
    original = path.read_bytes()

    def check(content):
        path.write_bytes(content)
        open_source(str(path), "vit_tiny_patch16_224")

    fuzz(mutated(original), examples, check)


@amounts
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_answers_to_go_on_with(tmp_path, suffix, examples):
    path, head = tmp_path / f"a{suffix}", HeadConfig(classes=2)
    lines = {".csv": "file,start,end,modalities,error,label_1,score_1\na.mp4,,,rgb,,x,0.5\nb.mp4,0.5,1,rgb,,y,1\n",
             ".jsonl": '{"file": "a", "modalities": ["x"], "top": []}\n{"file": "b", "error": "no"}\n'}  # fmt: skip

    def check(content):
        path.write_bytes(content)
        with Answers(path, head, 1, resume=True):
            pass

    fuzz(mutated(lines[suffix].encode()) | st.binary(max_size=40), examples, check)

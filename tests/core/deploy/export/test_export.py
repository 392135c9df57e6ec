"""Exported files compute what the model does, for every strategy and pool, any subset and batch size, and say what
they are."""

import json
import zipfile

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import mbt_core.deploy.export.files as files
from mbt_core import ConfigError, MBTError, registry
from mbt_core.deploy.export import export
from mbt_core.deploy.export.graph import Graph
from toy.models import POOLS, STRATEGIES, build_tiny, inputs_for

pytestmark = pytest.mark.usefixtures("toys")


def build(*args, **over):
    return build_tiny(*args, **over).float()


def floats(inputs):
    return {n: (g[0].float(), g[1]) if isinstance(g, tuple) else g.float() for n, g in inputs.items()}


def run_onnx(path, inputs):
    """Outputs by name, fed as the metadata beside the file say."""
    metadata = json.loads(path.with_name(f"{path.name}.json").read_text())
    given = {}
    for port in metadata["inputs"]:
        value = inputs[port["modality"]]
        x = value[port["key"] == "mask"] if isinstance(value, tuple) else value
        given[port["name"]] = x.numpy().astype(port["dtype"])
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return dict(zip([o["name"] for o in metadata["outputs"]], session.run(None, given), strict=True))


def check(path, model, names, batch):
    """The file against the model itself, on inputs that the export has not seen."""
    inputs = {name: x for name, x in floats(inputs_for(model, batch, seed=7)).items() if name in names}
    with torch.no_grad():
        expected = model(inputs)
    found = run_onnx(path, inputs)
    wanted = {"logits": expected.logits} | {f"logits[{n}]": x for n, x in expected.modality_logits.items()}
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        np.testing.assert_allclose(found[name], x.numpy(), rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_onnx_with_padding_and_a_subset(tmp_path):
    """gamma is padded: its length is as free as the batch. Its file goes with the model."""
    (tmp_path / "words.txt").write_text("one two")
    words = {"gamma": {"words": str(tmp_path / "words.txt")}}
    model = build("bottleneck", 3, backbone={"depth": 2}, modalities=words)
    (tmp_path / "out").mkdir()
    done = export(model, tmp_path / "out/m.onnx", "onnx", ["alpha", "gamma"])
    assert done.difference < 1e-4
    for batch in (1, 2, 4):  # lengths up to 4 of at most 6
        check(done.path, model, {"alpha", "gamma"}, batch)
    named = {port["name"]: (port["dtype"], port["shape"]) for port in done.metadata["inputs"]}
    assert named == {
        "gamma": ("float32", ["batch", "gamma_length", 3]),
        "gamma.mask": ("bool", ["batch", "gamma_length"]),
        "alpha": ("float32", ["batch", 2, 13]),
    }
    proto = onnx.load(done.path)
    assert [i.name for i in proto.graph.input] == list(named)
    inside = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(inside["mbt"]) == done.metadata == json.loads((tmp_path / "out/m.onnx.json").read_text())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["files", "m.onnx", "m.onnx.json"]
    assert (tmp_path / "out" / done.metadata["model"]["modalities"]["gamma"]["words"]).read_text() == "one two"


@pytest.mark.slow
def test_torch_export_holds_no_pickle(tmp_path):
    model = build("bottleneck", 2, backbone={"depth": 2}, head={"classes": None, "tasks": {"verb": 3, "noun": 4}})
    model.classes = {"verb": ["cut", "mix", "pour"]}
    done = export(model, tmp_path / "m.pt2", "torch-export")
    assert [o["name"] for o in done.metadata["outputs"]] == [
        f"{task}/logits{source}" for source in ("", "[gamma]", "[alpha]") for task in ("verb", "noun")
    ]
    assert done.metadata["tasks"]["verb"] == {"kind": "single", "scores": "softmax", "classes": ["cut", "mix", "pour"]}
    assert done.metadata["tasks"]["noun"]["classes"] == ["class_0", "class_1", "class_2", "class_3"]
    extra = {"mbt": ""}
    module = torch.export.load(str(done.path), extra_files=extra).module()
    assert json.loads(extra["mbt"]) == done.metadata
    inputs = floats(inputs_for(model, 3, seed=7))
    found = module(inputs["gamma"][0], inputs["gamma"][1], inputs["alpha"])
    torch.testing.assert_close(found[1], model(inputs).logits["noun"], rtol=1e-4, atol=1e-4)
    with zipfile.ZipFile(done.path) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            assert not content.startswith((b"\x80", b"PK")), name  # a pickle, or torch.save's archive with one
            if name.endswith("_config.json"):
                assert b'"use_pickle": true' not in content


def test_a_file_that_differs_is_not_kept(tmp_path, monkeypatch):
    model = build("late", 1, backbone={"depth": 1})
    right = files._run_torch

    def wrong(path):
        run = right(path)
        return lambda tensors: [x + 2e-4 * x.abs().max().clamp(min=1) for x in run(tensors)]

    monkeypatch.setattr(files, "_run_torch", wrong)
    with pytest.raises(MBTError, match=r"does not compute what the model does: logits differs by .*\. Nothing was"):
        export(model, tmp_path / "m.pt2", "torch-export")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_falls_back_or_is_said(tmp_path, monkeypatch):
    class Awkward(torch.nn.Module):
        def forward(self, x):
            return x * float(x.mean() > 0) + x

    model = build("late", 2, backbone={"depth": 1}, fusion={"layer": 0})
    monkeypatch.setattr(type(model.modalities["alpha"]), "preprocessor", lambda self: Awkward())
    done = export(model, tmp_path / "m.pt2", "torch-export", ["alpha"])
    assert done.note.startswith("the model cannot be exported by torch.export")
    assert done.metadata["inputs"][0]["preprocessed"]
    monkeypatch.setattr(type(model.fusion), "layer", lambda self, *args: 1 / 0)
    with pytest.raises(MBTError, match=r"cannot be exported by torch\.export: .*division by zero"):
        export(model, tmp_path / "n.pt2", "torch-export", preprocessed=True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("m.pt2", {"to": "onnx"}, r"--out .*m\.pt2: expected a file that ends in \.onnx"),
        ("no/m.onnx", {"to": "onnx"}, "there is no folder .*no"),
        (
            "m.onnx",
            {"to": "onnx", "modalities": ["alfa"]},
            "--modalities: unknown modality 'alfa'. Did you mean 'alpha'",
        ),
        ("m.onnx", {"to": "onnx", "modalities": []}, "--modalities: expected at least one of"),
    ],
)
def test_usage(tmp_path, name, options, message):
    with pytest.raises(ConfigError, match=message):
        export(build("late", 2), tmp_path / name, **options)


def test_without_the_packages(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"ONNX needs the package onnxruntime: pip install 'mbt-fusion\[export\]'"):
        export(build("late", 1), tmp_path / "m.onnx", "onnx")


def test_check_batches_are_varied():
    graph = Graph(build("late", 3))
    x, mask, *_ = graph.batch(5, 0.5)
    assert (x.shape, mask.shape) == ((5, 3, 3), (5, 3))
    assert mask[:, 0].all()
    assert len(set(mask.sum(1).tolist())) > 1
    assert x.std() > 0.5


def test_every_registered_strategy_is_covered():
    assert set(STRATEGIES) == set(registry().fusions)


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_and_pool(tmp_path, strategy, pool):
    model = build(strategy, 2, pool, backbone={"depth": 2})
    done = export(model, tmp_path / "m.onnx", "onnx")
    for batch in (1, 4):
        check(done.path, model, set(model.modalities), batch)
    assert export(model, tmp_path / "m.pt2", "torch-export").difference < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("over", [
    {"shared_encoder": True},
    {"fusion": {"eval_bottlenecks": False}},
    {"backbone": {"qk_norm": True, "registers": 2, "layer_scale": 0.1, "pre_norm": True}},
    {"head": {"shared": False, "representation": 6}},
    {"modalities": {"alpha": {"stem": "conv"}, "beta": {"stem": "conv"}}},
], ids=str)  # fmt: skip
def test_options_of_the_model(tmp_path, over):
    model = build("bottleneck", 3, **over)
    done = export(model, tmp_path / "m.onnx", "onnx")
    check(done.path, model, set(model.modalities), 3)

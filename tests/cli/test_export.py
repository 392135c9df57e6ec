"""`mbt convert onnx` and `torch-export`: what they write and refuse."""

import json

import pytest
import torch

from small import mbt


@pytest.mark.slow
def test_torch_export_of_one_modality(run, tmp_path):
    done = mbt("convert", "torch-export", run.path, "--out", "m.pt2", "--modalities", "audio", "--preprocessed")
    assert done.code == 0, done.err
    assert done.out.startswith("m.pt2: audio float32 ['batch', 1, ")
    assert "-> kind/logits, sum/logits, kind/logits[audio], sum/logits[audio]; largest difference" in done.out
    about = json.loads((tmp_path / "m.pt2.json").read_text())
    [port] = about["inputs"]
    x = torch.randn(4, *port["shape"][1:])
    with torch.no_grad():
        found = torch.export.load("m.pt2").module()(x)
        expected = run.model({"audio": x}).logits
    torch.testing.assert_close(found[1], expected["sum"], rtol=1e-4, atol=1e-4)
    assert about["tasks"]["sum"] == {"kind": "single", "scores": "softmax", "classes": ["0", "1", "2"]}
    assert about["views"] == run.experiment.evaluate.views
    assert port["normalisation"].startswith("(ln(mel power + 1e-6) - mean) / std")


def test_usage(run, tmp_path):
    for arguments, message in [
        (("onnx", run.path, "--out", "m.pt2"), "--out m.pt2: expected a file that ends in .onnx"),
        (("torch-export", run.path, "--out", "a/m.pt2"), "--out a/m.pt2: there is no folder a"),
        (("onnx", run.path, "--out", "m.onnx", "-m", "audoi"), "--modalities: unknown modality 'audoi'. Did you mean"),
        (("onnx", "nowhere", "--out", "m.onnx"), "nowhere: no such run folder"),
    ]:
        done = mbt("convert", *arguments)
        assert done.code == 2
        assert done.err.startswith(f"Error: {message}")
    assert not list(tmp_path.iterdir())

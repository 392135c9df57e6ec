"""The start from an image ViT by the reference's rules, against its own numbers and in other geometry."""

import json

import numpy as np
import pytest

from mbt_core.pretrained import load_scenic_params
from mbt_core.pretrained.sources import open_source
from mbt_core.pretrained.start import fill
from parity.geometry import BOTH, held
from parity.goldens import DEV, OURS, arrays_of, assert_near, golden
from parity.reference import param_shapes, random_params
from parity.reference_init import initialised

INIT = DEV / "init"
SPECTROGRAM = "Transformer/posembed_input_spectrogram/pos_embedding"


def stripped(path):
    return {name.removeprefix("params/"): array for name, array in arrays_of(path).items()}


def start(params, config, shapes, source):
    """Our model, made from `params`, after a start by the reference's rules, and the report."""
    model = load_scenic_params(params, config, shapes)
    model.config.fusion.bottleneck_init = "positions"
    report = fill(model, dict.fromkeys(OURS.values(), open_source(str(source), "").streams[""]), reference=True)
    return model, report


def same(model, expected, config, shapes):
    expected = load_scenic_params(expected, config, shapes).state_dict()
    for key, value in model.state_dict().items():
        assert_near(value, expected[key].numpy(), 1e-6)


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("source", ["source_vit.npz", "source_vit_augreg.npz"])
def test_the_reference_s_targets(name, source):
    given, target = golden(name), stripped(INIT / f"target_{name}_central.npz")
    # config a's file leaves out the blocks: they are those of config b's
    blocks = {path: a for path, a in stripped(INIT / "target_b_central.npz").items() if "encoderblock" in path}
    model, report = start(given.params, given.config, given.shapes, INIT / source)
    same(model, {**given.params, **blocks, **target}, given.config, given.shapes)
    fresh = {s.part for s in report.starts if not s.source}
    assert fresh == {"head.classifiers._shared"} | ({"streams.audio.cls_token"} if name == "a" else set())
    untouched = json.loads((INIT / f"target_{name}_central.json").read_text())["untouched_params"]
    assert len(untouched) == len(fresh) + 1  # the classifier has a kernel and a bias


@pytest.mark.parametrize("name", ["a", "b"])
def test_plain_rules_are_the_reference_s(name):
    given, target = golden(name), stripped(INIT / f"target_{name}_central.npz")
    source = arrays_of(INIT / "source_vit.npz")
    found = initialised(given.params, source, given.config, {"spectrogram": (2, 3), "frames": (2, 12)})
    for path, array in target.items():
        np.testing.assert_allclose(found[path], array, rtol=0, atol=1e-7, err_msg=path)


@pytest.mark.parametrize("method", ["average_frame_initializer", "central_frame_initializer"])
@pytest.mark.parametrize(("name", "side"), [("a", 2), ("b", 2), ("a", 4), ("b", 3)])
def test_other_geometry(tmp_path, name, side, method):
    """With a source grid of 3 x 3 and its class token there are as many positions as tokens of sound without one."""
    config, shapes, params, _ = held(name)
    config = config | {"temporal_encoding_config": {"method": "3d_conv", "kernel_init_method": method}}
    source = random_params(vit_shapes(config, side), np.random.default_rng(side))
    np.savez(tmp_path / "vit.npz", **source)
    model, _ = start(params, config, shapes, tmp_path / "vit.npz")
    expected = initialised(params, source, config, {"spectrogram": (5, 2), "frames": (2, 12)})
    assert (expected[SPECTROGRAM].shape == (1, side**2 + 1, 40)) == (name == "b" and side == 3)
    same(model, expected, config, shapes)


def vit_shapes(config, side):
    """Parameters of an image ViT of the same width and depth, with a class token."""
    one = config | {"modality_fusion": ["spectrogram"], "classifier": "token", "use_bottleneck": False}
    one = one | {"share_encoder": True}
    renamed = {path.replace("_spectrogram", ""): shape for path, shape in param_shapes(one, BOTH).items()}
    return renamed | {"Transformer/posembed_input/pos_embedding": (1, side**2 + 1, config["hidden_size"])}

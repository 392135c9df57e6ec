"""The plain forward pass against the goldens, then our model against it where no goldens are at hand."""

import pytest
import torch

from mbt_core.pretrained import load_scenic_params
from parity.geometry import HELD, held
from parity.goldens import CONFIGS, DEV, OURS, arrays_of, assert_near, concatenated, golden, to_inputs
from parity.reference import Reference, param_shapes


def same(model, config, inputs, expected, train):
    model.train(train)
    prediction = model(to_inputs(inputs))
    order = config["modality_fusion"]
    assert_near(concatenated(prediction.tokens, order), expected["tokens"])
    if isinstance(expected["logits"], dict):
        for name in order:
            assert_near(prediction.modality_logits[OURS[name]], expected["logits"][name])
    else:
        assert_near(prediction.logits, expected["logits"])
    if isinstance(expected["pre_logits"], dict):
        for name in order:
            assert_near(prediction.modality_embeddings[OURS[name]], expected["pre_logits"][name])
    else:
        assert_near(prediction.embedding, expected["pre_logits"])


@pytest.mark.parametrize("name", CONFIGS)
def test_plain_forward_pass_is_the_reference(name):
    given = golden(name)
    shapes = param_shapes(given.config, given.shapes)
    assert shapes == {path: array.shape for path, array in given.params.items()}
    reference, inputs = Reference(given.params, given.config), {n: given.arrays[n] for n in given.shapes}
    found, trained = reference(inputs), reference(inputs, train=True)
    assert_near(found["tokens"], given.arrays["tokens"], 6e-6)
    assert_near(found["logits"], given.arrays["logits"], 6e-6)
    if isinstance(trained["logits"], dict):
        for modality, logits in trained["logits"].items():
            assert_near(logits, given.arrays[f"train_logits/{modality}"], 6e-6)
            assert_near(found["pre_logits"][modality], given.arrays[f"pre_logits/{modality}"], 6e-6)
    else:
        assert_near(trained["logits"], given.arrays["train_logits"], 6e-6)
        assert_near(found["pre_logits"], given.arrays["pre_logits"], 6e-6)


def test_plain_forward_pass_has_the_reference_s_blocks():
    given = golden("a")
    blocks = Reference(given.params, given.config)({n: given.arrays[n] for n in given.shapes})["blocks"]
    expected = arrays_of(DEV / "a_intermediates.npz")
    for (layer, name), x in blocks.items():
        suffix = "" if name == "rgb" else "_spectrogram"
        assert_near(x, expected[f"Transformer/encoderblock_{layer}{suffix}"])


@pytest.mark.parametrize("name", HELD)
def test_our_model_is_the_plain_forward_pass(name):
    config, shapes, params, inputs = held(name)
    model, reference = load_scenic_params(params, config, shapes), Reference(params, config)
    with torch.no_grad():
        same(model, config, inputs, reference(inputs), train=False)
        same(model, config, inputs, reference(inputs, train=True), train=True)


def test_small_variance_shows_the_epsilon():
    config, shapes, params, inputs = held("a")
    small = {
        path: array * 2**-10
        if path.startswith(("cls", "bottleneck", "embedding")) or "pos_embedding" in path
        else array
        for path, array in params.items()
    }
    model = load_scenic_params(small, config, shapes).eval()
    with torch.no_grad():
        same(model, config, inputs, Reference(small, config)(inputs), train=False)

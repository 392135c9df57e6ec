"""The plain forward pass against the goldens, then our model against it where no goldens are at hand.

The second geometry (width 40, 5 heads, 5 layers, patches 8 x 12 x 3) has another factor on every axis, so that a swap
of any two shows.
"""

import numpy as np
import pytest
import torch
from parity.goldens import CONFIGS, DEV, OURS, arrays_of, assert_near, concatenated, golden, to_inputs
from parity.reference import Reference, param_shapes, random_params

from mbt_core.pretrained import load_scenic_params

BOTH = {"rgb": [2, 6, 24, 24, 3], "spectrogram": [2, 40, 24, 3]}
SPECTROGRAM = {"spectrogram": BOTH["spectrogram"]}
LONG = {**BOTH, "rgb": [2, 10, 24, 24, 3]}
ODD = {"rgb": [2, 8, 27, 29, 3], "spectrogram": [2, 45, 31, 3]}
SAMPLED = {"temporal_encoding_config": {"method": "temporal_sampling", "n_sampled_frames": 3}}
HELD = {
    "a": ({}, BOTH),
    "b": ({"classifier": "gap"}, BOTH),
    "c": ({"share_encoder": True}, BOTH),
    "d": ({"fusion_layer": 0}, BOTH),
    "e": ({"fusion_layer": 5}, BOTH),
    "e_gap": ({"fusion_layer": 5, "classifier": "gap"}, BOTH),
    "f": ({"use_bottleneck": False}, BOTH),
    "f_early": ({"use_bottleneck": False, "fusion_layer": 0}, BOTH),
    "f_test_without": ({"use_bottleneck": False, "test_with_bottlenecks": False}, BOTH),
    "g": ({"use_bottleneck": False, "share_encoder": True}, BOTH),
    "g_rgbfirst": ({"use_bottleneck": False, "share_encoder": True, "modality_fusion": ["rgb", "spectrogram"]}, BOTH),
    "h": ({"use_bottleneck": False, "modality_fusion": ["rgb"]}, {"rgb": BOTH["rgb"]}),
    "i": ({"use_bottleneck": False, "modality_fusion": ["spectrogram"]}, SPECTROGRAM),
    "i_bn": ({"modality_fusion": ["spectrogram"]}, SPECTROGRAM),
    "i_shared": ({"share_encoder": True, "modality_fusion": ["spectrogram"]}, SPECTROGRAM),
    "i_vanilla_shared": (
        {"use_bottleneck": False, "share_encoder": True, "modality_fusion": ["spectrogram"]},
        SPECTROGRAM,
    ),
    "j": ({**SAMPLED, "classifier": "gap"}, LONG),
    "j_token": (SAMPLED, LONG),
    "j_uneven": ({**SAMPLED, "temporal_encoding_config": {"method": "temporal_sampling", "n_sampled_frames": 2}},
                 {**BOTH, "rgb": [2, 8, 27, 29, 3]}),
    "k": ({"test_with_bottlenecks": False}, BOTH),
    "l": ({"representation_size": 24}, BOTH),
    "odd": ({}, ODD),
    "a_rgbfirst": ({"modality_fusion": ["rgb", "spectrogram"]}, BOTH),
}


def held(name):
    """Configuration, shapes, random parameters and inputs in the second geometry."""
    changes, shapes = HELD[name]
    config = {
        **{"hidden_size": 40, "num_heads": 5, "mlp_dim": 72, "num_layers": 5, "num_classes": 9, "n_bottlenecks": 3},
        **{"patches": {"size": [8, 12, 3]}, "modality_fusion": ["spectrogram", "rgb"], "fusion_layer": 2},
        **{"use_bottleneck": True, "test_with_bottlenecks": True, "share_encoder": False, "classifier": "token"},
        **{"representation_size": None, "dropout_rate": 0.0, "attention_dropout_rate": 0.0},
        **{"stochastic_droplayer_rate": 0.0, "temporal_encoding_config": {"method": "3d_conv"}},
        **changes,
    }
    rng = np.random.default_rng(sorted(HELD).index(name))
    params = random_params(param_shapes(config, shapes), rng)
    inputs = {n: (np.round(rng.normal(size=s) * 64) / 64).astype(np.float32) for n, s in shapes.items()}
    return config, shapes, params, inputs


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
        path: array * 2**-10 if path.startswith(("cls", "bottleneck", "embedding")) or "pos_embedding" in path else array
        for path, array in params.items()
    }
    model = load_scenic_params(small, config, shapes).eval()
    with torch.no_grad():
        same(model, config, inputs, Reference(small, config)(inputs), train=False)

"""A second geometry (width 40, 5 heads, 5 layers, patches 8 x 12 x 3) with random parameters, for all configurations.

It has another factor on every axis than the goldens', so that a swap of any two shows.
"""

import numpy as np

from parity.reference import param_shapes, random_params

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
    "j_uneven": (
        {**SAMPLED, "temporal_encoding_config": {"method": "temporal_sampling", "n_sampled_frames": 2}},
        {**BOTH, "rgb": [2, 8, 27, 29, 3]},
    ),
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

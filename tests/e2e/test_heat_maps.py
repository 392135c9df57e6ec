"""Heat maps of a trained demo model lie on the moving shape and where the sound is.

Shapes: B clips, T frames, H, W picture, S spectrogram frames, F mel bins. ``pytest -m slow -s`` of this file prints the
table of docs/explaining.md.
"""

from dataclasses import replace
from math import log

import numpy as np
import pytest
import torch

from mbt_benchmarks import demo as demo_data
from mbt_core.analysis.explain.rollout import METHODS, trace_attention
from mbt_core.data.collate import Collate, Preprocess
from mbt_core.data.dataset import ClipDataset, Draw
from mbt_core.evaluate.predict import files_manifest

pytestmark = pytest.mark.slow
COUNT = 54
CLEAN = replace(
    demo_data.Nuisance(),
    **{"shape_luma": (1.0, 1.0), "background_luma": (0.0, 0.0), "tint": 0.0, "pixel_noise": 0.0},
    **{"signal_to_noise": (200.0, 200.0), "loudness": (-20.0, -20.0)},
)
"""The same shape, path and sound without anything else: white on black, in silence."""
QUIET = 2 * log(10)
"""20 dB, as a difference of log powers."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Inputs of test clips, as a function of a model, and of what is only the shape and the sound in them."""
    folder = tmp_path_factory.mktemp("clean")
    planned = [c for c in demo_data.plan_clips(2000, 400, 0) if c.split == "test"][:COUNT]
    for name, nuisance in (("real", demo_data.Nuisance()), ("clean", CLEAN)):
        (folder / name).mkdir()
        for c in planned:
            picture, sound = (np.random.default_rng((0, 2, c.index, number)) for number in (0, 1))
            frames = demo_data.render_frames(demo_data.SHAPES[c.shape], picture, nuisance)
            waveform = demo_data.render_sound(demo_data.SOUNDS[c.sound], sound, nuisance)
            demo_data._write_clip(str(folder / name / f"{c.id}.mp4"), frames, waveform)

    def read(run, name):
        modalities = run.model.modalities
        files = [(str(folder / name / f"{c.id}.mp4"), None, None) for c in planned]
        manifest = files_manifest(files, {n: m.reads for n, m in modalities.items()})
        data = ClipDataset(manifest, modalities, {}, config=run.experiment.data, seed=0, training=False)
        batch = Collate(modalities)([data[Draw(0, row)] for row in range(len(files))])
        return Preprocess(modalities)(batch)

    return read


@pytest.fixture(scope="module")
def on_target(demo_run, clips):
    """(method, modality) -> [B], the share of the relevance on the shape or sound; under "area", their size."""
    model, clean = demo_run.model.eval(), clips(demo_run, "clean")
    shape_BTHW = clean["rgb"].mean(1) > 0
    power_BSF = clean["audio"][:, 0] * model.modalities["audio"].config.std
    sound_BSF = power_BSF > power_BSF.amax((1, 2), keepdim=True) - QUIET
    found = {("area", "rgb"): share(shape_BTHW, torch.ones(shape_BTHW.shape))}
    found["area", "audio"] = share(sound_BSF, torch.ones(sound_BSF.shape))
    inputs = clips(demo_run, "real")
    for method in METHODS:
        _, relevance = trace_attention(model, inputs, method=method)
        for name, target in (("rgb", shape_BTHW), ("audio", sound_BSF)):
            grid, size = model.stream(name).grid, target.shape[1:]
            map_ = relevance.patches(name).reshape(COUNT, *grid)
            for axis, (patches, length) in enumerate(zip(grid, size, strict=True), start=1):
                map_ = map_.repeat_interleave(length // patches, axis)
            inside = target[tuple(slice(n) for n in map_.shape)]  # a remainder past the last patch is not seen
            found[method, name] = share(inside, map_)
    return found


def share(target, relevance):
    """[B]: of the relevance, what lies on the target."""
    return (relevance * target).flatten(1).sum(1) / relevance.flatten(1).sum(1)


def times(on_target, method, name):
    """How many times its share of the area the target's share of the relevance is."""
    return float((on_target[method, name] / on_target["area", name]).mean())


def test_heat_maps_lie_on_the_shape_and_on_the_sound(on_target):
    print()
    for method in METHODS:
        print(f"| `{method}` | {times(on_target, method, 'rgb'):.1f} | {times(on_target, method, 'audio'):.1f} |")
    assert times(on_target, "contributions", "rgb") > 2.1
    assert times(on_target, "contributions", "audio") > 1.6
    assert times(on_target, "rollout", "rgb") > 1.8
    assert times(on_target, "rollout", "audio") > 1.3
    # in nearly every clip, not just on average
    for name in ("rgb", "audio"):
        assert (on_target["contributions", name] > on_target["area", name]).double().mean() > 0.9


def test_a_pixel_of_the_shape_has_several_times_the_relevance_of_one_beside_it(on_target):
    area, mass = on_target["area", "rgb"].mean(), on_target["contributions", "rgb"].mean()
    ratio = float(mass / area / ((1 - mass) / (1 - area)))
    print(f"\na pixel on the shape: {ratio:.1f} times one beside it")
    assert ratio > 2.8

"""The plan of a transfer study, its geometry, and its verdict."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from mbt_core.errors import ConfigError
from mbt_core.sweep.grid import Flags, make_cells
from mbt_core.sweep.presets import preset
from mbt_core.sweep.transfer import effects, plan, t_quantile, verdict
from toy.sweeps import make_flags, result

pytestmark = pytest.mark.usefixtures("toys")


@pytest.fixture
def flags(tmp_path):
    return make_flags(tmp_path)


def write_vit(path, model="vit_tiny_patch16_224", depth=2):
    """timm's weights of a shallow model under a name that tells its heads."""
    from timm import create_model

    torch.manual_seed(0)
    state = create_model(model, depth=depth, img_size=32).state_dict()
    state |= {f"blocks.{n}.ls1.gamma": torch.full((192,), 0.1) for n in range(depth)}
    state |= {f"blocks.{n}.ls2.gamma": torch.full((192,), 0.1) for n in range(depth)}
    save_file(state, path)
    return str(path)


def test_every_start_gets_the_geometry_of_the_weights(flags, tmp_path):
    file = write_vit(tmp_path / "vit_tiny_patch16_224.some.safetensors")
    study = plan(flags, ["none", file], ["head", "all"], [0.5, 1])
    cells = make_cells(study.flags, study.axes, 3)
    assert len(cells) == 24
    backbones = [cell.experiment.model.backbone for cell in cells]
    assert all(b == backbones[0] for b in backbones)
    known = backbones[0]
    assert (known.dim, known.depth, known.heads, known.mlp, known.layer_scale) == (192, 2, 3, 768, None)
    assert {c.experiment.model.pretrained for c in cells} == {None, file}
    # fusion from layer 1 of 3 is from layer 1 of 2; the rate of blocks 24 times as wide is as much smaller
    assert {c.experiment.model.fusion.layer for c in cells} == {1}
    assert {(c.experiment.train.tune, c.experiment.train.lr) for c in cells} == {("head", 0.01), ("all", 0.000417)}
    assert {c.experiment.train.eval_every for c in cells} == {3}
    assert cells[-1].labels == {"init": "vit_tiny_patch16_224.some", "tune": "all", "fraction": "1"}
    assert "dim 192, depth 2" in study.notes[0]
    assert "0.000417" in study.notes[1]


def test_every_start_embeds_patches_as_the_weights_do(tmp_path):
    file = write_vit(tmp_path / "vit_tiny_patch16_224.safetensors")
    (tmp_path / "manifest.csv").write_text("id,rgb,label,split\n1,1.png,a,train\n2,2.png,b,train\n")
    flags = Flags("rgb", "small", str(tmp_path / "manifest.csv"), (), "cpu")
    assert flags.experiment().modalities["rgb"].stem == "auto"
    study = plan(flags, ["none", file], ["all"], [1])
    assert {cell.experiment.modalities["rgb"].stem for cell in make_cells(study.flags, study.axes, 1)} == {"patch"}
    for sets in (("model.backbone=vit_tiny_patch16_224",), (f"model.pretrained={file}",)):
        starts = preset("init", replace(flags, sets=sets).experiment())
        assert starts.points[0].overrides == {"model.pretrained": None, "modalities.rgb.stem": "patch"}


def test_what_the_flags_set_goes_before(tmp_path):
    file = write_vit(tmp_path / "vit_tiny_patch16_224.safetensors")
    flags = make_flags(tmp_path, "train.lr=0.05", "model.fusion.layer=0", "model.backbone.depth=1")
    study = plan(flags, ["none", file], ["fused"], [1])
    experiment = make_cells(study.flags, study.axes, 1)[1].experiment
    assert (experiment.train.lr, experiment.model.fusion.layer, experiment.model.backbone.depth) == (0.05, 0, 1)


def test_the_weights_fit_the_plan(flags, tmp_path):
    from mbt_core.pretrained import build_with_report

    file = write_vit(tmp_path / "vit_tiny_patch16_224.safetensors")
    study = plan(flags.over({"modalities.alpha.channels": 2}), ["none", file], ["all"], [1])
    for cell in make_cells(study.flags, study.axes, 1):
        config = cell.experiment.mbt_config().model_copy(deep=True)
        config.head.classes = 2
        _, report = build_with_report(config)
        assert (report.loaded > 0) == (cell.labels["init"] != "none")
    assert "LayerScale folded in" in str(report.starts)


def test_starts_of_different_models_are_refused(flags, tmp_path):
    one = write_vit(tmp_path / "vit_tiny_patch16_224.one.safetensors")
    other = write_vit(tmp_path / "vit_tiny_patch16_224.other.safetensors", depth=1)
    with pytest.raises(ConfigError, match=r"different models \(depth 2 and 1\)"):
        plan(flags, [one, other], ["all"], [1])


def test_a_file_that_hides_its_heads_has_one_for_each_64_numbers(flags, tmp_path):
    file = write_vit(tmp_path / "weights.safetensors")
    for init, label in ((file, "weights"), (f"vit_tiny_patch16_224@{file}", "vit_tiny_patch16_224")):
        study = plan(flags, ["none", init], ["all"], [1])
        assert study.axes[0].points[1].label == label
        assert make_cells(study.flags, study.axes, 1)[1].experiment.model.backbone.heads == 3


@pytest.mark.parametrize(
    ("inits", "tunes", "fractions", "message"),
    [
        (["none"], ["all"], [1], "at least two starts"),
        (["none", "x"], ["heads"], [1], "--tune heads: expected some of head, fused, all"),
        (["none", "x"], ["all"], [0, 1], "--fractions 0"),
        (["none", "./nowhere.safetensors"], ["all"], [1], "no such file"),
    ],
)
def test_wrong_values_are_refused(flags, inits, tunes, fractions, message):
    with pytest.raises(ConfigError, match=message):
        plan(flags, inits, tunes, fractions)


@pytest.mark.parametrize(("freedom", "value"), [(1, 12.706), (2, 4.303), (10, 2.228), (11, 2.201), (30, 2.042)])
def test_quantiles_of_students_t(freedom, value):
    assert t_quantile(freedom) == pytest.approx(value, abs=1e-3)


def cells_of(scores):
    """{(init, tune): scores by seed} at one share."""
    return [
        result({"init": init, "tune": tune, "fraction": "1"}, seed, score)
        for (init, tune), values in scores.items()
        for seed, score in enumerate(values)
    ]


def test_effects_are_paired_by_seed():
    found = effects(
        cells_of(
            {
                ("none", "head"): [0.5, 0.6, 0.7],
                ("none", "all"): [0.5, 0.6, None],
                ("vit", "head"): [0.6, 0.8, 0.8],
                ("vit", "all"): [0.5, 0.4, 0.9],
            }
        )
    )
    overall, head, whole = found
    assert (overall.condition, head.condition, whole.condition) == (None, ("head", "1"), ("all", "1"))
    assert head.differences == pytest.approx((0.1, 0.2, 0.1))
    assert whole.differences == pytest.approx((0.0, -0.2))
    assert overall.differences == pytest.approx((0.05, 0.0))
    # mean 2/15, deviation 1/(10 sqrt 3), t 4.303
    half = 4.303 / 30
    assert head.interval == pytest.approx((2 / 15 - half, 2 / 15 + half))
    assert head.word == "no clear difference"


def test_the_verdict_says_how_sure_it_is():
    sure = verdict(effects(cells_of({("none", "all"): [0.5, 0.6, 0.55], ("vit", "all"): [0.7, 0.81, 0.75]})), "top1")
    assert sure.startswith(
        "Starting from vit helps: top1 +0.203 (95 % interval +0.189 to +0.218) against a fresh start"
    )
    assert "Helps: tune all at share 1" in sure
    assert "over seeds" in sure
    worse = verdict(effects(cells_of({("none", "all"): [0.7, 0.8], ("vit", "all"): [0.5, 0.6]})), "top1")
    assert worse.startswith("Starting from vit hurts: top1 -0.200")
    open_ = verdict(effects(cells_of({("none", "all"): [0.5, 0.8], ("vit", "all"): [0.7, 0.6]})), "top1")
    assert open_.startswith("Whether starting from vit helps cannot be told: top1 +0.000")
    one = verdict(effects(cells_of({("none", "all"): [0.5], ("vit", "all"): [0.7]})), "top1")
    assert "The intervals" not in one
    assert "The intervals" in sure
    assert "One seed gives no uncertainty" in one
    assert verdict(effects(cells_of({("none", "all"): [None], ("vit", "all"): [0.7]})), "top1").startswith("No verdict")


def test_without_a_fresh_start_the_first_is_the_baseline():
    (overall, _) = effects(cells_of({("a", "all"): [0.5, 0.5], ("b", "all"): [0.7, 0.7]}))
    assert (overall.init, overall.baseline) == ("b", "a")
    assert math.isclose(overall.mean, 0.2)

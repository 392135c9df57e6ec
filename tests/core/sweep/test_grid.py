"""The grid: overrides, names of cells, and the commands that train them elsewhere."""

import shlex

import pytest

from mbt_core.errors import ConfigError
from mbt_core.sweep.grid import Flags, cell_name, make_cells, parse_over, short
from mbt_core.sweep.presets import PRESETS, preset
from toy.sweeps import layers, make_flags

pytestmark = pytest.mark.usefixtures("toys")


@pytest.fixture
def flags(tmp_path):
    return make_flags(tmp_path)


def points(name, flags):
    return {point.label: dict(point.overrides) for point in preset(name, flags.experiment()).points}


def test_values_are_yaml():
    axis = parse_over("modalities.alpha.patch=4,[8, 16],null,a b")
    assert axis.name == "modalities.alpha.patch"
    assert [(p.label, *p.overrides.values()) for p in axis.points] == [
        ("4", 4),
        ("[8, 16]", [8, 16]),
        ("null", None),
        ("a b", "a b"),
    ]


@pytest.mark.parametrize("text", ["model.fusion.layer", "=1,2", "a..b=1", "a=", "a=[1,2"])
def test_malformed_values_are_refused(text):
    with pytest.raises(ConfigError, match="--over"):
        parse_over(text)


def test_the_grid_is_every_combination_seed_by_seed(flags):
    axes = [parse_over("model.fusion.layer=0,3"), parse_over("train.lr=0.1,0.2")]
    cells = make_cells(flags, axes, 2)
    assert [c.name for c in cells[:5]] == [
        "model.fusion.layer=0,train.lr=0.1,seed=0",
        "model.fusion.layer=0,train.lr=0.2,seed=0",
        "model.fusion.layer=3,train.lr=0.1,seed=0",
        "model.fusion.layer=3,train.lr=0.2,seed=0",
        "model.fusion.layer=0,train.lr=0.1,seed=1",
    ]
    last = cells[-1].experiment
    assert (last.model.fusion.layer, last.train.lr, last.train.seed) == (3, 0.2, 1)
    assert cells[1].title == "fusion.layer 0, train.lr 0.2, seed 0"


def test_seeds_count_from_the_experiments(tmp_path):
    cells = layers(make_flags(tmp_path, "train.seed=7"), seeds=2)
    assert [(c.seed, c.experiment.train.seed) for c in cells] == [(7, 7), (7, 7), (8, 8), (8, 8)]


def test_names_do_not_depend_on_other_cells(flags):
    assert {c.name for c in layers(flags, 1, "0,3")} < {c.name for c in layers(flags, 3, "2,3,0")}


def test_a_name_is_a_file_name_and_tells_lossy_ones_apart():
    one, other = (cell_name({"k": value}) for value in ("a/b", "a b"))
    assert one.startswith("k=a_b-")
    assert other.startswith("k=a_b-")
    assert one != other
    assert len(cell_name({"k": "x" * 999})) < 250


def test_a_wrong_cell_is_named_before_any_work(flags):
    with pytest.raises(ConfigError, match=r"cell model.fusion.layer=9,seed=0: .*above the depth 3"):
        layers(flags, values="0,9")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["train.lr=1,1"], "the value 1 comes twice"),
        (["train.lr=1,2", "train.lr=3"], "train.lr is varied twice"),
        (["train.seed=1,2"], "--seeds N"),
    ],
)
def test_what_makes_no_grid_is_refused(flags, texts, message):
    with pytest.raises(ConfigError, match=message):
        make_cells(flags, [parse_over(text) for text in texts], 1)


def test_the_command_trains_the_same_experiment(tmp_path):
    flags = make_flags(tmp_path, "model.pool=mean")
    cell = make_cells(flags, [parse_over("modalities=[left=alpha, beta]")], 1)[0]
    words = shlex.split(cell.flags.command(tmp_path / "a b"))
    assert words[:2] == ["mbt", "train"]
    values = dict(zip(words[2::2], words[3::2], strict=True))
    assert values["--out"] == str(tmp_path / "a b")
    sets = tuple(value for word, value in zip(words[2::2], words[3::2], strict=True) if word == "--set")
    again = Flags(values["--modalities"], values["--recipe"], values["--data"], sets, values["--device"])
    assert list(again.experiment().modalities) == ["left", "beta"]
    assert again.experiment() == cell.experiment


def test_settings_of_a_modality_go_with_it(tmp_path):
    flags = make_flags(tmp_path, "modalities.alpha.samples=9")
    cells = make_cells(flags, [preset("modalities", flags.experiment())], 1)
    assert [list(c.experiment.modalities) for c in cells] == [["alpha"], ["beta"], ["alpha", "beta"]]
    assert cells[2].experiment.modalities["alpha"].samples == 9


def test_short_names():
    assert [short(n) for n in ("model.fusion.layer", "train.lr", "init")] == ["fusion.layer", "train.lr", "init"]


def test_every_preset_gives_cells(flags, tmp_path):
    (tmp_path / "b").mkdir()
    windows = make_flags(tmp_path / "b", "model.pretrained=weights.safetensors")
    for name in PRESETS.keys() - {"window"}:
        assert len(make_cells(windows, [preset(name, windows.experiment())], 1)) >= 2, name


def test_fusion_layers_go_from_early_to_late(flags, tmp_path):
    assert list(points("fusion-layer", flags)) == ["0", "1", "2", "3"]
    deep = flags.over({"model.backbone": "vit_base_patch16_224"})
    assert list(points("fusion-layer", deep)) == ["0", "2", "4", "6", "8", "10", "12"]


def test_the_papers_values(flags):
    assert list(points("bottlenecks", flags)) == ["4", "36", "64", "256", "1024"]
    assert [o["train.mixup"] for o in points("mixup", flags).values()] == [0, 0.3, 0.3]
    given = flags.over({"train.mixup": 0.5})
    assert points("mixup", given)["per modality"] == {"train.mixup": 0.5, "train.mixup_per_modality": True}
    assert points("update", flags)["bottleneck-sequential"] == {"model.fusion.strategy": "bottleneck-sequential"}


def test_subsets_keep_their_kinds(flags):
    named = Flags("left=alpha,beta", flags.recipe, flags.data)
    assert points("modalities", named) == {
        "left": {"modalities": ["left=alpha"]},
        "beta": {"modalities": ["beta"]},
        "left+beta": {"modalities": ["left=alpha", "beta"]},
    }


def test_starts_are_those_of_the_backbone(flags):
    with pytest.raises(ConfigError, match="no published weights"):
        points("init", flags)
    small = flags.over({"model.backbone": "vit_small_patch16_224", "model.fusion.layer": 8})
    assert points("init", small) == {
        "none": {"model.pretrained": None},
        "vit_small_patch16_224.augreg_in21k": {"model.pretrained": "vit_small_patch16_224.augreg_in21k"},
        "vit_base_patch16_224": {
            "model.backbone": "vit_base_patch16_224",
            "model.pretrained": "vit_base_patch16_224.augreg_in21k",
            "model.fusion.layer": 8,
        },
    }
    base = flags.over({"model.backbone": "vit_base_patch16_224", "model.fusion.layer": 8})
    assert points("init", base)["vit_large_patch16_224"]["model.fusion.layer"] == 16


def test_windows_are_shares_of_the_experiments(flags):
    with pytest.raises(ConfigError, match="no modality of this experiment has a window"):
        points("window", flags)
    seconds = Flags("one=signal,two=signal", None, flags.data, ("modalities.one.seconds=8", "modalities.two.seconds=4"))
    assert list(points("window", seconds)) == ["2 s", "4 s", "6 s", "8 s"]
    assert points("window", seconds)["6 s"] == {"modalities.one.seconds": 6, "modalities.two.seconds": 3}
    with pytest.raises(ConfigError, match=r"give modalities\.two\.seconds"):
        points("window", Flags("one=signal,two=signal", None, flags.data, ("modalities.one.seconds=8",)))


def test_an_unknown_preset_is_refused(flags):
    with pytest.raises(ConfigError, match="Did you mean 'bottlenecks'"):
        preset("bottleneck", flags.experiment())

"""How a recipe and what a user gives become an experiment."""

import pytest

from mbt_core import train
from mbt_core.config.recipes import assemble
from mbt_core.errors import ConfigError
from mbt_core.sweep.grid import Flags

PASSES, STEPS = "audioset-mini", "demo"
"""Recipes that say how long to train by epochs, and by steps."""
BOTH = r"train\.steps=7 and train\.epochs=2 are both given; leave out one of them"


def length(recipe: str, *sets: str) -> tuple[object, object]:
    config = assemble("rgb,audio", recipe, None, sets)[0].train
    return config.steps, config.epochs


def test_what_a_user_gives_counts_before_what_the_recipe_says():
    assert length(PASSES) == ("auto", 50)
    assert length(PASSES, "train.steps=7") == (7, None)
    assert length(STEPS) == (1125, None)
    assert length(STEPS, "train.epochs=2") == ("auto", 2)
    assert length(PASSES, "train.steps=null") == (None, 50)
    assert length(STEPS, "train.lr=0.1") == (1125, None)


def test_weights_decide_on_the_geometry_unless_the_user_does(tmp_path):
    """Whatever the recipe's own is; recipes of users, too."""
    path = str(tmp_path / "weights.safetensors")
    experiment, chosen = assemble("rgb,audio", data=str(tmp_path), pretrained=path)
    assert (chosen.name, experiment.model.pretrained, experiment.train.tune) == ("fine-tune", path, "auto")
    experiment, chosen = assemble("rgb,audio", "small", str(tmp_path), pretrained=path)
    assert (chosen.name, experiment.model.backbone, experiment.model.fusion.layer) == ("small", "auto", "auto")
    assert (experiment.model.pretrained, experiment.train.tune) == (path, "all")
    sets = ["model.backbone.depth=3", "model.fusion.layer=1"]
    model = assemble("rgb,audio", "small", str(tmp_path), sets, pretrained=path)[0].model
    assert (model.backbone.depth, model.backbone.dim, model.fusion.layer) == (3, 128, 1)
    sets = ["model.backbone=vit_tiny_patch16_224", "model.pretrained=null", "train.tune=head", "train.steps=7"]
    experiment = assemble("rgb,audio", None, str(tmp_path), sets, pretrained=path)[0]
    assert (experiment.model.backbone, experiment.model.pretrained) == ("vit_tiny_patch16_224", None)
    assert (experiment.train.tune, experiment.train.steps, experiment.train.epochs) == ("head", 7, None)


def test_steps_and_epochs_together_are_refused(tmp_path):
    for sets in (["train.steps=7", "train.epochs=2"], ["train={steps: 7, epochs: 2}"]):
        with pytest.raises(ConfigError, match=BOTH):
            length(STEPS, *sets)
    with pytest.raises(ConfigError, match=BOTH):
        Flags(recipe=STEPS, sets=("train.epochs=2",)).over({"train.steps": 7}).experiment()
    both = {"modalities": {"rgb": {}}, "data": {"path": str(tmp_path)}, "train": {"steps": 7, "epochs": 2}}
    with pytest.raises(ConfigError, match=BOTH):
        train(both, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    (tmp_path / "both.yaml").write_text("modalities: {rgb: {}}\ntrain: {steps: 7, epochs: 2}\n")
    with pytest.raises(ConfigError, match=BOTH):
        assemble(None, str(tmp_path / "both.yaml"))

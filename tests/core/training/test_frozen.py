"""What a plugin has frozen or put into evaluation mode stays so, however a model is trained."""

import json

import pytest
import torch

from interrupted import train_interrupted
from mbt_core import MBT
from mbt_core.config import TrainConfig
from mbt_core.io.files import read_safetensors
from mbt_core.run import train
from mbt_core.training.optimizer import freeze, make_optimizer, parameter_groups, set_training
from mbt_core.training.state import load_state
from toy import fleet
from toy.fleet import run_fleet, write_series
from toy.models import tiny

pytestmark = pytest.mark.usefixtures("toys")
MODALITIES = {"alpha": {"kind": "frozen", "samples": 8}, "gamma": {}}
TOKENIZER = "streams.alpha.tokenizer."


def build():
    torch.manual_seed(0)
    return MBT(tiny(count=0, modalities=MODALITIES))


def modes(model):
    """Part of the tokenizer -> whether it is in training mode."""
    tokenizer = model.stream("alpha").tokenizer
    return {name: module.training for name, module in tokenizer.named_modules()}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return {
        "modalities": MODALITIES,
        "model": {"backbone": {"dim": 8, "depth": 2, "heads": 2}, "fusion": {"layer": 1, "bottlenecks": 2}},
        "data": {"path": str(write_series(tmp_path_factory.mktemp("data"), 47)), "workers": 0, "max_missing": 0.2},
        "train": {"steps": 6, "batch_size": 8, "lr": 0.1, "eval_every": 3, "optimizer": "adamw", "weight_decay": 0.5},
    }


@pytest.mark.parametrize("tune", ["all", "fused", "head"])
def test_what_a_plugin_has_frozen_is_not_trained(tune):
    model = build()
    freeze(model, TrainConfig(tune=tune, freeze=["streams.gamma.*"]))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(".backbone." in name or name.startswith("streams.gamma") for name in trained)
    assert (f"{TOKENIZER}weight" in trained) == (tune == "all")
    assert "head.classifiers._shared.label.weight" in trained
    counted = sum(p.numel() for group in parameter_groups(model, TrainConfig()) for p in group["params"])
    assert counted == sum(model.get_parameter(name).numel() for name in trained)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, TrainConfig(weight_decay=0.5, optimizer="adamw"), torch.device("cpu"))
    optimizer.param_groups[0]["lr"] = 0.1
    inputs = {"alpha": torch.randn(4, 2, 8), "gamma": torch.randn(4, 6, 3)}
    model(inputs).logits.square().sum().backward()
    optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name not in trained)


def test_modes_that_a_plugin_chose_stay():
    model = build()
    freeze(model, TrainConfig())
    for _ in range(2):
        set_training(model)
        found = modes(model)
        assert {name for name, training in found.items() if not training} == {
            "backbone", "backbone.0", "backbone.1", "backbone.2", "still"
        }  # fmt: skip
        model.eval()
        assert not any(modes(model).values())
    model.train()  # in a loop of one's own: what was in evaluation mode from the start
    assert [name for name, training in modes(model).items() if not training] == ["still"]
    freeze(model, TrainConfig(tune="head"))
    set_training(model)
    assert not any(modes(model).values())  # nothing of it is trained: its statistics must not change either
    assert model.training
    assert model.stream("alpha").training


def test_a_run_and_its_resumption_leave_them_alone(experiment, tmp_path):
    run = train(experiment, tmp_path / "run")
    torch.manual_seed(0)
    fresh = MBT(run.experiment.mbt_config()).state_dict()
    for weights in (read_safetensors(run.path / "model.safetensors"), load_state(run.path / "state")[0]):
        for name, value in weights.items():
            if ".backbone." in name or (".still." in name and not name.endswith(("weight", "bias"))):
                assert torch.equal(value, fresh[name]), name
        assert not torch.equal(weights[f"{TOKENIZER}still.weight"], fresh[f"{TOKENIZER}still.weight"])
        assert not torch.equal(weights[f"{TOKENIZER}moving.running_mean"], fresh[f"{TOKENIZER}moving.running_mean"])
    train_interrupted(experiment, tmp_path / "broken", 4)
    one, other = (read_safetensors(tmp_path / name / "model.safetensors") for name in ("run", "broken"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_tuning_the_head_changes_nothing_but_the_head(experiment, tmp_path):
    tuned = {**experiment, "train": {**experiment["train"], "tune": "head"}}
    run = train(tuned, tmp_path / "run")
    torch.manual_seed(0)
    fresh = MBT(run.experiment.mbt_config()).state_dict()
    changed = {name for name, x in load_state(run.path / "state")[0].items() if not torch.equal(x, fresh[name])}
    assert changed
    assert all(name.startswith("head.classifiers.") for name in changed)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_several_processes_leave_them_alone(parallel, experiment, tmp_path):
    assert [e.code for e in run_fleet(2, fleet.train, experiment, tmp_path / "run", False, parallel)] == [0, 0]
    weights = read_safetensors(tmp_path / "run" / "model.safetensors")
    assert weights[f"{TOKENIZER}backbone.1.num_batches_tracked"] == 0
    assert weights[f"{TOKENIZER}still.num_batches_tracked"] == 0
    assert weights[f"{TOKENIZER}moving.num_batches_tracked"] > 0
    torch.manual_seed(0)
    config = json.loads((tmp_path / "run" / "config.json").read_text())["model"]
    fresh = MBT(config).state_dict()
    assert torch.equal(weights[f"{TOKENIZER}backbone.0.weight"], fresh[f"{TOKENIZER}backbone.0.weight"])

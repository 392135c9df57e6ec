"""What is tuned, kept and passed over, from the number of clips and the device; and how that is said."""

import pytest

from mbt_core.config import Experiment
from mbt_core.config.settings import merge
from mbt_core.errors import ConfigError
from mbt_core.training import fine_tuning
from mbt_core.training.fine_tuning import Choice, choose, explain, follow
from mbt_core.training.flops import count, count_step
from toy.models import tiny

pytestmark = pytest.mark.usefixtures("toys")
AUTO = {"tune": "auto", "cache_lower": "auto", "epochs": "auto"}


def experiment(train=AUTO, **over):
    model = tiny(fusion={"layer": "auto"}, **over)
    return Experiment(modalities=model.pop("modalities"), model=model, train=train)


def chosen(rows, device="cpu", train=AUTO, held_out=0, **over):
    tree = follow(experiment(train, **over), device)
    train, reasons = choose(tree, rows, device, held_out)
    return (train.train.tune, train.train.cache_lower, train.train.epochs), reasons


def allow(monkeypatch, passes, rows, tune="all"):
    """As much work as this many passes take in which everything is tuned."""
    tree = follow(experiment({}), "cpu")
    step = count_step(tree.mbt_config(), tree.train.model_copy(update={"tune": tune})).flops
    monkeypatch.setattr(fine_tuning, "WORK", {"cpu": passes * rows * step})


def test_everything_is_tuned_if_there_is_time(monkeypatch):
    allow(monkeypatch, 7, 1000)
    settings, reasons = chosen(1000)
    assert settings == ("all", False, 7)
    assert reasons["train.epochs"] == "1,000 clips, for minutes on the CPU"
    allow(monkeypatch, 1000, 1000)
    settings, reasons = chosen(1000)
    assert settings == ("all", False, 12)
    assert reasons["train.epochs"] == "1,000 clips"


def test_else_the_fused_layers_with_the_others_kept(monkeypatch):
    allow(monkeypatch, 4, 1000)
    (tune, kept, epochs), reasons = chosen(1000)
    assert (tune, kept) == ("fused", True)
    assert 4 < epochs <= 12
    assert reasons["train.tune"] == "1,000 clips on the CPU"
    assert chosen(1000, "cuda")[0] == ("all", False, 12)


def test_what_is_computed_once_costs_no_pass(monkeypatch):
    tree = follow(experiment({}), "cpu")
    train = tree.train.model_copy(update={"tune": "fused", "cache_lower": True})
    step, parts = count_step(tree.mbt_config(), train).flops, count(tree.mbt_config()).flops
    once = parts["tokenizers"] + parts["stream layers"]
    monkeypatch.setattr(fine_tuning, "WORK", {"cpu": 1000 * (once + 6 * (step - once))})
    assert chosen(1000, train={**AUTO, "tune": "fused", "cache_lower": True})[0] == ("fused", True, 6)


def test_few_and_very_many_clips(monkeypatch):
    assert chosen(20)[0] == ("fused", True, 30)
    assert chosen(1_000_000, "cuda")[0][2] == 5
    monkeypatch.setattr(fine_tuning, "WORK", {"cpu": 1})  # whatever there is, some passes are made
    assert chosen(1000)[0] == ("head", True, 5)


def test_what_is_set_stays():
    assert chosen(1000, train={"tune": "head", "epochs": 3})[0] == ("head", False, 3)
    assert chosen(1000, train={**AUTO, "tune": "all"})[0] == ("all", False, 12)
    assert chosen(20, train={**AUTO, "tune": "all"})[0] == ("all", False, 30)
    assert chosen(20, train={**AUTO, "cache_limit": 1e-6})[0] == ("fused", False, 30)
    assert chosen(1000, train={**AUTO, "tune": "fused"})[0] == ("fused", True, 12)
    assert chosen(1000, held_out=10**12, train={**AUTO, "tune": "fused"})[0][:2] == ("fused", False)
    assert chosen(20, train={**AUTO, "cache_lower": False})[0] == ("fused", False, 30)
    assert chosen(20, train={**AUTO, "mixup": 0.2})[0] == ("fused", False, 30)
    assert chosen(20, patch_drop=0.5)[0] == ("fused", False, 30)


def test_the_table_has_what_was_auto_and_nothing_else():
    asked = experiment()
    followed = follow(asked, "cpu")
    done, reasons = choose(followed, 1000, "cpu")
    assert explain(asked, followed, done, reasons) == [
        Choice("model.fusion.layer", "2", "two thirds of the depth"),
        Choice("train.tune", "all", "1,000 clips on the CPU"),
        Choice("train.cache_lower", "false", "all is trained"),
        Choice("train.epochs", "12", "1,000 clips"),
    ]
    plain = Experiment(
        **merge(asked.model_dump(), {"model": {"fusion": {"layer": 1}}, "train": {"tune": "all", "epochs": 1}})
    )
    assert explain(plain, plain, plain, {}) == []


def test_auto_without_weights_is_refused():
    with pytest.raises(ConfigError, match=r"^model\.backbone is still 'auto'.*set model\.backbone"):
        follow(experiment(backbone="auto"), "cpu")

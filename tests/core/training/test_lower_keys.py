"""Whose kept tokens they are: weights, settings, code and files that make them, and nothing else."""

import copy
import importlib

import pytest

from mbt_core.training import lower
from toy.config import GammaConfig
from toy.models import build_tiny

pytestmark = pytest.mark.usefixtures("toys")

CHANGES = {
    "a weight below": lambda model: model.stream("alpha").tokenizer.weight.data.view(-1)[3].add_(1e-6),
    "a weight of a block below": lambda model: model.blocks["gamma"]["0"].mlp.fc1.bias.data[0].add_(1e-6),
    "the patches": {"modalities": {"alpha": {"patch": 3}}},
    "a length": {"modalities": {"gamma": {"longest": 5}}},
    "the activation": {"backbone": {"act": "relu"}},
    "the fusion layer": {"fusion": {"layer": 2}},
}
HARMLESS = {
    "a weight above": lambda model: model.blocks["gamma"]["1"].mlp.fc1.bias.data[0].add_(1e-6),
    "a classifier": lambda model: model.head.classifiers["_shared"]["label"].bias.data[0].add_(1.0),
    "the number of bottlenecks": {"fusion": {"bottlenecks": 3}},
    "stochastic depth": {"drop_path": 0.1},
    "classes": {"head": {"classes": 7}},
}


@pytest.mark.parametrize("name", [*CHANGES, *HARMLESS])
def test_kept_tokens_are_of_these_weights_and_settings(name):
    change = (CHANGES | HARMLESS)[name]
    before = build_tiny(count=2)
    if callable(change):
        after = copy.deepcopy(before)
        change(after)
    else:
        after = build_tiny(count=2, **change)
        own = after.state_dict()
        same = {k: v for k, v in before.state_dict().items() if k in own and own[k].shape == v.shape}
        after.load_state_dict(own | same)
    layers = (before.config.fusion.layer, after.config.fusion.layer)
    prints = [lower.fingerprint(m, layer, "32") for m, layer in zip((before, after), layers, strict=True)]
    assert (prints[0] == prints[1]) == (name in HARMLESS)
    if name in ("a weight above", "the number of bottlenecks"):  # they are below the head
        assert lower.fingerprint(before, 3, "32") != lower.fingerprint(after, 3, "32")


def test_kept_tokens_are_of_this_precision_code_and_named_files(tmp_path, monkeypatch):
    model = build_tiny(count=2)
    prints = {lower.fingerprint(model, 1, "32"), lower.fingerprint(model, 1, "bf16")}
    file = tmp_path / "modality.py"
    for text in ("one", "another"):
        file.write_text(text)
        monkeypatch.setattr(lower.inspect, "getfile", lambda kind: str(file))
        prints.add(lower.fingerprint(model, 1, "32"))
    for name, text in (("words.txt", "one"), ("words.txt", "another"), ("moved.txt", "another")):
        (tmp_path / name).write_text(text)
        model.config.modalities["gamma"] = GammaConfig(words=str(tmp_path / name))
        prints.add(lower.fingerprint(model, 1, "32"))
    assert len(prints) == 6


def test_code_is_that_of_the_whole_package_and_of_what_it_inherits_from(tmp_path, monkeypatch):
    files = {
        "lower_base/__init__.py": "class Base: ...",
        "lower_base/helper.py": "",
        "lower_own/__init__.py": "",
        "lower_own/parts/__init__.py": "",
        "lower_own/parts/gain.py": "",
        "lower_own/kind.py": "from lower_base import Base\nclass Own(Base): ...",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    own = importlib.import_module("lower_own.kind").Own()
    assert lower._code(own) == sorted(tmp_path / name for name in files)

"""Subsets of the modalities beside one another: on which rows, and of how many."""

import pytest
import torch

from mbt_core import ConfigError
from mbt_core.config import HeadConfig
from mbt_core.evaluate.evaluator import FUSED, Evaluation
from mbt_core.evaluate.subsets import all_subsets, by_name, confusion, on_rows
from mbt_core.evaluate.table import About

ROWS = 24
HAS = {"x": torch.arange(ROWS) >= 7, "y": torch.arange(ROWS) < 22, "z": torch.zeros(ROWS) > 0}
TARGET = torch.arange(ROWS) % 2


def evaluation(names, right):
    """Of the rows that have any of `names`; `right` says which answers are right."""
    some = torch.stack([HAS[name] for name in names]).any(0)
    said = torch.where(right, TARGET, 1 - TARGET)[some]
    logits = {FUSED: {"label": torch.eye(2)[said]}} if some.any() else {}
    targets = {"label": TARGET[some]} if some.any() else {}
    return Evaluation(some.nonzero()[:, 0], logits, targets, {n: HAS[n][some] for n in names}, HeadConfig(classes=2))


@pytest.fixture
def found():
    """x is right on every row that has it, y on every row that lacks x; together they are right where x is."""
    right = {("x",): HAS["x"], ("y",): ~HAS["x"], ("x", "y"): HAS["x"]}
    return {subset: evaluation(subset, right[subset]) for subset in all_subsets(["x", "y"])}


def test_common_rows_are_those_that_all_subsets_answer(found):
    common = by_name(on_rows(found, "common"))
    assert {name: metrics["examples"] for name, metrics in common.items()} == {"x": 15, "y": 15, "x+y": 15}
    assert {name: metrics["top1"] for name, metrics in common.items()} == {"x": 1.0, "y": 0.0, "x+y": 1.0}
    own = by_name(on_rows(found, "own"))
    assert {name: metrics["examples"] for name, metrics in own.items()} == {"x": 17, "y": 22, "x+y": 24}
    assert own["y"]["top1"] == pytest.approx(7 / 22)
    assert own["x+y"]["top1"] == pytest.approx(17 / 24)
    assert [evaluation.index.tolist() for evaluation in on_rows(found, "common").values()] == [list(range(7, 22))] * 3


def test_a_subset_without_any_answer_leaves_the_others_theirs(found):
    found["z",] = evaluation(("z",), HAS["x"])
    common = by_name(on_rows(found, "common"))
    assert common["z"] == {"examples": 0}
    assert common["x"]["examples"] == 15
    assert on_rows({("z",): found["z",]}, "common")["z",] is found["z",]


def test_nothing_in_common():
    apart = {("x",): torch.arange(4), ("y",): torch.arange(4, 8)}
    logits, head = {FUSED: {"label": torch.eye(2).repeat(2, 1)}}, HeadConfig(classes=2)
    found = {s: Evaluation(i, logits, {"label": i % 2}, {s[0]: i >= 0}, head) for s, i in apart.items()}
    assert by_name(on_rows(found, "common")) == {"x": {"examples": 0}, "y": {"examples": 0}}


def test_what_is_kept_tells_its_rows(found):
    """And what adding a modality changes is counted on the same rows as the table beside it."""
    about = About.of(None, 1, found)
    assert (about.rows, about.subsets["x"]["examples"]) == ("common", 15)
    assert about.confusion == confusion(on_rows(found, "common"))
    assert {row["examples"] for row in about.confusion} == {15}
    own = About.of(None, 1, found, "own")
    assert (own.rows, own.subsets["y"]["examples"]) == ("own", 22)
    assert found["x", "y"].examples == {FUSED: 24, "x": 17, "y": 22}


def test_an_unknown_choice(found):
    with pytest.raises(ConfigError, match=r"unknown choice 'comon'. Did you mean 'common'\? Known: common, own"):
        on_rows(found, "comon")

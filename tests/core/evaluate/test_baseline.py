"""What always the same answer would reach, and when it is said."""

import pytest
import torch

from mbt_core.config import DataConfig, HeadConfig
from mbt_core.data.manifest import Manifest
from mbt_core.evaluate.baseline import baselines, largest_classes, remarks
from mbt_core.evaluate.evaluator import FUSED, Evaluation

TARGET = torch.tensor([0] * 7 + [1] * 3)
NAMES = {"label": ["a", "b", "c"]}


def evaluation(answers, majority=None, target=TARGET):
    logits = torch.nn.functional.one_hot(torch.tensor(answers), 3).float()
    index = torch.arange(len(target))
    return Evaluation(
        index, {FUSED: {"label": logits}}, {"label": target}, {}, HeadConfig(classes=3), majority=majority or {}
    )


def test_the_largest_class_of_the_training_rows(tmp_path):
    rows = [("a", "train")] * 2 + [("b", "train")] * 3 + [("a", "test")] * 9
    (tmp_path / "m.csv").write_text(
        "id,label.kind,label.size,label.tags,split\n"
        + "".join(f"{i},{k},{i},x;y,{s}\n" for i, (k, s) in enumerate(rows))
    )
    kinds = {"kind": "single", "size": "regression", "tags": "multilabel"}
    assert largest_classes(Manifest.read(tmp_path / "m.csv", {}, DataConfig(), kinds=kinds)) == {"kind": 1}
    (tmp_path / "test.csv").write_text("id,label,split\n1,a,test\n")
    assert largest_classes(Manifest.read(tmp_path / "test.csv", {}, DataConfig(), classes=NAMES)) == {}


def test_a_model_that_is_no_better_is_told():
    as_good = evaluation([0] * 10, {"label": 0})
    assert remarks(as_good, NAMES) == [
        "top1 0.7000 is no better than always answering 'a', the largest class of the train split (0.7000); "
        "nor is balanced_accuracy 0.5000 (0.5000)"
    ]
    worse = evaluation([0] * 6 + [1] * 4, {"label": 0})
    assert remarks(worse, NAMES) == []  # 9 of 10
    other = evaluation([1] * 4 + [0] * 3 + [1] * 3)
    nowhere = evaluation([2] * 10, {"label": 2})
    assert remarks(nowhere, NAMES)[0].endswith("'c', the largest class of the train split (0.0000); nor is "
                                               "balanced_accuracy 0.0000 (0.0000)")  # fmt: skip
    assert remarks(other, {}) == [
        "top1 0.6000 is no better than always answering 'class_0', the largest class of these rows (0.7000), "
        "but balanced_accuracy 0.7143 is (0.5000)"
    ]


def test_which_split_is_largest():
    """What is largest in train scores as it does on these rows; a class that they do not have scores nothing."""
    for majority, constant in (({}, 0.7), ({"label": 0}, 0.7), ({"label": 1}, 0.3), ({"label": 2}, 0.0)):
        [found] = baselines(evaluation([0] * 10, majority))
        assert found.constant == pytest.approx(constant)
        assert found.is_as_good == (constant >= 0.7)
        assert found.known == bool(majority)


@pytest.mark.parametrize("count", [3, 10, 30, 7000])
def test_equal_shares_are_equal(count):
    """Whatever a float makes of them."""
    target = torch.arange(count) % 3
    found = evaluation([0] * count, target=target)
    assert baselines(found)[0].is_as_good
    assert "; nor is balanced_accuracy" in remarks(found, NAMES)[0]


def test_numbers_and_several_tasks():
    head = HeadConfig(tasks={"kind": 3, "size": 1, "tags": 2}, task={"size": "regression", "tags": "multilabel"})
    numbers = torch.arange(10.0)[:, None]
    logits = {"kind": torch.eye(3)[TARGET], "size": torch.full((10, 1), 4.5), "tags": torch.zeros(10, 2)}
    targets = {"kind": TARGET, "size": numbers, "tags": torch.ones(10, 2)}
    found = Evaluation(torch.arange(10), {FUSED: logits}, targets, {}, head)
    assert {b.metric: b.constant for b in baselines(found)} == {"kind/top1": pytest.approx(0.7), "size/r2": 0.0}
    assert remarks(found, {}) == ["size/r2 0.0000 is no better than always answering the mean"]
    found.logits[FUSED]["size"] = numbers + 1
    assert remarks(Evaluation(found.index, found.logits, targets, {}, head), {}) == []
    logits["size"] = torch.full((10, 1), torch.nan)
    assert len(remarks(Evaluation(found.index, {FUSED: logits}, targets, {}, head), {})) == 1
    targets["size"] = torch.ones(10, 1)  # nothing to compare by
    assert [b.metric for b in baselines(Evaluation(found.index, {FUSED: logits}, targets, {}, head))] == ["kind/top1"]


def test_no_rows():
    assert baselines(Evaluation(torch.zeros(0, dtype=torch.int64), {}, {}, {}, HeadConfig(classes=3))) == []
    none = evaluation([0] * 10).select(torch.tensor([99]))
    assert remarks(none, NAMES) == []

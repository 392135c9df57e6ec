"""The numbers of the report, against counts by hand."""

import math

import pytest
import torch
from sklearn.metrics import confusion_matrix as reference

from mbt_core.analysis.report.numbers import (
    class_rows,
    confused_pairs,
    confusion_matrix,
    hardest,
    hardness,
    most_confused,
    reliability,
    smooth,
    surest,
)


def logit(p):
    return math.log(p / (1 - p))


def of_two(*first):
    """Logits of two classes, of which the first has these probabilities."""
    return torch.tensor([[logit(p), 0.0] for p in first])


def test_reliability_by_hand():
    # 4 answers of 0.9, 3 of them right; 2 of 0.6, 1 right; all in two of ten bins
    logits = of_two(0.92, 0.92, 0.92, 0.92, 0.64, 0.64)
    found = reliability("single", logits, torch.tensor([0, 0, 0, 1, 0, 1]), bins=10)
    assert found.said == pytest.approx([0.64, 0.92])
    assert found.right == pytest.approx([0.5, 0.75])
    assert found.count == [2, 4]
    assert found.error == pytest.approx((2 * abs(0.64 - 0.5) + 4 * abs(0.92 - 0.75)) / 6)


def test_reliability_of_a_model_that_is_as_sure_as_it_is_right():
    torch.manual_seed(0)
    logits = torch.randn(20000, 4) * 2
    target = torch.multinomial(logits.softmax(1), 1)[:, 0]
    assert reliability("single", logits, target).error < 0.02
    assert reliability("single", 3 * logits, target).error > 0.1
    hot = torch.bernoulli(logits.sigmoid())
    assert reliability("multilabel", logits, hot).error < 0.01
    assert reliability("regression", logits, logits) is None
    assert reliability("single", logits[:0], target[:0]) is None


def test_confusion():
    torch.manual_seed(0)
    logits, target = torch.randn(300, 7), torch.randint(7, (300,))
    found = confusion_matrix(logits, target)
    assert found.tolist() == reference(target, logits.argmax(1), labels=range(7)).tolist()
    matrix = torch.tensor([[9, 0, 1, 0], [0, 9, 0, 0], [4, 0, 6, 0], [0, 0, 0, 9]])
    assert confused_pairs(matrix, 10) == [(2, 0, 4), (0, 2, 1)]
    assert most_confused(matrix, 2) == [0, 2]
    assert most_confused(matrix, 9) == [0, 1, 2, 3]


def test_classes_from_the_worst():
    logits = torch.tensor([[2.0, 0, 0], [2, 0, 0], [2, 0, 0], [0, 2, 0]])
    rows = class_rows("single", logits, torch.tensor([0, 0, 1, 1]))
    assert [(r.place, r.examples, r.score) for r in rows] == [(1, 2, 0.5), (0, 2, 1.0), (2, 0, None)]
    assert rows[1].precision == pytest.approx(2 / 3)
    hot = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]])
    rows = class_rows("multilabel", logits, hot)
    assert [(r.place, r.examples) for r in rows] == [(0, 2), (1, 2), (2, 0)]
    # three examples score as high as any of class 0; class 1 has one above and one with all others
    assert [r.score for r in rows] == pytest.approx([2 / 3, (1 + 2 / 4) / 2, None])
    assert class_rows("regression", logits, logits) == []


def test_the_hardest_and_the_surest():
    logits = torch.tensor([[5.0, 0], [1, 0], [0, 3], [0, 1], [4, 0]])
    hard = hardness("single", logits, torch.tensor([1, 0, 1, 0, 0]))
    assert hard.tolist() == [5, 0, 0, 1, 0]
    assert hardest(hard, 5) == [0, 3]
    assert hardest(hard, 1) == [0]
    assert surest(logits, hard, 5) == [4, 2]  # one of each class
    assert surest(logits, hard, 1) == [4]
    hot = torch.tensor([[0.0, 1], [1, 1], [0, 0], [1, 0], [0, 1]])
    assert hardness("multilabel", logits, hot).tolist() == [5, 0, 3, 1, 4]  # of [0, 3], none is right
    target = torch.tensor([[0.0], [1], [2], [3], [4]])
    deviation = float(target.std())
    found = hardness("regression", target + torch.tensor([[0.0], [-1], [0], [2], [0]]), target)
    assert found.tolist() == pytest.approx([0, 1 / deviation, 0, 2 / deviation, 0])


def test_the_hardest_where_labels_or_numbers_do_not_vary():
    logits = torch.tensor([[-2.0, -1], [-2, 4], [3, 2], [-3, 2]])
    assert hardness("multilabel", logits[:2], torch.zeros(2, 2)).tolist() == [0, 4]
    assert hardness("multilabel", logits[2:], torch.ones(2, 2)).tolist() == [0, 3]
    target = torch.tensor([[0.0, 7], [10, 7], [20, 7]])
    said = target + torch.tensor([[20.0, 0], [0, 0.5], [0, 0]])
    assert hardest(hardness("regression", said, target), 3) == [0, 1]
    said[2, 0] = math.nan
    assert hardest(hardness("regression", said, target), 3) == [2, 0, 1]


def test_curves_are_thinned_out():
    points = [(step, float(step)) for step in range(10)]
    assert smooth(points, 10) == points
    assert smooth(points, 5) == [(0.5, 0.5), (2.5, 2.5), (4.5, 4.5), (6.5, 6.5), (8.5, 8.5)]
    assert len(smooth(points, 4)) <= 4
    assert smooth([], 4) == []

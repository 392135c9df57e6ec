"""Metrics against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from mbt_core.evaluate.metrics import average_precision, correlation, metric_names, task_metrics

generator = np.random.default_rng(0)
LOGITS = torch.from_numpy(generator.normal(size=(200, 12)).astype(np.float32))
CLASSES = torch.from_numpy(generator.integers(0, 12, 200))
HOT = torch.from_numpy((generator.random((200, 12)) < 0.2).astype(np.float32))


def test_top1_and_top5():
    found = task_metrics("single", LOGITS, CLASSES)
    assert found["top1"] == pytest.approx(reference.accuracy_score(CLASSES, LOGITS.argmax(1)))
    top5 = reference.top_k_accuracy_score(CLASSES, LOGITS.numpy(), k=5, labels=range(12))
    assert found["top5"] == pytest.approx(top5)


@pytest.mark.parametrize(("classes", "names"), [(1, ["top1"]), (5, ["top1"]), (6, ["top1", "top5"])])
def test_top5_needs_six_classes(classes, names):
    found = task_metrics("single", LOGITS[:, :classes], CLASSES % classes)
    assert list(found) == [*names, "macro_f1", "balanced_accuracy"] == metric_names("single", classes)
    assert found["top1"] == pytest.approx((LOGITS[:, :classes].argmax(1) == CLASSES % classes).float().mean().item())


def test_map():
    found = task_metrics("multilabel", LOGITS, HOT)
    assert found["mAP"] == pytest.approx(reference.average_precision_score(HOT, LOGITS, average="macro"), abs=1e-6)
    each = [reference.average_precision_score(HOT[:, c], LOGITS[:, c]) for c in range(12)]
    np.testing.assert_allclose(average_precision(LOGITS, HOT), each, rtol=1e-5)


def test_map_with_ties_and_large_logits():
    for logits in (LOGITS.round(), LOGITS * 1e4, LOGITS * 1e-9, torch.zeros_like(LOGITS)):
        expected = reference.average_precision_score(HOT, logits, average="macro")
        assert task_metrics("multilabel", logits, HOT)["mAP"] == pytest.approx(expected, abs=1e-6)


def test_classes_without_positives_are_left_out():
    hot = HOT.clone()
    hot[:, 3] = 0
    kept = [c for c in range(12) if c != 3]
    assert math.isnan(average_precision(LOGITS, hot)[3])
    expected = reference.average_precision_score(hot[:, kept], LOGITS[:, kept], average="macro")
    assert task_metrics("multilabel", LOGITS, hot)["mAP"] == pytest.approx(expected, abs=1e-6)


def test_one_label():
    found = task_metrics("multilabel", LOGITS[:, :1], HOT[:, :1])
    assert found["mAP"] == pytest.approx(reference.average_precision_score(HOT[:, 0], LOGITS[:, 0]), abs=1e-6)


@pytest.mark.parametrize("outputs", [1, 3])
def test_regression(outputs):
    values, target = LOGITS[:, :outputs], LOGITS[:, :outputs] * 0.7 + HOT[:, :outputs]
    found = task_metrics("regression", values, target)
    assert found["mae"] == pytest.approx(reference.mean_absolute_error(target, values), rel=1e-5)
    assert found["rmse"] == pytest.approx(reference.root_mean_squared_error(target, values), rel=1e-5)
    assert found["r2"] == pytest.approx(reference.r2_score(target, values), rel=1e-4)
    large = task_metrics("regression", values * 1e30, target * 1e30)  # its squares are beyond float32
    assert large["rmse"] == pytest.approx(1e30 * found["rmse"], rel=1e-5)


def test_r2_where_targets_do_not_vary():
    """Undefined, not 0; outputs that do vary still have theirs, however small their unit."""
    values, target = LOGITS[:, :2] * 1e-4, LOGITS[:, :2] * 0.7e-4 + HOT[:, :2] * 1e-4
    expected = reference.r2_score(target[:, 1], values[:, 1])
    target[:, 0] = 0.1
    assert task_metrics("regression", values, target)["r2"] == pytest.approx(expected, rel=1e-4)
    assert list(task_metrics("regression", values[:, :1], target[:, :1])) == ["mae", "rmse"]


def by_class(answers, targets):
    """(F1, recall) of each class that has examples, by counting."""
    scores = {}
    for c in sorted(set(targets.tolist())):
        right = sum(a == t == c for a, t in zip(answers.tolist(), targets.tolist(), strict=True))
        answered, examples = int((answers == c).sum()), int((targets == c).sum())
        precision, recall = right / answered if answered else 0.0, right / examples
        scores[c] = (2 * precision * recall / (precision + recall) if right else 0.0, recall)
    return scores


def test_each_class_counts_the_same():
    """9 of a class, 1 of another: always answering the first is right nine times of ten, and knows half the classes."""
    target = torch.tensor([0] * 9 + [1])
    constant = torch.tensor([[1.0, 0.0]]).expand(10, 2)
    found = task_metrics("single", constant, target)
    assert found["top1"] == pytest.approx(0.9)
    assert found["balanced_accuracy"] == 0.5
    assert found["macro_f1"] == pytest.approx((2 * 9 / (10 + 9) + 0) / 2)


def test_macro_f1_and_balanced_accuracy():
    answers = LOGITS.argmax(1)
    found = task_metrics("single", LOGITS, CLASSES)
    assert found["macro_f1"] == pytest.approx(reference.f1_score(CLASSES, answers, average="macro"))
    assert found["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(CLASSES, answers))


def test_classes_without_examples_do_not_count():
    """Though some are answered: scikit-learn has the same balanced accuracy; its F1 needs `labels`, else they are 0."""
    target = CLASSES % 3 * 4  # classes 0, 4 and 8 of 12
    answers = LOGITS.argmax(1)
    found = task_metrics("single", LOGITS, target)
    assert set(answers.tolist()) == set(range(12))
    mean_f1, mean_recall = np.mean(list(by_class(answers, target).values()), axis=0)
    assert found["macro_f1"] == pytest.approx(mean_f1)
    assert found["balanced_accuracy"] == pytest.approx(mean_recall)
    assert found["macro_f1"] == pytest.approx(reference.f1_score(target, answers, labels=[0, 4, 8], average="macro"))
    assert found["macro_f1"] > 2 * reference.f1_score(target, answers, average="macro")
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert found["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(target, answers))


def test_macro_f1_of_several_labels():
    """Of what is more probable than not; a class without positives is left out."""
    hot = HOT.clone()
    hot[:, 3] = 0
    kept = [c for c in range(12) if c != 3]
    expected = reference.f1_score(hot[:, kept], LOGITS[:, kept].sigmoid() > 0.5, average="macro")
    assert task_metrics("multilabel", LOGITS, hot)["macro_f1"] == pytest.approx(expected)
    assert math.isnan(task_metrics("multilabel", LOGITS, torch.zeros_like(HOT))["macro_f1"])


def test_pearson():
    """Of any unit, and of predictions on another scale; nothing is told by values that do not vary."""
    target = (LOGITS[:, :2] * 0.7 + HOT[:, :2]).double().numpy()
    expected = [np.corrcoef(LOGITS[:, c], target[:, c])[0, 1] for c in range(2)]
    for factor in (1.0, 1e30, 1e-30):
        values, numbers = LOGITS[:, :2] * factor, torch.from_numpy(target * 3 + 5)
        np.testing.assert_allclose(correlation(values, numbers), expected, rtol=1e-5)
        assert task_metrics("regression", values, numbers)["pearson"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert task_metrics("regression", -numbers, numbers)["pearson"] == pytest.approx(-1)
    constant = torch.full_like(LOGITS[:, :1], 0.1)
    assert task_metrics("regression", constant, LOGITS[:, :1])["pearson"] == 0
    assert math.isnan(task_metrics("regression", constant * math.nan, LOGITS[:, :1])["pearson"])
    assert "pearson" not in task_metrics("regression", LOGITS[:, :1], constant)


def test_few_examples():
    assert task_metrics("single", LOGITS[:0], CLASSES[:0]) == {}
    assert list(task_metrics("regression", LOGITS[:1, :1], LOGITS[:1, :1])) == ["mae", "rmse"]
    right = {"top1": 1.0, "macro_f1": 1.0, "balanced_accuracy": 1.0}
    assert task_metrics("single", torch.tensor([[0.0, 1.0]]), torch.tensor([1])) == right
    assert task_metrics("multilabel", LOGITS[:1], torch.ones(1, 12))["mAP"] == 1.0

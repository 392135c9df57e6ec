"""Losses against torch's own, and who counts how much."""

import pytest
import torch
from torch.nn import functional as F

from mbt_core.config import HeadConfig
from mbt_core.config.schema import Scale
from mbt_core.model import Prediction
from mbt_core.model.loss import dense_targets, example_losses, smooth, task_loss

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]])
INDEX = torch.tensor([0, 2])
ONE_HOT = F.one_hot(INDEX, 3).float()
HOT = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])


def prediction(by_name, fused=None):
    logits = fused if fused is not None else torch.stack(list(by_name.values())).mean(0)
    return Prediction(logits, by_name, {}, torch.zeros(2, 4), {})


def same_for(by_name):
    """Targets that do not differ between modalities."""
    return {name: {"label": ONE_HOT} for name in (*by_name, "")}


@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_kinds_of_task(epsilon):
    single = task_loss("single", LOGITS, ONE_HOT, epsilon)
    torch.testing.assert_close(single, F.cross_entropy(LOGITS, INDEX, reduction="none", label_smoothing=epsilon))
    several = task_loss("multilabel", LOGITS, HOT, epsilon)
    smoothed = HOT * (1 - epsilon) + epsilon / 3
    expected = F.binary_cross_entropy(LOGITS.sigmoid(), smoothed, reduction="none").sum(1)
    torch.testing.assert_close(several, expected)
    values = task_loss("regression", LOGITS, HOT, epsilon)
    torch.testing.assert_close(values, ((LOGITS - HOT) ** 2).mean(1))


def test_numbers_are_compared_in_their_deviations():
    scale = Scale(mean=[7.0, 0.0, -2.0], std=[10.0, 1e-6, 0.5])
    found = task_loss("regression", LOGITS, HOT, scale=scale)
    torch.testing.assert_close(found, (((LOGITS - HOT) / torch.tensor(scale.std)) ** 2).mean(1))
    head = HeadConfig(classes=3, task="regression", scales={"label": scale})
    targets = {"": {"label": HOT}, "alpha": {"label": HOT}}
    torch.testing.assert_close(example_losses(prediction({"alpha": LOGITS}), targets, head), found)
    with torch.inference_mode():  # what is kept of it serves a training too
        task_loss("regression", LOGITS, HOT, scale=Scale(mean=[0] * 3, std=[3.0] * 3))
    logits = LOGITS.clone().requires_grad_()
    task_loss("regression", logits, HOT, scale=Scale(mean=[0] * 3, std=[3.0] * 3)).sum().backward()
    torch.testing.assert_close(logits.grad, (LOGITS - HOT) * 2 / 27)


def test_losses_are_computed_in_float32():
    logits = (LOGITS * 30).bfloat16().requires_grad_()
    loss = task_loss("multilabel", logits, HOT)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, task_loss("multilabel", logits.float(), HOT))
    for value in (1e4, -1e4):
        for kind in ("single", "multilabel"):
            assert task_loss(kind, torch.tensor([[value, 0.0, -value]]), ONE_HOT[:1]).isfinite().all()


def test_smoothing_keeps_the_sum():
    torch.testing.assert_close(smooth(ONE_HOT, 0.3).sum(1), torch.ones(2))
    assert smooth(HOT, 0) is HOT


def test_dense_targets():
    head = HeadConfig(tasks={"verb": 3, "tags": 3, "size": 1}, task={"tags": "multilabel", "size": "regression"})
    found = dense_targets({"verb": INDEX, "tags": HOT.long(), "size": torch.tensor([[1.5], [2.0]]).double()}, head)
    torch.testing.assert_close(found, {"verb": ONE_HOT, "tags": HOT, "size": torch.tensor([[1.5], [2.0]])})


def test_per_modality_is_the_mean_over_those_present():
    by_name = {"alpha": LOGITS, "beta": LOGITS.flip(1), "gamma": LOGITS * 2}
    head = HeadConfig(classes=3)
    targets = same_for(by_name)
    each = {name: task_loss("single", logits, ONE_HOT) for name, logits in by_name.items()}
    found = example_losses(prediction(by_name), targets, head)
    torch.testing.assert_close(found, sum(each.values()) / 3)
    present = {"alpha": [True, False], "beta": [True, False], "gamma": [False, False]}
    here = {name: torch.tensor(value) for name, value in present.items()}
    found = example_losses(prediction(by_name), targets, head, here)
    torch.testing.assert_close(found, torch.stack([(each["alpha"][0] + each["beta"][0]) / 2, torch.zeros(())]))


def test_absent_modalities_have_no_gradient_whatever_their_logits():
    by_name = {"alpha": LOGITS.clone().requires_grad_(), "beta": torch.full_like(LOGITS, torch.nan).requires_grad_()}
    here = {"alpha": torch.tensor([True, True]), "beta": torch.tensor([False, False])}
    targets = same_for(by_name)
    loss = example_losses(prediction(by_name, LOGITS), targets, HeadConfig(classes=3), here)
    torch.testing.assert_close(loss, task_loss("single", LOGITS, ONE_HOT))


def test_weights_of_modalities():
    by_name = {"alpha": LOGITS, "beta": LOGITS.flip(1)}
    targets = same_for(by_name)
    alpha, beta = (task_loss("single", logits, ONE_HOT) for logits in by_name.values())
    head = HeadConfig(classes=3, modality_weights={"alpha": 3})
    torch.testing.assert_close(example_losses(prediction(by_name), targets, head), (3 * alpha + beta) / 4)
    only_beta = {"alpha": torch.tensor([False, True]), "beta": torch.tensor([True, True])}
    found = example_losses(prediction(by_name), targets, head, only_beta)
    torch.testing.assert_close(found, torch.stack([beta[0], (3 * alpha[1] + beta[1]) / 4]))
    none = HeadConfig(classes=3, modality_weights={"alpha": 0, "beta": 0})
    assert not example_losses(prediction(by_name), targets, none).any()


def test_each_modality_has_targets_of_its_own():
    by_name = {"alpha": LOGITS, "beta": LOGITS}
    targets = {"alpha": {"label": ONE_HOT}, "beta": {"label": ONE_HOT.flip(0)}}
    expected = (task_loss("single", LOGITS, ONE_HOT) + task_loss("single", LOGITS, ONE_HOT.flip(0))) / 2
    torch.testing.assert_close(example_losses(prediction(by_name), targets, HeadConfig(classes=3)), expected)


@pytest.mark.parametrize("by_name", [{}, {"alpha": LOGITS, "beta": LOGITS}])
def test_loss_of_the_fused_logits(by_name):
    """Asked for, or because there are none per modality."""
    head = HeadConfig(classes=3, loss="fused") if by_name else HeadConfig(classes=3)
    fused = LOGITS * 2
    targets = {"": {"label": ONE_HOT}}
    found = example_losses(prediction(by_name, fused), targets, head, smoothing=0.1)
    torch.testing.assert_close(found, task_loss("single", fused, ONE_HOT, 0.1))


def test_tasks_are_weighed():
    head = HeadConfig(
        tasks={"verb": 3, "tags": 3}, task={"tags": "multilabel"}, task_weights={"tags": 0.5}, loss="fused"
    )
    logits = {"verb": LOGITS, "tags": LOGITS.flip(0)}
    targets = {"": {"verb": ONE_HOT, "tags": HOT}}
    expected = (task_loss("single", LOGITS, ONE_HOT) + 0.5 * task_loss("multilabel", LOGITS.flip(0), HOT)) / 1.5
    torch.testing.assert_close(example_losses(prediction({}, logits), targets, head), expected)


def test_huber_in_standard_deviations():
    """torch's own of standardised numbers: the unit of the labels changes nothing."""
    logits, target = torch.tensor([[1000.0], [1400.0]]), torch.tensor([[1040.0], [1000.0]])
    head = HeadConfig(classes=1, task="regression", huber_delta=1.5, scales={"label": Scale(mean=[1000.0], std=[80.0])})
    targets = {"": {"label": target}, "alpha": {"label": target}}
    found = example_losses(prediction({"alpha": logits}), targets, head)
    # 0.5 deviations off: half the square; 5 off: 1.5 x (5 - 1.5 / 2)
    torch.testing.assert_close(found, torch.tensor([0.125, 6.375]))
    expected = F.huber_loss((logits - 1000) / 80, (target - 1000) / 80, reduction="none", delta=1.5).mean(1)
    torch.testing.assert_close(found, expected)


def test_huber_is_of_a_regression():
    HeadConfig(tasks={"kind": 3, "size": 1}, task={"size": "regression"}, huber_delta=1)
    for task in ("single", "multilabel", {"kind": "single"}):
        with pytest.raises(ValueError, match="huber_delta: expected a task of kind 'regression' .*, got "):
            HeadConfig(task=task, huber_delta=1)
    with pytest.raises(ValueError, match="huber_delta"):
        HeadConfig(task="regression", huber_delta=0)


@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_class_weights_are_those_of_torch(epsilon):
    weights = torch.tensor([0.5, 2.0, 3.0])
    single = task_loss("single", LOGITS, ONE_HOT, epsilon, class_weights_C=weights)
    expected = F.cross_entropy(LOGITS, INDEX, weights, reduction="none", label_smoothing=epsilon)
    torch.testing.assert_close(single, expected)
    mixed = 0.3 * ONE_HOT + 0.7 * ONE_HOT.flip(0)
    expected = F.cross_entropy(LOGITS, mixed, weights, reduction="none", label_smoothing=epsilon)
    torch.testing.assert_close(task_loss("single", LOGITS, mixed, epsilon, class_weights_C=weights), expected)
    several = task_loss("multilabel", LOGITS, HOT, epsilon, class_weights_C=weights)
    of_each = torch.nn.BCEWithLogitsLoss(reduction="none", pos_weight=weights)
    torch.testing.assert_close(several, of_each(LOGITS, HOT * (1 - epsilon) + epsilon / 3).sum(1))


def test_class_weights_of_each_task():
    head = HeadConfig(tasks={"kind": 3, "tags": 3}, task={"tags": "multilabel"}, task_weights={"tags": 0.5})
    targets = {source: {"kind": ONE_HOT, "tags": HOT} for source in ("", "alpha")}
    logits = {"kind": LOGITS, "tags": LOGITS.flip(0)}
    weights = {"kind": torch.tensor([0.5, 2.0, 3.0]), "tags": torch.tensor([4.0, 1.0, 9.0])}
    found = example_losses(prediction({"alpha": logits}, logits), targets, head, class_weights=weights)
    kind = task_loss("single", LOGITS, ONE_HOT, class_weights_C=weights["kind"])
    tags = task_loss("multilabel", LOGITS.flip(0), HOT, class_weights_C=weights["tags"])
    torch.testing.assert_close(found, (kind + 0.5 * tags) / 1.5)

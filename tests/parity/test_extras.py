"""Losses, metrics, mixup, schedule and frame sampling against the reference's numbers."""

import json

import pytest
import torch

from mbt_core.config import HeadConfig
from mbt_core.evaluate.metrics import average_precision, joint_metrics, task_metrics
from mbt_core.modality.tokens import Tokens
from mbt_core.model import Prediction
from mbt_core.model.loss import dense_targets, example_losses
from mbt_core.training.mixup import Mixup
from mbt_core.training.optimizer import lr_factor
from mbt_rgb.tokenizer import sampled_frames
from parity.goldens import DEV, arrays_of, weighted_mean
from parity.reference import sampled

KINDS = {"softmax": "single", "sigmoid": "multilabel"}
NAMES = ("rgb", "spectrogram")


@pytest.fixture(scope="module")
def extras():
    return {name: torch.from_numpy(array) for name, array in arrays_of(DEV / "extras/losses_metrics_mixup.npz").items()}


def predicted(logits, separate):
    return Prediction(logits, separate, {}, torch.zeros(()), {})


@pytest.mark.parametrize("labels", ["hard", "mixed"])
@pytest.mark.parametrize("mask", [0, 1])
@pytest.mark.parametrize("smoothing", ["0", "0.3"])
@pytest.mark.parametrize("logits", ["dict", "single"])
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_losses(extras, loss, logits, smoothing, mask, labels):
    targets = extras[("onehot" if loss == "softmax" else "multihot") + ("_mixed" if labels == "mixed" else "")]
    separate = {name: extras[f"logits/{name}"] for name in NAMES}
    prediction = predicted(separate["rgb"], separate if logits == "dict" else {})
    by_name = {name: {"label": targets.float()} for name in ("", *NAMES)}
    losses = example_losses(prediction, by_name, HeadConfig(classes=9, task=KINDS[loss]), None, float(smoothing))
    found = weighted_mean(losses, extras["mask"].float() if mask else torch.ones_like(losses))
    expected = extras[f"out/{loss}_{logits}_ls{smoothing}_mask{mask}_{labels}"]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", ["single", "dict"])
def test_several_tasks(extras, form):
    """Each head is smoothed by its own number of classes; the mean over heads, then over modalities."""
    splits = dict(zip(("noun", "verb"), extras["mh/class_splits"].tolist(), strict=True))

    def cut(x):
        return dict(zip(splits, x.float().split([*splits.values()], 1), strict=True))

    separate = {"first": cut(extras["mh/logits"]), "second": cut(extras["mh/logits2"])}
    prediction = predicted(separate["first"], separate if form == "dict" else {})
    targets = dict.fromkeys(("", *separate), cut(extras["mh/labels"]))
    losses = example_losses(prediction, targets, HeadConfig(tasks=splits), None, 0.2)
    found = weighted_mean(losses, extras["mh/mask"].float())
    torch.testing.assert_close(found, extras[f"out/mh_loss_ls0.2_mask_{form}"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mask", ["nomask", "mask"])
def test_accuracies(extras, mask):
    """The reference keeps sums and counts; ours are their ratio."""
    kept = extras["mask"].bool() if mask == "mask" else torch.ones(12, dtype=torch.bool)
    found = task_metrics("single", extras["logits/rgb"][kept], extras["onehot"][kept].argmax(1))
    count = extras[f"out/num_examples_{mask}"]
    assert kept.sum() == count
    assert found["top1"] == pytest.approx(float(extras[f"out/accuracy_sum_{mask}"] / count))
    assert found["top5"] == pytest.approx(float(extras[f"out/top5_sum_{mask}"] / count))


def test_accuracies_of_several_tasks(extras):
    kept, splits = extras["mh/mask"].bool(), extras["mh/class_splits"].tolist()
    parts = zip(extras["mh/logits"][kept].split(splits, 1), extras["mh/labels"][kept].split(splits, 1), strict=True)
    for index, (logits, labels) in enumerate(parts):
        found = task_metrics("single", logits, labels.argmax(1))
        assert found["top1"] == pytest.approx(float(extras[f"out/mh_accuracy_sum_{index}"] / kept.sum()))
        assert found["top5"] == pytest.approx(float(extras[f"out/mh_top5_sum_{index}"] / kept.sum()))


def test_joint_accuracies_of_two_tasks(extras):
    """The "action" of a verb and a noun."""
    kept, splits = extras["mh/mask"].bool(), extras["mh/class_splits"].tolist()
    logits = extras["mh/logits"][kept].split(splits, 1)
    labels = [y.argmax(1) for y in extras["mh/labels"][kept].split(splits, 1)]
    found = joint_metrics(logits, labels)
    assert found["top1"] == pytest.approx(float(extras["out/mh_joint_accuracy_sum"] / kept.sum()))
    assert found["top5"] == pytest.approx(float(extras["out/mh_joint_top5_sum"] / kept.sum()))


def test_mean_average_precision():
    """A class without positives is left out of the mean, as the older scikit-learn of the reference does."""
    arrays = {n: torch.from_numpy(a) for n, a in arrays_of(DEV / "extras/mean_average_precision.npz").items()}
    found = average_precision(arrays["logits"], arrays["labels"])
    some = arrays["labels"].sum(0) > 0
    torch.testing.assert_close(found[some].double(), arrays["ap_per_class"][some].double(), rtol=0, atol=1e-6)
    assert found[~some].isnan().all()
    mean = task_metrics("multilabel", arrays["logits"], arrays["labels"])["mAP"]
    assert mean == pytest.approx(float(arrays["mean_ap_without_empty_class"]), abs=1e-6)


@pytest.mark.parametrize("per_modality", [0, 1])
def test_mixup(extras, per_modality):
    """Mixing inputs is mixing tokens: both are the same linear combination, here of the inputs themselves."""
    path = f"mixup/mixmod{per_modality}"
    weights = {name: float(extras[f"{path}/lambda_{name}"]) for name in NAMES}
    mixup = Mixup(weights if per_modality else weights | {"": weights["rgb"]})
    inputs = {name: Tokens(extras[f"mixup/in/{name}"].float().flatten(1, -2)) for name in NAMES}
    for name, tokens in mixup.tokens(inputs, None).items():
        torch.testing.assert_close(tokens.x, extras[f"{path}/{name}"].flatten(1, -2), rtol=0, atol=1e-6)
    targets = mixup.targets({"label": extras["mixup/in/label"].float()}, list(NAMES), None)
    assert ("" in targets) != bool(per_modality)
    for name, by_task in targets.items():
        torch.testing.assert_close(by_task["label"], extras[f"{path}/label/{name or 'all'}"], rtol=0, atol=1e-6)


def test_schedule():
    content = json.loads((DEV / "extras/lr_schedule.json").read_text())
    steps, warmup = content["total_steps"], content["warmup_steps"]
    assert len(content["step_to_lr"]) > 10
    for step, expected in content["step_to_lr"].items():
        if int(step) < steps:  # the last update has completed one step less; beyond it the reference wraps around
            found = content["base_lr"] * lr_factor(int(step), steps, warmup / steps)
            assert found == pytest.approx(expected, abs=3e-7), step


def test_sampled_frames():
    content = json.loads((DEV / "extras/temporal_sampling_indices.json").read_text())["indices"]
    assert len(content) > 10
    for key, expected in content.items():
        frames, count = map(int, key.split(","))
        assert sampled_frames(frames, count) == expected == sampled(frames, count)


def test_class_indices_are_one_hot_labels(extras):
    dense = dense_targets({"label": extras["onehot"].argmax(1)}, HeadConfig(classes=9))["label"]
    assert torch.equal(dense, extras["onehot"].float())

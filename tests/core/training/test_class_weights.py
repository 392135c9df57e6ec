"""Weights of classes: of the training rows alone, in torch's weighted mean, however a batch is computed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from interrupted import train_interrupted
from mbt_core import Experiment
from mbt_core.config import DataConfig, HeadConfig
from mbt_core.data.collate import Batch
from mbt_core.data.manifest import Manifest
from mbt_core.evaluate.table import read_predictions
from mbt_core.model import Prediction
from mbt_core.model.loss import dense_targets, example_losses
from mbt_core.run import train
from mbt_core.training.class_weights import NO_WEIGHTS, ClassWeights
from mbt_core.training.loggers import read_metrics
from mbt_core.training.mixup import Mixup
from mbt_core.training.state import load_state
from small import mbt, read_csv, write_csv
from toy.fleet import run_fleet
from toy.fleet import train as train_in_fleet

CPU = torch.device("cpu")
RARE = 12


def read(path, text, **config):
    path.write_text(text)
    return Manifest.read(path, {}, DataConfig(**config))


def test_they_are_of_the_training_rows(tmp_path):
    """6 of a, 2 of b, 0 of c: 8 / (2 x 6) and 8 / (2 x 2), over the two that there are; 1 on average over the rows."""
    (tmp_path / "m.classes.json").write_text(json.dumps({"label": ["a", "b", "c"]}))
    rows = "".join(f"{i},{label},{split}\n" for i, (label, split) in enumerate(
        [("a", "train")] * 6 + [("b", "train")] * 2 + [("b", "val")] * 9 + [("c", "test")] * 9))  # fmt: skip
    found = ClassWeights.balanced(read(tmp_path / "m.csv", "id,label,split\n" + rows), CPU).weights
    assert found.keys() == {"label"}
    np.testing.assert_allclose(found["label"], [8 / 12, 8 / 4, 1.0])
    assert 6 * found["label"][0] + 2 * found["label"][1] == pytest.approx(8)


def test_each_task_has_its_own(tmp_path):
    """Several labels: rows without / rows with; 1 for what all have. Numbers have none."""
    text = "id,label.kind,label.tags,label.size\n0,a,x;y,1\n1,a,y,2\n2,a,y,3\n3,b,y,4\n"
    (tmp_path / "m.csv").write_text(text)
    kinds = {"kind": "single", "tags": "multilabel", "size": "regression"}
    config = DataConfig(val_fraction=0, test_fraction=0)
    weights = ClassWeights.balanced(Manifest.read(tmp_path / "m.csv", {}, config, kinds=kinds), CPU)
    assert {task: w.tolist() for task, w in weights.weights.items()} == {
        "kind": pytest.approx([4 / 6, 4 / 2]),
        "tags": [3.0, 1.0],
    }
    assert weights.sums(make_batch(kind=[0, 1, 1])) == [pytest.approx(4 / 6 + 2 + 2)]  # of the single task alone


def make_batch(weight=None, **targets):
    size = len(next(iter(targets.values())))
    ones = torch.ones(size) if weight is None else torch.tensor(weight)
    index = torch.arange(size)
    return Batch({}, {}, {t: torch.tensor(y) for t, y in targets.items()}, ones, index, index * 0, [], True)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("parts", [1, 3])
def test_the_weighted_mean_is_that_of_torch(parts, smoothing):
    """Of all parts together; examples that could not be read, with weight 0, do not count."""
    torch.manual_seed(0)
    target, logits, w_C = torch.tensor([0, 0, 2, 0, 1, 0, 2]), torch.randn(7, 3), torch.tensor([0.4, 2.0, 5.0])
    batch = make_batch([1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0], label=target.tolist())
    weights, head = ClassWeights({"label": w_C}, ["label"]), HeadConfig(classes=3)
    pieces = batch.split(parts)
    sums = np.sum([weights.sums(piece) for piece in pieces], axis=0)  # as of several processes
    of_step = weights.of_step(6.0, sums)
    total = torch.zeros(())
    for piece in pieces:
        dense = dense_targets(piece.targets, head)
        out = Prediction(logits[piece.index], {}, {}, torch.zeros(len(piece), 1), {})
        losses_B = example_losses(out, {"": dense}, head, None, smoothing, of_step)
        total += (losses_B * piece.weight).sum() / 6.0
    read = batch.weight > 0
    expected = F.cross_entropy(logits[read], target[read], w_C, label_smoothing=smoothing)
    torch.testing.assert_close(total, expected)


def test_mixed_labels_have_mixed_weights():
    """The loss of a mixed label is the mix of the losses; the divisor is the sum of what the labels weigh."""
    torch.manual_seed(0)
    target, logits, w_C = torch.tensor([0, 0, 2, 1]), torch.randn(4, 3), torch.tensor([0.4, 2.0, 5.0])
    weights, head = ClassWeights({"label": w_C}, ["label"]), HeadConfig(classes=3)
    batch = make_batch(label=target.tolist())
    dense = Mixup({"": 0.3}).targets(dense_targets(batch.targets, head), [], None)
    out = Prediction(logits, {}, {}, torch.zeros(4, 1), {})
    losses_B = example_losses(out, dense, head, None, 0.0, weights.of_step(4.0, weights.sums(batch)))
    one, other = (F.cross_entropy(logits, y, w_C, reduction="sum") for y in (target, target.flip(0)))
    torch.testing.assert_close(losses_B.sum() / 4, (0.3 * one + 0.7 * other) / w_C[target].sum())


def test_nothing_to_weigh():
    batch = make_batch([0.0, 0.0], label=[0, 1])
    weights = ClassWeights({"label": torch.tensor([1.0, 3.0])}, ["label"])
    assert weights.of_step(0.0, weights.sums(batch))["label"].tolist() == [1.0, 3.0]
    assert NO_WEIGHTS.sums(batch) == []
    assert NO_WEIGHTS.of_step(2.0, []) == {}


def make_experiment(folder, labels, count=36, **train_settings):
    """Recordings around a level that tells `labels` (column -> function): `count` to train, a twelfth of them rare."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(2 * count):
        rare, split = i % RARE == 0, "train" if i < count else "test"
        for name, shape in (("alpha", (2, 8)), ("gamma", (3, 2))):
            np.save(folder / f"{name}{i}.npy", (1.2 * rare + rng.normal(size=shape)).astype(np.float32))
        cells = {column: told(rare, i) for column, told in labels.items()}
        rows.append({"id": i, "alpha": f"alpha{i}.npy", "gamma": f"gamma{i}.npy", "split": split, **cells})
    settings = {"optimizer": "adamw", "lr": 0.01, "steps": 6, "batch_size": 12, "log_every": 1, **train_settings}
    return {
        "modalities": {"alpha": {"channels": 2, "samples": 8}, "gamma": {}},
        "model": {"backbone": {"dim": 8, "depth": 1, "heads": 2}, "fusion": {"layer": 1}},
        "data": {"path": str(write_csv(folder / "data.csv", rows)), "workers": 0, "cache": "none"},
        "train": settings,
    }


def kind(rare, number):
    return "rare" if rare else "common"


def last_weights(run):
    return load_state(run.path / "state")[0]


@pytest.mark.slow
@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize(("label", "metric"), [
    (kind, "balanced_accuracy"), (lambda rare, i: "x;y" if rare else "x", "macro_f1"),
], ids=["single", "multilabel"])  # fmt: skip
def test_rare_classes_are_learnt(tmp_path, label, metric):
    """A twelfth of the rows, hard to tell: without weights the rare class is hardly ever answered."""
    settings = {"count": 240, "steps": 100, "mixup": 0.2, "label_smoothing": 0.1}
    plain, weighted = (
        train(make_experiment(tmp_path, {"label": label}, **settings, class_weights=name), tmp_path / name).results
        for name in ("none", "balanced")
    )
    assert plain[metric] < 0.55
    assert weighted[metric] > plain[metric] + 0.08
    if metric == "balanced_accuracy":
        assert weighted[metric] > 0.8


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, toys):
    """The folder of the data, what is trained, and the run."""
    folder = tmp_path_factory.mktemp("unbroken")
    labels = {"label.kind": kind, "label.tags": lambda rare, i: "x;y" if rare else "y"}
    experiment = make_experiment(folder, labels, class_weights="balanced", optimizer="sgd", steps=4)
    return experiment, train(experiment, folder / "run")


def changed(experiment, **train_settings):
    return {**experiment, "train": {**experiment["train"], **train_settings}}


def losses(run):
    return [line["loss"] for line in read_metrics(run.path / "metrics.jsonl") if line["event"] == "step"]


def test_the_parts_of_a_batch_do_not_matter(unbroken, tmp_path):
    experiment, run = unbroken
    parts = train(changed(experiment, accumulate=3), tmp_path / "parts")
    assert losses(parts) == pytest.approx(losses(run), rel=1e-4)
    torch.testing.assert_close(last_weights(parts), last_weights(run), rtol=1e-4, atol=1e-5)
    plain = train(changed(experiment, class_weights="none"), tmp_path / "plain")
    assert losses(plain)[1:] != pytest.approx(losses(run)[1:], rel=1e-2)


def test_it_goes_on_to_the_same_weights(unbroken, tmp_path):
    experiment, run = unbroken
    resumed = train_interrupted(experiment, tmp_path / "broken", 2)
    whole = last_weights(run)
    assert all(torch.equal(x, whole[name]) for name, x in last_weights(resumed).items())


def test_a_constant_answer_is_told(unbroken, tmp_path):
    """Of its own data the largest class of the train split is known, of others not: here rare ones, to evaluate."""
    experiment, run = unbroken
    rows = read_csv(Path(experiment["data"]["path"]))
    rare = [{**row, "split": "test"} for row in rows if row["label.kind"] == "rare"]
    constant = train(changed(experiment, class_weights="none", lr=1e-9), tmp_path / "run")
    done = mbt("eval", constant.path)
    names = constant.classes["kind"]
    for data, majority in ((None, names.index("common")), (write_csv(run.path.parent / "rare.csv", rare), None)):
        _, found = constant.evaluate(data)
        assert next(iter(found.values())).majority.get("kind") == majority
    share = "kind/top1 0.9167 is no better than always answering 'common', the largest class of the train split (0.9167"
    assert share in done.out
    assert read_predictions(constant.path, constant.experiment.model.head).found.majority == {
        "kind": names.index("common")
    }


@pytest.mark.slow
def test_the_number_of_processes_does_not_matter(tmp_path):
    experiment = make_experiment(tmp_path, {"label": kind}, class_weights="balanced", optimizer="sgd", accumulate=2)
    for world in (1, 2, 3):
        ended = run_fleet(world, train_in_fleet, experiment, tmp_path / str(world))
        assert [e.code for e in ended] == [0] * world, [e.said for e in ended]
    one, *others = (load_state(tmp_path / str(world) / "state")[0] for world in (1, 2, 3))
    for other in others:
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


def test_what_makes_no_sense_is_refused():
    modalities = {"alpha": {}}
    with pytest.raises(ValueError, match="class_weights: data.sampler=balanced draws rare classes more often"):
        Experiment(modalities=modalities, train={"class_weights": "balanced"}, data={"sampler": "balanced"})
    with pytest.raises(ValueError, match="class_weights: expected a task with classes, got none but regression"):
        Experiment(modalities=modalities, train={"class_weights": "balanced"}, model={"head": {"task": "regression"}})

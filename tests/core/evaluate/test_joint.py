"""Several single tasks judged together, and the table of predictions."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from mbt_core.config import DataConfig, HeadConfig
from mbt_core.data.manifest import Manifest
from mbt_core.evaluate.evaluator import FUSED, Evaluation, metric_names
from mbt_core.evaluate.metrics import joint_metrics, task_metrics
from mbt_core.evaluate.table import write_predictions


def by_hand(logits, targets, k):
    """Ranks all combinations of one example after the other by the outer product of the probabilities."""
    right = []
    for rows in zip(*logits, *targets, strict=True):
        values, wanted = rows[: len(logits)], [int(y) for y in rows[len(logits) :]]
        product = np.ones(1)
        for x in values:
            p = np.exp(x - x.max())
            product = np.outer(product, p / p.sum()).ravel()
        place = np.ravel_multi_index(wanted, [len(x) for x in values])
        right.append(place in np.argsort(-product)[:k])
    return float(np.mean(right))


@pytest.mark.parametrize("sizes", [(7, 6), (3, 9), (2, 2, 4), (97, 300)])
def test_all_combinations_are_ranked(sizes):
    rng = np.random.default_rng(0)
    logits = [rng.normal(size=(200, C)) * 2 for C in sizes]
    targets = [np.where(rng.random(200) < 0.6, x.argmax(1), rng.integers(0, x.shape[1], 200)) for x in logits]
    found = joint_metrics([torch.tensor(x) for x in logits], [torch.tensor(y) for y in targets])
    assert found == {f"top{k}": pytest.approx(by_hand(logits, targets, k)) for k in (1, 5)}
    both = np.all([x.argmax(1) == y for x, y in zip(logits, targets, strict=True)], 0)
    assert found["top1"] == pytest.approx(both.mean())


def test_large_logits_and_no_examples():
    logits = [torch.tensor([[500.0, 499.0, -500.0]]), torch.tensor([[1000.0, 0.0]])]
    assert joint_metrics(logits, [torch.tensor([1]), torch.tensor([0])]) == {"top1": 0.0, "top5": 1.0}
    assert joint_metrics([x[:0] for x in logits], [torch.zeros(0, dtype=torch.long)] * 2) == {}
    assert joint_metrics([x[:, :2] for x in logits], [torch.tensor([0])] * 2) == {"top1": 1.0}


@pytest.mark.parametrize("spread", [0.0, 2.0, float("nan")])
def test_equal_logits_are_no_hits(spread):
    """Constant ones, such as a fresh classifier's, few different ones, as in bf16, and ones that are not numbers."""
    generator = torch.Generator().manual_seed(0)
    logits = [(torch.randn(500, C, generator=generator) * spread).round() for C in (4, 9)]
    targets = [torch.randint(C, (500,), generator=generator) for C in (4, 9)]
    alone = [task_metrics("single", x, y)["top1"] for x, y in zip(logits, targets, strict=True)]
    found = joint_metrics(logits, targets)
    both = [joint_metrics([x[i : i + 1] for x in logits], [y[i : i + 1] for y in targets])["top1"] for i in range(500)]
    right = [
        all(task_metrics("single", x[i : i + 1], y[i : i + 1])["top1"] for x, y in zip(logits, targets, strict=True))
        for i in range(500)
    ]
    assert found["top1"] == pytest.approx(np.mean(right)) == pytest.approx(np.mean(both))
    assert found["top1"] <= min(alone)
    assert found["top1"] < found["top5"] < 0.6


def evaluation(**head):
    generator = torch.Generator().manual_seed(0)
    logits = {s: {t: torch.randn(4, C, generator=generator) for t, C in (("verb", 7), ("noun", 6))} for s in ("", "m")}
    return Evaluation(
        torch.tensor([0, 1, 3, 4]),
        logits,
        {"verb": torch.tensor([0, 1, 2, 3]), "noun": torch.tensor([5, 4, 3, 2])},
        {"m": torch.tensor([True, True, False, True])},
        HeadConfig(tasks={"verb": 7, "noun": 6}, **head),
        {2: "broken"},
    )


def test_joint_metrics_are_named_like_a_task():
    found = evaluation(joint={"action": ["verb", "noun"]})
    metrics = found.metrics()
    here = found.present["m"]
    assert {"action/top1", "action/top5", "action/top1[m]", "action/top5[m]"} < set(metrics)
    assert metrics["action/top5"] == pytest.approx(by_hand(*arrays(found, FUSED, slice(None)), 5))
    assert metrics["action/top5[m]"] == pytest.approx(by_hand(*arrays(found, "m", here), 5))
    assert set(metrics) == set(metric_names(found.head, ["m"]))
    assert not [name for name in evaluation().metrics() if "action" in name]


def arrays(found, source, here):
    tasks = ("verb", "noun")
    return [found.logits[source][t][here].numpy() for t in tasks], [found.targets[t][here].numpy() for t in tasks]


def manifest(folder):
    (folder / "m.csv").write_text("id,label\n" + "".join(f"clip{i},{'xy'[i % 2]}\n" for i in range(6)))
    return Manifest.read(folder / "m.csv", {}, DataConfig())


def test_predictions_of_several_tasks(tmp_path):
    found = evaluation()
    write_predictions(tmp_path, found, manifest(tmp_path), "val")
    table = pq.read_table(tmp_path / "predictions.parquet")
    assert table["id"].to_pylist() == ["clip0", "clip1", "clip3", "clip4", "clip2"]
    assert table["split"].to_pylist() == ["val"] * 5
    assert table["error"].to_pylist() == [None] * 4 + ["broken"]
    assert table["verb/target"].to_pylist() == [0, 1, 2, 3, None]
    np.testing.assert_array_equal(table["noun/logits"].to_pylist()[:4], found.logits[FUSED]["noun"].numpy())
    of_m = table["verb/logits[m]"].to_pylist()
    assert of_m[2] is of_m[4] is None
    np.testing.assert_array_equal([of_m[i] for i in (0, 1, 3)], found.logits["m"]["verb"].numpy()[[0, 1, 3]])
    assert json.loads(table.schema.metadata[b"classes"]) == {"label": ["x", "y"]}


def test_predictions_of_one_task(tmp_path):
    found = Evaluation(
        torch.tensor([0]),
        {FUSED: {"label": torch.tensor([[1.0, 2.0]])}},
        {"label": torch.tensor([[0.0, 1.0]])},
        {"m": torch.tensor([True])},
        HeadConfig(classes=2, task="multilabel"),
    )
    write_predictions(tmp_path, found, manifest(tmp_path), "test")
    row = pq.read_table(tmp_path / "predictions.parquet").to_pylist()[0]
    about = {"id": "clip0", "split": "test", "group": None, "error": None}
    assert row == {**about, "target": [0.0, 1.0], "logits": [1.0, 2.0]}

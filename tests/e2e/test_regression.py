"""Numbers to predict, whatever their unit: learnt as well as any, and given in that unit wherever they are seen."""

import json

import numpy as np
import pyarrow.parquet
import pytest
import torch

from interrupted import train_interrupted
from mbt_core import MBT, ConfigError
from mbt_core.config import HeadConfig
from mbt_core.deploy.export import export
from mbt_core.deploy.export.files import _run_torch
from mbt_core.deploy.export.graph import Graph
from mbt_core.errors import MBTWarning
from mbt_core.run import load, train
from small import mbt, read_csv, write_csv

TRAINED, HELD_OUT = 96, 32
NAMES = ("mae", "rmse", "r2", "pearson")


def make_data(folder, label, **others):
    """A manifest of recordings around a level; `label` and `others` (column -> function) are told by the level."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(TRAINED + 2 * HELD_OUT):
        level = generator.normal()
        np.save(folder / f"{number}.npy", (level + 0.1 * generator.normal(size=(2, 32))).astype(np.float32))
        split = "train" if number < TRAINED else "val" if number < TRAINED + HELD_OUT else "test"
        row = {"id": str(number), "sensor": f"{number}.npy", "split": split}
        rows.append(row | {column: told(level) for column, told in {**label, **others}.items()})
    return write_csv(folder / "data.csv", rows)


def experiment(data, task="regression", **train_settings):
    return {
        "modalities": {"sensor": {"kind": "signal", "rate": 32}},
        "model": {
            "backbone": {"dim": 16, "depth": 1, "heads": 2},
            "fusion": {"layer": 1},
            "head": {"task": task},
        },
        "data": {"path": str(data), "workers": 0},
        "train": {"optimizer": "adamw", "lr": 0.01, "steps": 60, "batch_size": 32, "eval_every": 30, **train_settings},
    }


@pytest.fixture(scope="module")
def far(tmp_path_factory):
    """A run on numbers around 1000 with a deviation of 80."""
    folder = tmp_path_factory.mktemp("far")
    data = make_data(folder, {"label": lambda level: repr(1000 + 80 * level)})
    return train(experiment(data), folder / "run")


@pytest.mark.parametrize(
    ("mean", "deviation"),
    [(1e9, 1e9), pytest.param(1e-6, 1e-6, marks=pytest.mark.slow), pytest.param(-5e4, 30.0, marks=pytest.mark.slow)],
)
def test_any_unit_is_learnt_alike(tmp_path, mean, deviation):
    data = make_data(tmp_path, {"label": lambda level: repr(mean + deviation * level)})
    run = train(experiment(data), tmp_path / "run")
    assert run.results["r2"] > 0.95
    assert run.results["loss"] < 0.05
    assert run.results["rmse"] == pytest.approx(deviation * (1 - run.results["r2"]) ** 0.5, rel=0.3)
    assert 0 < run.results["mae"] < run.results["rmse"] < 0.25 * deviation
    said = run.predict(tmp_path / "0.npy")[0].top["label"][0][1]
    assert said == pytest.approx(float(read_csv(data)[0]["label"]), abs=0.6 * deviation)


def test_the_unit_changes_no_weight(tmp_path, far):
    """The same levels in units of 80: what is trained is the same but for the rounding of the labels."""
    data = make_data(tmp_path, {"label": repr})
    run = train(experiment(data), tmp_path / "run")
    torch.testing.assert_close(run.model.state_dict(), far.model.state_dict(), atol=2e-2, rtol=0)
    assert run.results["r2"] == pytest.approx(far.results["r2"], abs=0.01)


def test_every_path_tells_the_own_unit(far, tmp_path):
    truth = {row["id"]: float(row["label"]) for row in read_csv(far.path.parent / "data.csv")}
    table = pyarrow.parquet.read_table(far.path / "predictions.parquet").to_pylist()
    assert len(table) == HELD_OUT
    for row in table:
        assert row["target"] == [pytest.approx(truth[row["id"]])]
        assert row["logits"][0] == pytest.approx(truth[row["id"]], abs=60)
    said = {int(row["id"]): row["logits"][0] for row in table}
    number = next(iter(said))
    file = far.path.parent / f"{number}.npy"
    for opened in (far, load(far.path)):
        assert opened.predict(file)[0].top["label"] == [("label", pytest.approx(said[number], rel=1e-5))]
    model = MBT.from_pretrained(far.path).eval()
    assert model.config.head.scales["label"].std[0] == pytest.approx(80, rel=0.2)
    done = mbt("explain", far.path, file, "--out", tmp_path / "page.html")
    assert done.code == 0
    assert f"{said[number]:.3f}" in (tmp_path / "page.html").read_text()
    done = mbt("eval", far.path)
    assert done.code == 0
    shown = dict(line.split()[:2] for line in done.out.splitlines() if line.strip().startswith(NAMES))
    assert float(shown["rmse"]) == pytest.approx(far.results["rmse"], rel=1e-3)
    numbers = np.array([[row["logits"][0], row["target"][0]] for row in table])
    correlation = np.corrcoef(numbers.T)[0, 1]
    assert far.results["pearson"] == pytest.approx(correlation)
    assert float(shown["pearson"]) == pytest.approx(correlation, abs=1e-4)
    page = (far.path / "report.html").read_text()
    assert all(name in page for name in ("rmse", "mae", "r2", "pearson", f"{correlation:.3f}"))
    assert "no better" not in page + done.out
    document = json.loads(mbt("eval", far.path, "--json").out)
    assert document["metrics"]["pearson"] == pytest.approx(correlation)
    assert document["baseline"] == {"r2": 0.0}


def test_only_paths_are_predicted(far):
    """The keys of a dictionary are no files; an array says what to do."""
    for files, came in (({"sensor": far.path.parent / "0.npy"}, "a dict"), ([np.zeros((2, 32))], "a list of ndarray")):
        with pytest.raises(ConfigError, match=f"expected the path of a media file .*, got {came}.*predict_rows"):
            far.predict(files)
    with pytest.raises(ConfigError, match="data: expected the path or URL of a manifest, got a dict"):
        far.evaluate({"sensor": ["0.npy"]})


@pytest.mark.slow
def test_an_exported_model_tells_the_own_unit(far, tmp_path):
    model = load(far.path).model
    done = export(model, tmp_path / "model.pt2", "torch-export")
    assert done.difference < 1e-3
    batch = Graph(model).batch(4)
    logits = _run_torch(done.path)(batch)[0]
    assert 500 < logits.mean() < 1500
    torch.testing.assert_close(logits, Graph(model)(*batch)[0], rtol=1e-4, atol=1e-2)


def test_a_model_saved_without_scales_answers_as_it_did(far, tmp_path):
    model = MBT({**far.experiment.mbt_config().model_dump(), "head": {"classes": 1, "task": "regression"}})
    torch.nn.init.normal_(model.head.classifiers["_shared"]["label"].weight)
    model.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["model"]["head"].pop("scales") is None
    (tmp_path / "config.json").write_text(json.dumps(content))
    inputs = {"sensor": torch.randn(3, 2, 32)}
    logits = MBT.from_pretrained(tmp_path).eval()(inputs).logits
    torch.testing.assert_close(logits, model.eval()(inputs).logits)
    assert logits.abs().max() < 100


def test_classes_and_numbers_are_learnt_together(tmp_path):
    data = make_data(
        tmp_path,
        {"label.sign": lambda level: "up" if level > 0 else "down"},
        **{"label.size": lambda level: f"{1000 + 80 * level};{1e-6 * level};7"},
    )
    run = train(experiment(data, {"size": "regression"}, steps=90), tmp_path / "run")
    scale = run.experiment.model.head.scales
    assert list(scale) == ["size"]
    assert scale["size"].std[2] == 1.0  # of a number that does not vary
    assert scale["size"].mean[2] == 7.0
    assert run.results["sign/top1"] > 0.9
    assert run.results["size/r2"] > 0.9
    said = dict(run.predict(tmp_path / "0.npy")[0].top["size"])
    assert 600 < said["size 1"] < 1400
    assert abs(said["size 2"]) < 1e-5
    assert said["size 3"] == pytest.approx(7, abs=0.5)


@pytest.mark.slow
def test_tasks_of_different_scale_lose_nothing_together(tmp_path):
    """Classes, and numbers of mean 1000 and deviation 80 from the same recordings: as good as each alone."""

    def results(name, labels, task):
        (tmp_path / name).mkdir()
        return train(experiment(make_data(tmp_path / name, labels), task, steps=240), tmp_path / name / "run").results

    classes = {"label.sign": lambda level: "up" if level > 0 else "down"}
    numbers = {"label.size": lambda level: repr(1000 + 80 * level)}
    top1 = results("classes", classes, {"sign": "single"})["sign/top1"]
    r2 = results("numbers", numbers, {"size": "regression"})["size/r2"]
    both = results("both", classes | numbers, {"size": "regression"})
    assert min(top1, r2) > 0.9
    assert both["sign/top1"] >= top1 - 1 / HELD_OUT  # a recording between the two
    assert both["size/r2"] >= r2 - 0.01


@pytest.mark.slow
def test_outliers_pull_less_with_huber(tmp_path):
    """A tenth of the training labels is 1000 too large: so their mean is 100 too large, and the median is not."""
    make_data(tmp_path, {"label": lambda level: repr(1000 + 80 * level)})
    rows = read_csv(tmp_path / "data.csv")
    for row in rows[:TRAINED:10]:
        row["label"] = repr(float(row["label"]) + 1000)
    data = write_csv(tmp_path / "outliers.csv", rows)
    settings = experiment(data, steps=120)
    squared = train(settings, tmp_path / "squared").results
    settings["model"]["head"]["huber_delta"] = 0.1
    huber = train(settings, tmp_path / "huber").results
    assert squared["mae"] > 100
    assert huber["mae"] < 0.4 * squared["mae"]
    assert huber["r2"] > squared["r2"] + 1


def test_the_loss_of_val_is_the_one_that_is_trained(tmp_path):
    """Huber's too, so that `train.monitor=loss` watches it."""
    settings = experiment(make_data(tmp_path, {"label": lambda level: repr(1000 + 80 * level)}), steps=2)
    settings["model"]["head"]["huber_delta"] = 0.01
    run = train(settings, tmp_path / "run")
    table = pyarrow.parquet.read_table(run.path / "predictions.parquet").to_pylist()
    scale = run.experiment.model.head.scales["label"]
    off = torch.tensor([(row["logits"][0] - row["target"][0]) / scale.std[0] for row in table])
    expected = torch.nn.functional.huber_loss(off, torch.zeros_like(off), delta=0.01)
    assert run.results["loss"] == pytest.approx(float(expected), rel=1e-3)


def test_it_goes_on_to_the_same_weights(tmp_path):
    data = make_data(tmp_path, {"label": lambda level: repr(1000 + 80 * level)})
    settings = experiment(data, steps=6, eval_every=3)
    whole = train(settings, tmp_path / "whole")
    resumed = train_interrupted(settings, tmp_path / "broken", 4)
    assert resumed.experiment.model.head == whole.experiment.model.head
    one, other = resumed.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(x, other[name]) for name, x in one.items())
    assert resumed.results == whole.results


def test_numbers_that_never_vary(tmp_path):
    data = make_data(tmp_path, {"label": lambda level: "0.1"})
    with pytest.warns(MBTWarning, match="val says nothing about r2"):
        run = train(experiment(data, steps=2), tmp_path / "run")
    assert run.experiment.model.head.scales["label"].std == [1.0]
    assert run.results["mae"] < 1e-6
    assert not {"r2", "pearson"} & run.results.keys()


def test_missing_cells_are_refused_and_never_counted(tmp_path):
    """In the splits that are used they are named; the statistics are of the rows of train alone."""
    data = make_data(tmp_path, {"label": lambda level: repr(1000 + 80 * level)})
    rows = read_csv(data)
    rows += [{"id": "other", "sensor": "0.npy", "split": "unused", "label": ""}]
    rows += [{"id": "far", "sensor": "1.npy", "split": "unused", "label": "1e30"}]
    run = train(experiment(write_csv(tmp_path / "more.csv", rows), steps=2), tmp_path / "run")
    labels = np.array([float(row["label"]) for row in rows[:TRAINED]], np.float32).astype(float)
    scale = run.experiment.model.head.scales["label"]
    assert scale.mean == [pytest.approx(labels.mean())]
    assert scale.std == [pytest.approx(labels.std())]
    assert mbt("predict", run.path, "--data", tmp_path / "more.csv", "--split", "unused").code == 0
    rows[3]["label"] = ""
    done = mbt("train", "--data", write_csv(tmp_path / "gap.csv", rows), "--modalities", "sensor=signal",
               "--set", "model.head.task=regression", "--set", "modalities.sensor.rate=32")  # fmt: skip
    assert done.code == 1
    assert "1 of 96 rows of the train split have no label of task 'label', e.g. '3'" in done.err


def test_a_scale_is_of_a_regression_and_of_its_size():
    scale = {"mean": [1.0], "std": [2.0]}
    assert HeadConfig(classes=1, task="regression", scales={"label": scale}).scale_of("label").std == [2.0]
    for head, message in [
        ({"classes": 3, "scales": {"label": scale}}, "'label' is 'single', no regression"),
        ({"classes": 2, "task": "regression", "scales": {"label": scale}}, "1 numbers; the task has 2 outputs"),
        ({"classes": 1, "task": "regression", "scales": {"lable": scale}}, "unknown task 'lable'"),
        ({"classes": 1, "task": "regression", "scales": {"label": {"mean": [1], "std": [0]}}}, "std"),
        ({"classes": 1, "task": "regression", "scales": {"label": {"mean": [1], "std": [1, 2]}}}, "1 numbers in mean"),
    ]:
        with pytest.raises((ConfigError, ValueError), match=message):
            HeadConfig(**head)

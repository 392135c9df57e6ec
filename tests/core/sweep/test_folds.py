"""Cross-validation of tiny trainings: every row is scored once, nothing is taken from the rows that score."""

import csv
import json
import statistics

import numpy as np
import pyarrow.parquet as pq
import pytest

import mbt_core
import mbt_core.sweep.engine as engine
from mbt_core.errors import ConfigError, DataError, MBTError, MBTWarning
from mbt_core.evaluate.metrics import bounds
from mbt_core.evaluate.table import FILE as PREDICTIONS
from mbt_core.run import load, train
from mbt_core.sweep.cross_validation import CrossValidation, Score, cross_validate, gather, report
from mbt_core.sweep.folds import FoldResult, Folds, Scored, begin, in_folds
from mbt_core.sweep.grid import Cell, Flags
from mbt_core.sweep.results import Result
from mbt_core.training.loop import Interrupted
from mbt_core.training.state import load_state
from toy.sweeps import Log, make_flags

pytestmark = pytest.mark.usefixtures("toys")


def rows_of(folder):
    with (folder / "data.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(folder, rows):
    with (folder / "data.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def test_every_row_is_scored_once_by_the_fold_that_has_not_seen_it(tmp_path, monkeypatch):
    made, choose = [], engine.Cache.choose
    monkeypatch.setattr(engine.Cache, "choose", lambda *given: made.append(choose(*given)) or made[-1])
    experiment, out = make_flags(tmp_path).experiment(), tmp_path / "cv"
    outcome = mbt_core.cross_validate(experiment, 2, out)
    assert len(made) == 1  # the folds share the decoded clips
    runs = [load(out / f"fold{number}") for number in range(2)]
    assert [run.path for run in outcome.runs] == [run.path for run in runs]
    table = pq.read_table(out / PREDICTIONS).to_pylist()
    labels = {row["id"]: row["label"] for row in rows_of(tmp_path) if row["split"] != "test"}
    assert sorted(row["id"] for row in table) == sorted(labels)
    for number, run in enumerate(runs):
        mine = [row for row in table if row["fold"] == number]
        assert [row["id"] for row in mine] == [run._manifest(None).row(i).id for i in run._manifest(None).rows("val")]
        assert sorted(labels[row["id"]] for row in mine) == ["c0"] * 6 + ["c1"] * 6
        right = statistics.fmean(np.argmax(row["logits"]) == row["target"] for row in mine)
        assert outcome.results[number].metrics["top1"] == pytest.approx(right)
        _, again = run.evaluate(split="val")
        assert next(iter(again.values())).metrics() == outcome.results[number].scored["val"].metrics
        assert run.results == outcome.results[number].scored["test"].metrics
    values = [result.metrics["top1[beta]"] for result in outcome.results]
    score = outcome.scores()["top1[beta]"]
    assert (score.values, score.mean) == (tuple(values), pytest.approx(statistics.fmean(values)))
    assert outcome.pooled.examples == 24
    assert outcome.pooled.metrics["top1"] == pytest.approx(outcome.scores()["top1"].mean)  # of folds of one size
    assert outcome.scores("test").keys() == outcome.scores().keys()

    document = json.loads((out / "results.json").read_text())
    assert [fold["splits"]["test"]["examples"] for fold in document["folds"]] == [8, 8]
    assert document["splits"]["val"]["top1[beta]"]["mean"] == score.mean
    assert document["pooled"]["examples"] == 24
    text = (out / "results.md").read_text()
    assert "## val: each row once, by the fold that was not trained on it" in text
    assert "## test: the same rows for every fold" in text


def test_the_last_weights_are_scored(tmp_path):
    flags = make_flags(tmp_path, "data.folds=3", "train.monitor=last", "train.eval_every=1", "train.lr=0.05")
    run = train(flags.experiment(), tmp_path / "last", command="")
    state, _, progress = load_state(run.path / "state")
    assert (progress.best_step, progress.best) == (6, None)
    assert all((value == state[name]).all() for name, value in run.model.state_dict().items())
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "val"] == [1, 2, 3, 4, 5, 6]
    asked = in_folds(flags.experiment(), 3)
    assert (asked.data.folds, asked.train.monitor, asked.train.patience) == (3, "last", None)
    with pytest.raises(ConfigError, match=r"train\.patience: 2 evaluations without improvement of what"):
        flags.over({"train.patience": 2}).experiment()


@pytest.mark.parametrize("setting", ["train.patience=3", "train.monitor=loss"])
def test_what_would_choose_by_the_rows_that_score_is_left_out_and_told(tmp_path, setting):
    with pytest.warns(MBTWarning, match="are not used in cross-validation"):
        asked = in_folds(make_flags(tmp_path, setting).experiment(), 3)
    assert (asked.train.monitor, asked.train.patience) == ("last", None)


def test_what_the_data_fill_is_of_the_training_rows_alone(tmp_path):
    flags = make_flags(tmp_path, "model.head.task=regression", "train.steps=1")
    rows = rows_of(tmp_path)
    for number, row in enumerate(rows):
        row["label"] = str(1000 + number**2)
    write_rows(tmp_path, rows)
    outcome = cross_validate(flags.experiment(), 2, tmp_path / "cv")
    numbers = {row["id"]: float(row["label"]) for row in rows if row["split"] != "test"}
    table = pq.read_table(tmp_path / "cv" / PREDICTIONS).to_pylist()
    for fold, run in enumerate(outcome.runs):
        seen = [numbers[row["id"]] for row in table if row["fold"] != fold]
        assert run.experiment.model.head.scales["label"].mean == [pytest.approx(statistics.fmean(seen))]
    # the unit of each fold's loss is another one
    assert {"r2", "rmse"} <= outcome.pooled.metrics.keys()
    assert "loss" not in outcome.pooled.metrics


@pytest.mark.slow
def test_interrupted_and_resumed_it_comes_to_the_same(tmp_path):
    experiment = make_flags(tmp_path, test=False).experiment()
    unbroken = cross_validate(experiment, 2, tmp_path / "unbroken")
    log, broken = Log("fold1", 4), tmp_path / "broken"
    with pytest.raises(Interrupted):
        begin(broken, experiment, 2, "").run("cpu", log)
    assert log.trained == [("fold0", 0), ("fold1", 0)]
    between = Folds(broken).results()
    assert [result.status for result in between] == ["finished", "unfinished"]
    assert CrossValidation(broken, between).scores()["top1"].interval is None
    with pytest.raises(ConfigError, match="exists and is not empty; go on with it by --resume"):
        begin(broken, experiment, 2, "")
    before = {path: path.stat().st_mtime_ns for path in (broken / "fold0").rglob("*")}
    log = Log()
    results = begin(broken, experiment, 2, "", resume=True).run("cpu", log)
    assert log.trained == [("fold1", 4)]
    assert {path: path.stat().st_mtime_ns for path in (broken / "fold0").rglob("*")} == before
    for name in ("fold0", "fold1"):
        assert weights(broken / name) == weights(tmp_path / "unbroken" / name)
    assert gather(broken, results).pooled == unbroken.pooled
    # ended between training and scoring: it is only scored
    (broken / "fold1" / PREDICTIONS).unlink()
    sweep, before = Folds(broken), weights(broken / "fold1")
    assert [cell.name for cell in sweep.todo()] == ["fold1"]
    assert gather(broken, sweep.run("cpu")).pooled == unbroken.pooled
    assert weights(broken / "fold1") == before


def test_a_failing_fold_is_reported_and_the_others_go_on(tmp_path, monkeypatch):
    def failing(experiment, *rest, **options):
        if experiment.data.fold == 0:
            raise MBTError("the loss is nan")
        return train(experiment, *rest, **options)

    monkeypatch.setattr(engine, "train", failing)
    outcome = cross_validate(make_flags(tmp_path).experiment(), 2, tmp_path / "cv")
    assert [(result.status, result.error) for result in outcome.results] == [
        ("failed", "the loss is nan"),
        ("finished", ""),
    ]
    assert outcome.pooled is None
    assert len(outcome.scores()["top1"].values) == 1
    assert not (tmp_path / "cv" / PREDICTIONS).exists()
    text = (tmp_path / "cv/results.md").read_text()
    assert "Mean over 1 of 2 folds" in text
    assert "`fold0`: the loss is nan" in text
    assert [cell.name for cell in Folds(tmp_path / "cv").todo()] == ["fold0"]


def test_the_interval_is_student_s_t(tmp_path):
    def finished(number, top1):
        cell = Cell(f"fold{number}", {"fold": str(number)}, 0, Flags(), make_flags(tmp_path).experiment())
        metrics = {"top1": top1, "top1[alpha]": 0.5 if number else float("nan")}
        scored = {"val": Scored(10, metrics)}
        return FoldResult(cell, "finished", split="val", metrics=metrics, main=("top1",), scored=scored)

    values = (0.8, 0.9, 0.7)
    results = [*map(finished, range(3), values), Result(Cell("fold3", {"fold": "3"}, 0, Flags(), None))]
    outcome = CrossValidation(tmp_path, results)
    # 0.8 +- 4.303 * 0.1 / sqrt(3), and of a share no more than 1
    assert outcome.scores()["top1"].interval == (pytest.approx(0.55157, abs=1e-4), 1.0)
    assert Score(values).interval[1] == pytest.approx(1.04843, abs=1e-4)
    assert Score((0.9, 0.99), bounds("pearson[x]")).interval[1] == 1.0
    assert Score((0.1, 0.9), bounds("size/mae")).interval[0] == 0.0
    assert Score((0.1, 0.9), bounds("r2")).interval == (pytest.approx(-4.58, abs=0.01), 1.0)
    assert outcome.scores()["top1[alpha]"].values == (0.5, 0.5)  # a fold that has none says nothing
    names, rows = next(iter(report(tmp_path, results, "t", "").tables.values()))
    assert names == ["fold", "examples", "top1", "top1[alpha]"]
    assert rows[3:] == [
        ["3", "missing", "", ""],
        ["mean", "", "0.8000", "0.5000"],
        ["95 % interval", "", "0.5516 to 1.0000", "0.5000 to 0.5000"],
    ]
    assert report(tmp_path, results[3:], "t", "").tables == {}


def test_what_cannot_be_is_refused_before_any_work(tmp_path):
    flags, out = make_flags(tmp_path), tmp_path / "cv"
    experiment = flags.experiment()
    with pytest.raises(ConfigError, match=r"data\.folds: .*greater than or equal to 2"):
        cross_validate(experiment, 1, out)
    with pytest.raises(DataError, match="25 folds of 24 training rows; expected at most 24"):
        cross_validate(experiment, 25, out)
    with pytest.raises(ConfigError, match=r"data\.folds=4, data\.fold=1: cross-validation sets both itself"):
        cross_validate(flags.over({"data.folds": 4, "data.fold": 1}).experiment(), 4, out)
    assert not out.exists()
    begin(out, experiment, 3, "")
    with pytest.raises(ConfigError, match=r"expected --folds 3, with which it was begun, got 4"):
        begin(out, experiment, 4, "", resume=True)
    with pytest.raises(ConfigError, match=r"was begun with other settings: train\.steps is 6, expected 7"):
        begin(out, flags.over({"train.steps": 7}).experiment(), 3, "", resume=True)

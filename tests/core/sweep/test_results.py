"""Tables and figures of made-up results."""

import csv
import math
import re
from dataclasses import replace

import pytest

from mbt_core.sweep import plot
from mbt_core.sweep.report import comparison, study
from mbt_core.sweep.results import columns, markdown_table, summarise
from toy.sweeps import result

FAKES = [result({"model.fusion.layer": layer}, seed, score) for layer, seed, score in [
    ("0", 0, 0.5), ("4", 0, 0.75), ("0", 1, 0.7), ("4", 1, None)
]]  # fmt: skip


def test_rows_are_means_and_deviations_over_finished_seeds():
    one, other = summarise(FAKES)
    assert (one.labels, one.count) == ({"model.fusion.layer": "0"}, 2)
    assert one.mean == {"top1": pytest.approx(0.6)}
    assert one.std == {"top1": pytest.approx(math.sqrt(0.02))}
    assert one.score == (pytest.approx(0.6), pytest.approx(math.sqrt(0.02)))
    assert (other.count, other.mean) == (1, {"top1": 0.75})
    assert math.isnan(other.std["top1"])


def test_the_table():
    names, rows = columns(summarise(FAKES))
    assert names == ["fusion.layer", "top1", "examples", "seeds", "GFLOPs", "M parameters", "clips/s"]
    known = ["2.5", "1", "100"]
    assert rows == [["0", "0.6000 ± 0.1414", "8", "2", *known], ["4", "0.7500", "8", "1", *known]]


def test_how_many_rows_were_evaluated():
    """Of a share of them clips could not be read with one seed; of older runs it is not known."""
    one, other = (result({"a": "1"}, seed, 0.5, examples=count) for seed, count in enumerate((8, 7)))
    assert columns(summarise([one, other]))[1][0][2] == "7-8"
    assert columns(summarise([result({"a": "1"}, 0, 0.5, examples=None)]))[1][0][2] == ""
    assert markdown_table(["a", "b"], [["x|y", "1"]]) == "| a | b |\n| :-- | --: |\n| x\\|y | 1 |\n"


def test_other_metrics_stand_beside_the_main_one(tmp_path):
    """In the table and for programs; they judge nothing, and are not drawn."""
    several = {"main": ("size/r2",), "listed": ("size/r2", "size/rmse", "size/pearson")}
    values = [{"size/r2": 0.5, "size/rmse": 71.25}, {"size/r2": 0.7, "size/rmse": 70.0}]
    results = [
        replace(result({"layer": "0"}, seed, 0.0), metrics=metrics, **several) for seed, metrics in enumerate(values)
    ]
    [row] = summarise(results)
    assert row.mean == pytest.approx({"size/r2": 0.6, "size/rmse": 70.625})
    assert row.score == (pytest.approx(0.6), pytest.approx(math.sqrt(0.02)))
    names, rows = columns([row])
    assert names[:5] == ["layer", "size/r2", "size/rmse", "examples", "seeds"]
    assert rows[0][:3] == ["0", "0.6000 ± 0.1414", "70.625 ± 0.88388"]
    report = comparison(tmp_path, results, "layers", "")
    assert report.document["points"][0]["mean"] == pytest.approx(row.mean)
    drawn = (tmp_path / "results.svg").read_text()
    assert "size/r2" in drawn
    assert "size/rmse" not in drawn


def test_what_a_comparison_leaves(tmp_path):
    report = comparison(tmp_path, FAKES, "layers", "mbt compare ...")
    assert {path.name for path in report.files} == {"results.csv", "results.md", "results.png", "results.svg"}
    text = (tmp_path / "results.md").read_text()
    assert "`mbt compare ...`" in text
    assert "0.6000 ± 0.1414" in text
    assert "1 of 4 cells are not finished yet" in text
    with (tmp_path / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["status"] for line in lines] == ["finished", "finished", "finished", "missing"]
    assert (lines[1]["model.fusion.layer"], lines[1]["top1"], lines[1]["top1[alpha]"]) == ("4", "0.75", "0.5")
    assert [point["mean"] for point in report.document["points"]] == [{"top1": pytest.approx(0.6)}, {"top1": 0.75}]
    svg = (tmp_path / "results.svg").read_text()
    for shown in ("top1", "GFLOPs per clip", "clips/s in training", "fusion.layer", "mean and deviation over 1 to 2"):
        assert shown in svg


def test_nothing_finished_is_no_figure(tmp_path):
    report = comparison(tmp_path, [result({"a": "1"}, 0, None)], "a", "")
    assert {path.name for path in report.files} == {"results.csv", "results.md"}


def test_scales():
    assert plot.Scale.of("window", ["2 s", "4 s"]).at == {"2 s": 2.0, "4 s": 4.0}
    many = plot.Scale.of("bottlenecks", ["4", "1024", "4"])
    assert (many.at, many.logarithmic) == ({"4": 4.0, "1024": 1024.0}, True)
    named = plot.Scale.of("strategy", ["late", "bottleneck"])
    assert (named.at, named.numeric, named.logarithmic) == ({"late": 0.0, "bottleneck": 1.0}, False, False)
    assert not plot.Scale.of("layer", ["0", "12"]).logarithmic


def test_lines_stand_beside_each_other():
    grid = [
        result({"update": update, "pool": pool}, seed, 0.5)
        for seed in (0, 1)
        for update in ("one", "two", "three")
        for pool in ("cls", "mean")
    ]
    figure = plot.comparison(summarise(grid), "t")
    places = [line.get_xdata()[0] for line in figure.axes[0].lines if len(line.get_xdata()) == 3]
    assert len(set(places)) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["pool cls", "pool mean"]


def test_what_a_study_leaves(tmp_path):
    cells = [
        result({"init": init, "tune": tune, "fraction": share}, seed, base + 0.02 * seed, curve=((3, 0.2), (6, base)))
        for seed in range(3)
        for init, base in (("none", 0.4), ("vit", 0.6))
        for tune in ("head", "all")
        for share in ("0.25", "1")
    ]
    report = study(tmp_path, cells, "transfer", "mbt transfer ...")
    assert report.text.startswith("Starting from vit helps: top1 on test +0.200")
    assert report.document["effects"][0]["mean"] == pytest.approx(0.2)
    assert report.text in (tmp_path / "results.md").read_text()
    svg = (tmp_path / "results.svg").read_text()
    assert len(re.findall("tune (?:head|all)", svg)) >= 2
    assert "share of the training rows" in svg


def axes_of(figure, title):
    return next(axes for axes in figure.axes if axes.get_title(loc="left").startswith(title))


@pytest.mark.parametrize("labels", [("0", "4", "8"), ("late", "bottleneck", "cross")])
def test_the_speed_of_runs_is_no_curve(labels):
    """Whatever else ran then shows in it: points, and no line or bars that would tell of an effect."""
    once = [result({"layer": label}, 0, 1.0) for label in labels]
    figure = plot.comparison(summarise(once), "t")
    speed = axes_of(figure, "clips/s in training, one run each")
    assert [line.get_linestyle() for line in speed.get_lines()] == ["None"]
    assert not speed.patches
    twice = [result({"layer": label}, seed, 1.0) for label in labels for seed in (0, 1)]
    assert axes_of(plot.comparison(summarise(twice), "t"), "clips/s in training, mean and deviation").get_lines()


def test_axes_end_where_scores_end():
    rows = summarise([result({"layer": label}, 0, score) for label, score in (("0", 1.0), ("4", 0.0))])
    assert axes_of(plot.comparison(rows, "t"), "top1").get_ylim() == (0.0, 1.0)


def test_all_is_a_way_of_tuning_and_nothing_else(tmp_path):
    cells = [
        result({"init": init, "tune": tune, "fraction": "1"}, seed, 0.5 + 0.1 * seed)
        for init in ("none", "x") for tune in ("head", "all") for seed in (0, 1)
    ]  # fmt: skip
    _, rows = study(tmp_path, cells, "t", "", figure=False).tables["against the baseline"]
    assert [row[1:3] for row in rows] == [["mean over them", "mean over them"], ["head", "1"], ["all", "1"]]

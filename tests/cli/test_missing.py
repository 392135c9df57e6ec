"""``mbt eval --missing``: curves as modalities go missing; and training refuses a modality that is in no row."""

import csv
import json
import shutil

import pytest

from mbt_core.evaluate.missing_modalities import missing_curves, subsets_for_curves
from mbt_core.run import load
from small import mbt, read_csv, tiny_sets, write_csv


@pytest.fixture
def copied(run, tmp_path):
    return shutil.copytree(run.path, tmp_path / "run")


def cells_of(demo, path, rgb, audio, splits=("train", "val", "test")):
    """The demo with columns of their own, empty where `rgb` or `audio` say so of (number in the split, split)."""
    counts = dict.fromkeys(splits, -1)
    rows = []
    for row in read_csv(demo):
        split = row["split"]
        counts[split] += 1
        file = str(demo.parent / row.pop("path"))
        cells = {"rgb": file if rgb(counts[split], split) else "", "audio": file if audio(counts[split], split) else ""}
        rows.append(row | cells)
    (path.parent / f"{path.stem}.classes.json").write_text((demo.parent / "small.classes.json").read_text())
    return write_csv(path, rows)


@pytest.mark.slow
def test_curves(copied):
    done = mbt("eval", copied, "--missing", "--json")
    assert done.code == 0
    written = [copied / name for name in ("missing.csv", "missing.png", "missing.svg", "report.html")]
    assert done.err.splitlines() == [f"wrote {path}" for path in written]
    document = json.loads(done.out)
    points = document["missing"]
    assert [(p["modality"], p["fraction"], p["lost"]) for p in points] == [
        (name, fraction, lost)
        for name in ("rgb", "audio")
        for fraction, lost in ((0, 0), (0.25, 2), (0.5, 4), (0.75, 7), (1, 9))
    ]
    subsets = json.loads(mbt("eval", copied, "--subsets", "--json").out)["subsets"]
    for first, last, rest in ((points[0], points[4], "audio"), (points[5], points[9], "rgb")):
        assert first["metrics"].items() <= document["metrics"].items()
        assert last["metrics"] == pytest.approx({key: subsets[rest][key] for key in last["metrics"]}, abs=1e-6)
    with written[0].open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["loss"]) for line in lines] == [p["metrics"]["loss"] for p in points]
    assert written[1].read_bytes().startswith(b"\x89PNG")
    assert "without audio" in written[2].read_text(encoding="utf-8")


@pytest.mark.slow
def test_what_people_see(copied):
    done = mbt("eval", copied, "--missing")
    assert "rows that lose a modality\n" in done.out
    assert "subsets of the modalities" not in done.out
    rows = [line.split() for line in done.out.splitlines()]
    assert [
        "without",
        "fraction",
        "examples",
        "lost",
        "absent",
        "kept",
        "kind/top1",
        "kind/top5",
        "kind/macro_f1",
        "kind/balanced_accuracy",
        "sum/top1",
        "sum/macro_f1",
        "sum/balanced_accuracy",
        "loss",
    ] in rows
    assert ["audio", "0.25", "9", "2", "0", "0"] in [row[:6] for row in rows]
    page = (copied / "report.html").read_text(encoding="utf-8")
    assert "As modalities go missing" in page
    assert page.count("% when all lose rgb, ") == 2  # a figure for each task
    assert mbt("eval", copied).code == 0
    assert "As modalities go missing" not in (copied / "report.html").read_text(encoding="utf-8")


def test_subsets_are_compared_on_the_same_rows(copied, demo, tmp_path):
    data = cells_of(demo, tmp_path / "gaps.csv", rgb=lambda i, _: i != 0, audio=lambda i, _: i not in (1, 2))

    def evaluate(*options):
        return mbt("eval", copied, "--data", data, "--subsets", *options)

    document = json.loads(evaluate("--json").out)
    assert (document["rows"], document["examples"]) == ("common", 9)
    assert {name: found["examples"] for name, found in document["subsets"].items()} == dict.fromkeys(
        ("rgb", "audio", "rgb+audio"), 6
    )
    assert document["modalities"] == {"rgb": {"examples": 8}, "audio": {"examples": 7}}
    text = evaluate().out
    assert "subsets of the modalities, on the 6 of 9 rows that all of them answer\n" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["examples", "9", "8", "7"] in lines
    assert [line[:2] for line in lines if line[:1] == ["rgb+audio"]] == [["rgb+audio", "6"]]
    page = (copied / "eval-gaps-test" / "report.html").read_text(encoding="utf-8")
    assert "on the same clips, those that every row of this table answers" in page
    own = json.loads(evaluate("--rows", "own", "--json").out)
    assert own["rows"] == "own"
    assert {name: found["examples"] for name, found in own["subsets"].items()} == {"rgb": 8, "audio": 7, "rgb+audio": 9}
    assert own["subsets"]["rgb+audio"] == {"examples": 9, **own["metrics"]}
    page = (copied / "eval-gaps-test" / "report.html").read_text(encoding="utf-8")
    assert "each on the clips that have any of them: their numbers differ" in page


def test_rows_are_chosen_for_subsets(copied):
    for options, message in ((("--rows", "own"), "--rows chooses the rows of --subsets"),
                             (("--subsets", "--rows", "al"), "--rows: unknown choice 'al'")):  # fmt: skip
        done = mbt("eval", copied, *options)
        assert done.code == 2
        assert message in done.err


def test_rows_that_lack_something_anyway(copied, demo, tmp_path):
    data = cells_of(demo, tmp_path / "gaps.csv", rgb=lambda i, _: i != 0, audio=lambda i, _: i not in (1, 2))
    done = mbt("eval", copied, "--data", data, "--missing", "--json")
    assert done.code == 0, done.err
    points = {(p["modality"], p["fraction"]): p for p in json.loads(done.out)["missing"]}
    counts = ("examples", "absent", "kept", "lost")
    assert [points["rgb", 1.0][name] for name in counts] == [9, 1, 2, 6]
    assert [points["audio", 1.0][name] for name in counts] == [9, 2, 1, 6]
    assert (copied / "eval-gaps-test" / "missing.svg").is_file()
    assert not (copied / "missing.svg").exists()


def test_batches_do_not_matter(copied):
    opened = load(copied)
    subsets = subsets_for_curves(list(opened.experiment.modalities))
    curves = []
    for size in (2, 9):
        opened.experiment.evaluate.batch_size = size
        curves.append(missing_curves(opened.evaluate(subsets=subsets)[1]))
    for one, other in zip(*curves, strict=True):
        assert (one.modality, one.fraction, one.lost) == (other.modality, other.fraction, other.lost)
        assert one.metrics == pytest.approx(other.metrics, abs=1e-5)


def test_a_run_of_one_modality_has_no_curve(demo, tmp_path):
    sets = [word for s in tiny_sets("audio", "train.steps=1") for word in ("--set", s)]
    assert mbt("train", "-m", "audio", "--data", demo, "--out", "run", "-q", *sets).code == 0
    done = mbt("eval", "run", "--missing")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Error: --missing: the run has one modality, 'audio'")


@pytest.mark.parametrize("case", ["cells", "files"])
def test_training_refuses_a_modality_that_no_train_row_has(demo, tmp_path, case, silent):
    if case == "cells":
        data = cells_of(demo, tmp_path / "m.csv", lambda *_: True, audio=lambda _, split: split != "train")
    else:
        data = write_csv(
            tmp_path / "m.csv", [{"id": str(i), "path": str(silent), "label": "ab"[i % 2]} for i in range(8)]
        )
    sets = [word for s in tiny_sets() for word in ("--set", s)]
    done = mbt("train", "-m", "rgb,audio", "--data", data, "--out", "run", *sets)
    assert done.code == 1
    assert f"{data}: modality 'audio' (it reads waveform) is in none of the " in done.err
    assert "leave it out of the modalities: rgb" in done.err
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.fixture
def silent(tmp_path):
    """A film without sound."""
    import av
    import numpy as np

    path = tmp_path / "silent.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        for number in range(30):
            picture = np.full((32, 32, 3), 8 * number, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    return path

"""Modalities beside the built-in ones, and several instances of one kind, in the whole line."""

import json

import numpy as np
import pytest

from small import clips_of, mbt, read_csv, tiny_run, tiny_sets, write_csv

SHAPES = ("disc", "square", "triangle")


@pytest.fixture
def with_arrays(demo, tmp_path):
    """The small demo with a column of .npy files for a third modality; some rows have none."""
    rng = np.random.default_rng(0)
    rows = []
    for number, row in enumerate(read_csv(demo)):
        series = rng.normal(size=(2, 13)).astype(np.float32)
        series[:, SHAPES.index(row["label.kind"].split("+")[0])] += 9
        np.save(tmp_path / f"{row['id']}.npy", series)
        own = "" if number % 9 == 4 else f"{row['id']}.npy"
        rows.append({**row, "path": str(demo.parent / row["path"]), "alpha": own})
    return write_csv(tmp_path / "three.csv", rows)


def test_a_third_modality_trains_with_the_two(toys, with_arrays, tmp_path):
    """Registered through the public hook only; its channels are found in the data."""
    sets = [x for s in tiny_sets("rgb,audio", "modalities.alpha.channels=auto") for x in ("--set", s)]
    out = tmp_path / "run"
    done = mbt("train", "--data", with_arrays, "--modalities", "rgb,audio,alpha", "--out", out, *sets)
    assert done.code == 0, done.err
    assert done.out.splitlines()[2].split() == ["metric", "fused", "rgb", "audio", "alpha"]

    found = json.loads(mbt("eval", out, "--subsets", "--json").out)
    assert list(found["subsets"]) == [
        "rgb", "audio", "alpha", "rgb+audio", "rgb+alpha", "audio+alpha", "rgb+audio+alpha"]  # fmt: skip
    assert found["subsets"]["rgb+audio+alpha"] == found["metrics"]

    series = next(tmp_path.glob("test-*.npy"))
    clip = clips_of(tmp_path / "three.csv")[0]
    files = json.loads(mbt("predict", out, series, clip, "--json", "--top", 1).out)
    assert [item["modalities"] for item in files] == [["alpha"], ["rgb", "audio"]]

    report = json.loads(mbt("data", "check", with_arrays, "--modalities", "rgb,alpha", "--json").out)
    alpha = report["splits"]["train"]["modalities"]["alpha"]
    assert (alpha["present"], alpha["missing"], alpha["absent"], alpha["sizes"]) == (24, 0, 3, {"2x13": 24})


def test_the_third_modality_helps(toys, with_arrays, tmp_path):
    """It says the shape outright: what is learned from it alone beats chance by far."""
    rows = [
        {"id": row["id"], "alpha": row["alpha"], "label": row["label.kind"].split("+")[0], "split": row["split"]}
        for row in read_csv(with_arrays)
        if row["alpha"]
    ]
    data = write_csv(tmp_path / "shape.csv", rows)
    run = tiny_run(data, tmp_path / "run", "train.steps=60", "train.eval_every=60", "train.lr=0.01", modalities="alpha")
    assert run.results["top1"] > 0.9


def test_two_instances_of_one_kind(demo, tmp_path):
    """left and right have columns, settings, weights and metrics of their own."""
    rows = [{**row, "left": row["path"], "right": row["path"]} for row in read_csv(demo)]
    for row in rows:
        row["left"] = row["right"] = str(demo.parent / row.pop("path"))
    rows[0]["right"] = ""
    data = write_csv(tmp_path / "stereo.csv", rows)
    both = "left=rgb,right=rgb"
    run = tiny_run(data, tmp_path / "run", "modalities.right.frames=2", modalities=both)
    assert list(run.experiment.modalities) == ["left", "right"]
    assert [run.experiment.modalities[name].kind for name in ("left", "right")] == ["rgb", "rgb"]
    assert run.experiment.modalities["right"].frames == 2
    assert {"kind/top1[left]", "kind/top1[right]"} <= run.results.keys()
    state = run.model.state_dict()
    names = [key for key in state if key.startswith("streams.left.") and state[key].ndim > 1]
    assert all((state[key] != state[key.replace("left", "right")]).any() for key in names if "pos" not in key)
    assert run.predict(demo.parent / "clips" / "test-00000.mp4")[0].modalities == ["left", "right"]

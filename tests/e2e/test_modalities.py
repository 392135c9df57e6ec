"""Modalities beside the built-in ones, and several instances of one kind, in the whole line."""

import json

import numpy as np
import pytest

from all_modalities import make_clips
from mbt_core import ConfigError
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


@pytest.mark.slow
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
    assert {metrics["examples"] for metrics in found["subsets"].values()} == {8}  # one of nine has no alpha
    own = json.loads(mbt("eval", out, "--subsets", "--rows", "own", "--json").out)
    assert own["subsets"]["rgb+audio+alpha"] == {"examples": 9, **own["metrics"]}

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
    answers = list(run.predict_rows(data, split="test"))
    assert all(answer.modalities == ["left", "right"] for answer in answers)
    with pytest.raises(ConfigError, match="a single file does not say which of them it is; name a file for each"):
        run.predict(demo.parent / "clips" / "test-00000.mp4")


ONE_BIT_EACH = (
    "model.backbone.dim=64",
    "model.backbone.depth=2",
    "model.backbone.heads=2",
    "model.fusion.layer=1",
    "model.drop_path=0",
    "modalities.rgb.frames=1",
    "modalities.rgb.tubelet=1",
    "modalities.rgb.size=32",
    "modalities.rgb.short_side=32",
    "modalities.audio.mel_bins=32",
    "modalities.audio.patch=[16, 16]",
    "modalities.flow.frames=2",
    "modalities.flow.tubelet=1",
    "modalities.flow.size=32",
    "modalities.flow.short_side=32",
    "modalities.flow.interval=0.125",
    "modalities.flow.flip=0",
    "train.modality_dropout=0.3",
    "train.lr=0.003",
    "data.val_fraction=0",
    "data.workers=0",
)


@pytest.mark.slow  # one and two minutes
@pytest.mark.parametrize(
    ("modalities", "clips", "steps"),
    [("rgb,audio,flow", (32, 32), 150), ("rgb,audio,flow,text,accel=signal,gyro=signal", (8, 4), 300)],
    ids=["three", "six"],
)
def test_every_modality_tells_its_part(tmp_path, modalities, clips, steps):
    """One manifest, files of all kinds. All modalities beat every subset by far, and each further one helps."""
    pytest.importorskip("cv2")
    names = [name.partition("=")[0] for name in modalities.split(",")]
    data = make_clips(tmp_path, names, *clips)
    # few steps, so all of them exchange; linear patches tell bits as plain as these, and are cheaper
    stems = [f"modalities.{name}.stem=patch" for name in names if name != "text"]
    plain = ("model.fusion.exchange_drop=0", "train.label_smoothing=0", *stems)
    sets = [x for s in (*ONE_BIT_EACH, *plain, f"train.steps={steps}") for x in ("--set", s)]
    out = tmp_path / "run"
    done = mbt("train", "--data", data, "--modalities", modalities, "--out", out, *sets)
    assert done.code == 0, done.err

    done = mbt("eval", out, "--subsets", "--json")
    assert done.code == 0, done.err
    top1 = {frozenset(key.split("+")): found["top1"] for key, found in json.loads(done.out)["subsets"].items()}
    everything, examples = frozenset(names), 2 ** len(names) * clips[1]
    for subset, found in top1.items():
        print(f"{'+'.join(sorted(subset, key=names.index)):32} {found:.3f}")
    assert len(top1) == 2 ** len(names) - 1
    assert top1[everything] > 0.8
    for subset, found in top1.items():
        assert top1[everything] > 1.4 * found or subset == everything, subset
        for name in everything - subset:
            more = top1[subset | {name}]
            noise = 3 * ((found * (1 - found) + more * (1 - more)) / examples) ** 0.5
            assert more > found - noise, (subset, name)

    # a video alone has three of them; with two sensors of one kind a manifest says which file is whose
    absent = dict.fromkeys(set(names) - {"rgb", "audio", "flow"}, "")
    rows = [{"id": "one", "path": tmp_path / "test-0000.mp4", **absent}]
    done = mbt("predict", out, "--data", write_csv(tmp_path / "one.csv", rows), "--json")
    assert done.code == 0, done.err
    [prediction] = json.loads(done.out)
    assert prediction["modalities"] == ["rgb", "audio", "flow"]

"""The whole line on a small demo: train, evaluate, predict, embed; by the command line and from Python."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from media_files import sine, write_image, write_media

import mbt_core as mbt_package
from mbt_core import ConfigError, DataError
from mbt_core.evaluate.evaluator import FUSED
from mbt_core.evaluate.subsets import all_subsets, confusion
from mbt_core.media import Clip
from small import clips_of, mbt, read_csv, tiny_experiment, tiny_run, write_csv

TASKS = {"kind": 9, "sum": 3}
NAMES = ("rgb", "audio")


@pytest.fixture(scope="module")
def files(demo, tmp_path_factory):
    """A whole clip, the same without sound, its sound alone, a picture, a truncated clip, a text."""
    folder = tmp_path_factory.mktemp("files")
    whole = clips_of(demo)[0]
    with Clip(whole) as clip:
        frames = clip.frames([i / 10 for i in range(12)])
        sound = clip.waveform(0.0, 1.2, 16000)
    return {
        "mp4": whole,
        "silent": write_media(folder / "silent.mp4", frames, fps=10),
        "wav": write_media(folder / "sound.wav", audio=sound[None], audio_codec="pcm_s16le"),
        "png": write_image(folder / "still.png", frames[0]),
        "corrupt": folder / "corrupt.mp4",
        "text": folder / "note.txt",
    } | dict(_spoilt(folder, whole))


def _spoilt(folder, whole):
    (folder / "corrupt.mp4").write_bytes(whole.read_bytes()[:4000])
    (folder / "note.txt").write_text("hello")
    return ()


def test_the_run_folder_has_what_it_promises(run):
    names = {path.name for path in run.path.iterdir() if not path.name.startswith("eval-")}  # of later evaluations
    own = {"config.yaml", "config.json", "model.safetensors", "metrics.jsonl", "predictions.parquet", "state"}
    assert names - {"report.html"} == own
    header = (run.path / "config.yaml").read_text().splitlines()
    assert header[1].startswith("# started ")
    assert "torch" in header[2]
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["event"], line["step"]) for line in lines] == [
        ("step", 2), ("val", 3), ("step", 4), ("step", 6), ("val", 6), ("end", 6)]  # fmt: skip
    assert {"loss", "lr", "clips_per_second"} <= lines[0].keys()
    assert {"kind/top1", "sum/top1[rgb]", "kind/top5[audio]", "mean", "loss"} <= lines[1].keys()
    assert lines[-1]["kind/top1"] == run.results["kind/top1"]


def test_the_configuration_of_a_run_is_complete(run):
    experiment = mbt_package.load(run.path).experiment
    assert experiment.model.head.tasks == TASKS
    assert experiment.modalities["rgb"].auto_fields() == []
    assert experiment.data.path == str((run.path.parent / "small_demo" / "small.csv").resolve())


def test_evaluation_again_gives_what_training_ended_with(run):
    split, found = mbt_package.load(run.path).evaluate()
    assert split == "test"
    assert found[NAMES].metrics() == pytest.approx(run.results, abs=1e-5)
    assert found[NAMES].index.tolist() == list(range(36, 45))


def test_a_subset_is_what_the_modality_alone_says(run):
    """With two modalities, the subset of one goes through the same weights without exchange with the other."""
    _, found = run.evaluate(subsets=all_subsets(NAMES))
    _, whole = run.evaluate()
    assert list(found) == [("rgb",), ("audio",), NAMES]
    for task in TASKS:
        torch.testing.assert_close(found[NAMES].logits[FUSED][task], whole[NAMES].logits[FUSED][task])
        alone = found["rgb",]
        torch.testing.assert_close(alone.logits[FUSED][task], alone.logits["rgb"][task])
    rows = confusion(found)
    assert {(row["from"], row["adding"], row["task"]) for row in rows} == {
        (a, b, task) for a, b in (("rgb", "audio"), ("audio", "rgb")) for task in TASKS}  # fmt: skip
    for row in rows:
        before = found[(row["from"],)].metrics()[f"{row['task']}/top1"]
        after = found[NAMES].metrics()[f"{row['task']}/top1"]
        assert after - before == pytest.approx(row["gained"] - row["lost"], abs=1e-6)
        assert row["examples"] == 9


@pytest.mark.slow
def test_subsets_on_silent_clips(run, demo, files, tmp_path):
    """A subset that no clip has gives no numbers, and does not stop the others."""
    rows = [{"id": "a", "path": str(files["silent"]), "label.kind": "disc+tone", "label.sum": "0", "split": "test"}]
    done = mbt("eval", run.path, "--data", write_csv(tmp_path / "silent.csv", rows), "--subsets", "--json")
    found = json.loads(done.out)
    assert found["subsets"]["audio"] == {"examples": 0}
    assert found["subsets"]["rgb"]["loss"] == pytest.approx(found["subsets"]["rgb+audio"]["loss"], abs=1e-5)
    assert found["confusion"] == []
    assert mbt("eval", run.path, "--data", tmp_path / "silent.csv", "--subsets").code == 0


def test_predict_uses_what_a_file_has(run, files):
    kinds = ("mp4", "silent", "wav", "png")
    found = dict(zip(kinds, run.predict([files[kind] for kind in kinds], top=3), strict=True))
    assert {kind: p.modalities for kind, p in found.items()} == {
        "mp4": ["rgb", "audio"], "silent": ["rgb"], "wav": ["audio"], "png": ["rgb"]}  # fmt: skip
    for prediction in found.values():
        assert prediction.error is None
        assert [len(best) for best in prediction.top.values()] == [3, 3]
        scores = [score for _, score in prediction.top["sum"]]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1, abs=1e-5)


def test_predict_agrees_with_evaluation(run, demo):
    _, found = run.evaluate()
    for number, prediction in enumerate(run.predict(clips_of(demo), top=9)):
        scores = found[NAMES].logits[FUSED]["kind"][number].softmax(0)
        names = run.classes["kind"]
        assert prediction.top["kind"] == [(names[i], pytest.approx(float(scores[i]), abs=1e-5))
                                          for i in scores.argsort(descending=True).tolist()]  # fmt: skip


def test_a_bad_file_does_not_stop_the_others(run, files, tmp_path):
    (tmp_path / "empty").mkdir()
    given = [files["corrupt"], files["mp4"], tmp_path / "gone.mp4", files["text"], tmp_path / "empty", files["wav"]]
    done = mbt("predict", run.path, *given, "--json", "--top", 1)
    found = json.loads(done.out)
    assert done.code == 1
    assert [item["file"] for item in found] == [str(path) for path in given]
    assert [item.get("error") for item in found] == [
        "truncated: the file is shorter than it says", None, "there is no such file",
        "holds nothing that the model reads (frames or waveform)", "no file in this folder", None]  # fmt: skip
    assert done.err == "Error: 4 of 6 could not be classified\n"


def test_a_folder_is_its_files(run, demo, files, tmp_path):
    for name in ("b.mp4", "a.mp4", "deep/c.mp4", ".hidden.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(files["mp4"], tmp_path / name)
    found = run.predict(tmp_path, top=1)
    assert [p.file for p in found] == [str(tmp_path / name) for name in ("a.mp4", "b.mp4", "deep/c.mp4")]


def test_every_slides_a_window_over_a_file(run, tmp_path, files):
    rate, frames = 16000, np.zeros((40, 64, 64, 3), np.uint8)
    long = write_media(tmp_path / "long.mp4", frames, sine(4.0, rate), fps=10, rate=rate)
    length = max(m.seconds for m in run.model.modalities.values())
    found = run.predict([files["corrupt"], long, files["png"]], every=1.0)
    assert [p.start for p in found] == [None, 0.0, 1.0, 2.0, pytest.approx(4.0 - length), None]
    assert found[0].error == "truncated: the file is shorter than it says"
    assert [p.end for p in found[1:5]] == pytest.approx([length, 1 + length, 2 + length, 4.0])
    item = found[1].as_json()
    assert list(item) == ["file", "start", "end", "modalities", "top"]
    assert set(item["top"]) == {"kind", "sum"}
    with pytest.raises(ConfigError, match=r"--every -1: expected a positive number of seconds"):
        run.predict(long, every=-1)


def test_views_are_averaged_as_in_evaluation(demo, run, tmp_path, files):
    """`evaluate.average` decides for predict too."""
    shutil.copytree(run.path, tmp_path / "run")
    text = (tmp_path / "run" / "config.yaml").read_text()
    text = text.replace("views: 1", "views: 3").replace("average: logits", "average: probabilities")
    (tmp_path / "run" / "config.yaml").write_text(text)
    several = mbt_package.load(tmp_path / "run")
    _, found = several.evaluate()
    best = several.predict(clips_of(demo)[2], top=1)[0].top["sum"][0]
    scores = found[NAMES].logits[FUSED]["sum"][2].softmax(0)
    assert best[1] == pytest.approx(float(scores.max()), abs=1e-5)


def test_the_model_goes_through_save_and_load(run, demo, tmp_path):
    model = mbt_package.MBT.from_pretrained(run.path)
    model.save_pretrained(tmp_path / "copy")
    again = mbt_package.MBT.from_pretrained(tmp_path / "copy")
    assert again.classes == run.classes
    torch.testing.assert_close(again.state_dict(), run.model.state_dict(), rtol=0, atol=0)
    assert mbt_package.load(run.path).results == run.results


def test_train_takes_a_dictionary(demo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree = tiny_experiment(demo, "train.steps=1").model_dump(mode="json")
    assert mbt_package.train(tree).path.as_posix() == "runs/train"
    assert mbt_package.train(tree).path.as_posix() == "runs/train-2"
    with pytest.raises(ConfigError, match=r"train\.stepz: unknown key\. Did you mean 'steps'\?"):
        mbt_package.train({**tree, "train": {"stepz": 1}})
    with pytest.raises(ConfigError, match=r"runs/train exists and is not empty"):
        mbt_package.train(tree, "runs/train")


# embeddings


def test_embed_writes_what_the_classifier_sees(run, demo, tmp_path):
    report = run.embed(tmp_path / "e.parquet")
    table = pq.read_table(tmp_path / "e.parquet")
    assert table.column_names == ["id", "fused", "rgb", "audio"]
    assert table["id"].to_pylist() == [row["id"] for row in read_csv(demo)]
    assert (report.rows, report.width, report.failed) == (45, 32, {})
    model = run.model.eval()
    fused = torch.tensor(table["fused"].to_pylist())
    _, found = run.evaluate(split="test")
    logits = model.head.classifiers["_shared"]["kind"](fused[36:])
    torch.testing.assert_close(logits, found[NAMES].logits[FUSED]["kind"], rtol=1e-4, atol=1e-5)
    mean = (torch.tensor(table["rgb"].to_pylist()) + torch.tensor(table["audio"].to_pylist())) / 2
    torch.testing.assert_close(mean, fused, rtol=1e-4, atol=1e-5)


def test_embed_of_unlabelled_files_and_other_formats(run, demo, files, tmp_path):
    rows = [{"id": name, "path": str(files[name])} for name in ("mp4", "silent", "wav")]
    data = write_csv(tmp_path / "m.csv", rows)
    for out in ("e.parquet", "e.npz", "e.npy"):
        done = mbt("embed", run.path, "--data", data, "--out", tmp_path / out)
        assert (done.code, done.out) == (0, f"{tmp_path / out}: 3 rows, 32 numbers each\n")
    table = pq.read_table(tmp_path / "e.parquet").to_pydict()
    arrays = np.load(tmp_path / "e.npz", allow_pickle=False)
    fused = np.load(tmp_path / "e.npy", allow_pickle=False)
    assert [value is None for value in table["rgb"]] == [False, False, True]
    assert [value is None for value in table["audio"]] == [False, True, False]
    assert arrays["ids"].tolist() == ["mp4", "silent", "wav"]
    assert np.isnan(arrays["audio"]).all(1).tolist() == [False, True, False]
    np.testing.assert_array_equal(arrays["fused"], fused)
    np.testing.assert_array_equal(np.array(table["fused"], np.float32), fused)
    np.testing.assert_array_equal(arrays["rgb"][1], fused[1])  # a silent clip is its picture
    assert fused.dtype == np.float32


def test_embed_is_the_mean_over_views(run, files, tmp_path):
    rows = [{"id": str(n), "path": str(files["mp4"]), "start": s, "end": s + 1.2} for n, s in enumerate((0, 0.0))]
    data = write_csv(tmp_path / "m.csv", rows)
    run.embed(tmp_path / "one.npy", data, views=1)
    run.embed(tmp_path / "two.npy", data, views=2)
    one, two = (np.load(tmp_path / f"{name}.npy") for name in ("one", "two"))
    assert one.shape == two.shape == (2, 32)
    np.testing.assert_allclose(one, two, atol=1e-4)  # the clip is as long as the window: all its views are one


def test_embed_of_what_cannot_be_read(run, files, tmp_path):
    rows = [{"id": str(n), "path": str(files["mp4"])} for n in range(3)] + [{"id": "x", "path": str(files["corrupt"])}]
    data = write_csv(tmp_path / "m.csv", rows)
    with pytest.raises(DataError, match=r"split all: 0 of 4 named files are missing and 1 cannot be read"):
        run.embed(tmp_path / "e.npy", data)
    assert not (tmp_path / "e.npy").exists()
    shutil.copytree(run.path, tmp_path / "run")
    text = (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(text.replace("max_missing: 0.01", "max_missing: 0.5"))
    done = mbt("embed", tmp_path / "run", "--data", data, "--out", tmp_path / "e.npy")
    assert done.code == 0
    assert "1 rows could not be read and have no embedding:\n  x: " in done.err
    assert np.isnan(np.load(tmp_path / "e.npy")).all(1).tolist() == [False, False, False, True]


def test_embed_of_a_split(run, demo, tmp_path):
    run.embed(tmp_path / "e.npz", split="validation")
    ids = np.load(tmp_path / "e.npz")["ids"].tolist()
    assert ids == [row["id"] for row in read_csv(demo) if row["split"] == "val"]


def test_training_of_one_modality(demo, tmp_path):
    """A single modality has no fused column of its own, and its run can be evaluated and embedded like any."""
    single = tiny_run(demo, tmp_path / "run", "train.steps=2", modalities="audio")
    done = mbt("eval", single.path)
    assert done.out.splitlines()[2].split() == ["metric", "audio"]
    assert single.embed(tmp_path / "e.npy").rows == 45

"""Each benchmark from its annotation files and a folder of small videos to metrics, by the command line."""

import csv
import json
from fractions import Fraction

import media_files
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import average_precision_score

import small
from mbt_core import Window
from mbt_core.io import remote
from range_server import serving
from toy.fleet import evaluate, run_fleet

pytestmark = pytest.mark.slow

TINY = [
    "model.backbone={dim: 16, depth: 2, heads: 2}",
    "model.pretrained=null",
    "model.fusion.layer=1",
    "modalities.rgb.size=32",
    "modalities.rgb.patch=16",
    "modalities.rgb.frames=4",
    "modalities.audio.seconds=0.64",
    "modalities.audio.mel_bins=32",
    "train.steps=3",
    "train.epochs=null",
    "train.batch_size=4",
    "train.lr=0.05",
    "data.workers=0",
    "data.cache=none",
    "data.max_missing=0.35",
]


def mbt(*words):
    done = small.mbt(*words)
    assert done.code == 0, done.err
    return json.loads(done.out) if "--json" in words else done.out


def movie(path, seed, seconds=1.5):
    """12.5 frames a second of noise over a moving grey, with a tone."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 99, (1, 6, 8, 3)).repeat(8, 1).repeat(8, 2)
    frames = media_files.counting(round(12.5 * seconds)) // 2 + noise
    sound = media_files.sine(seconds, 16000, 200 + 50 * seed) + 0.05 * rng.normal(size=(1, round(16000 * seconds)))
    path.parent.mkdir(parents=True, exist_ok=True)
    media_files.write_media(
        path, frames.astype(np.uint8), sound.astype(np.float32), fps=Fraction(25, 2), audio_codec="flac",
        options={"strict": "experimental"},
    )  # fmt: skip


def write_csv(path, rows, header=None):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows] if header else rows)


def audioset(folder):
    """527 classes; 12 balanced and 10 eval segments, of which the last but one is missing and the last is corrupt."""
    classes = [(i, f"/m/{i:04x}", f"class {i}, or so") for i in range(527)]
    write_csv(folder / "class_labels_indices.csv", classes, ("index", "mid", "display_name"))
    for name, count in (("balanced_train", 12), ("eval", 10)):
        lines = ["# a", "# b", "# YTID, start_seconds, end_seconds, positive_labels"]
        for i in range(count):
            mids = ",".join(classes[k][1] for k in sorted({i % 5, (3 * i) % 7}))
            lines.append(f'{name[:4]}{i:07d}, 30.000, 40.000, "{mids}"')
            place(folder, f"{name[:4]}{i:07d}_30.000.mp4", i, count)
        (folder / f"{name}_segments.csv").write_text("\n".join(lines) + "\n")


def vggsound(folder):
    write_csv(folder / "stat.csv", [(f"class {i}, sounding", 700, "things") for i in range(309)])
    rows = []
    for split, count in (("train", 12), ("test", 10)):
        for i in range(count):
            rows.append((f"{split:<5}{i:06d}".replace(" ", "-"), i, f"class {i % 5}, sounding", split))
            place(folder, f"{rows[-1][0]}_{i:06d}.mp4", i, count)
    write_csv(folder / "vggsound.csv", rows)


def epic(folder):
    """Actions in untrimmed videos: three to a video of 4 s."""
    for task, count in (("verb", 97), ("noun", 300)):
        rows = [(i, f"{task} {i}", "[]", "c") for i in range(count)]
        write_csv(folder / f"EPIC_100_{task}_classes.csv", rows, ("id", "key", "instances", "category"))
    header = ("narration_id", "video_id", "start_timestamp", "stop_timestamp", "verb_class", "noun_class")
    for name, videos in (("train", range(1, 5)), ("validation", range(5, 9))):
        rows = []
        for video in videos:
            for k in range(3):
                start, stop = f"00:00:0{k}.50", f"00:00:0{k + 1}.25"
                rows.append((f"P01_0{video}_{k}", f"P01_0{video}", start, stop, k, (k + video) % 4))
            place(folder, f"P01_0{video}.MP4", video - videos[0], 5, 4.0)
        write_csv(folder / f"EPIC_100_{name}.csv", rows, header)


def place(folder, name, number, count, seconds=1.5):
    """The video; of `count` the last is corrupt and the last but one is not there."""
    path = folder / "media" / name
    if number != count - 2:
        movie(path, number, seconds)
    if number == count - 1:
        path.write_bytes(path.read_bytes()[:700])


CASES = {
    "audioset": (audioset, "audioset-mini", {"label": 527}, "test"),
    "vggsound": (vggsound, "vggsound", {"label": 309}, "test"),
    "epic-kitchens-100": (epic, "epic-kitchens-100", {"verb": 97, "noun": 300}, "val"),
}


@pytest.mark.parametrize("name", CASES)
def test_from_annotations_to_metrics(tmp_path, name):
    make, recipe, classes, split = CASES[name]
    make(tmp_path)
    manifest, shards, run = tmp_path / "manifest.parquet", tmp_path / "shards", tmp_path / "run"
    folders = ("--annotations", tmp_path, "--media", tmp_path / "media")
    built = mbt("data", "build", name, *folders, "--out", manifest, "--json")
    missing = {"audioset": [1, 1], "vggsound": [1, 1], "epic-kitchens-100": [3, 3]}[name]
    assert [found["missing"]["path"] for found in built["splits"].values()] == missing

    checked = mbt("data", "check", manifest, "--json")
    assert checked["classes"] == classes
    assert checked["splits"][split]["modalities"]["audio"]["unreadable"] == (0 if "epic" in name else 1)

    packed = mbt("data", "pack", manifest, "--out", shards, "--fps", 25, "--window", 2, "--shard-size", 5, "--json")
    assert packed["shards"] == packed["shards_done"] > 1
    assert mbt("data", "check", shards, "--json")["classes"] == classes

    sets = [word for setting in TINY for word in ("--set", setting)]
    mbt("train", "--recipe", recipe, "--data", manifest, "--out", run, *sets)
    of_files = mbt("eval", run, "--data", manifest, "--json")
    table = pq.read_table(run / f"eval-manifest-{split}/predictions.parquet")
    of_shards = mbt("eval", run, "--data", shards, "--json")
    assert of_files["split"] == split
    assert (of_files["examples"], of_files["failed"]) == (of_shards["examples"], of_shards["failed"])
    assert of_files["metrics"].keys() == of_shards["metrics"].keys()
    logits = "logits" if "label" in classes else "verb/logits"
    again = pq.read_table(run / f"eval-shards-{split}/predictions.parquet")
    for mine, theirs in zip(again[logits].to_pylist(), table[logits].to_pylist(), strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            np.testing.assert_allclose(mine, theirs, atol=0.05)
    by_hand(name, of_files["metrics"], table)
    mbt("train", "--recipe", recipe, "--data", shards, "--out", tmp_path / "of_shards", *sets)


def by_hand(name, metrics, table):
    """The metrics again, from the table of predictions."""
    good = table.filter(table["logits" if name != "epic-kitchens-100" else "verb/logits"].is_valid())
    for source in ("", "[rgb]", "[audio]"):
        if name == "audioset":
            target, logits = (np.array(good[c].to_pylist()) for c in ("target", f"logits{source}"))
            used = target.any(0)
            scores = zip(target.T[used], logits.T[used], strict=True)
            expected = np.mean([average_precision_score(y, x) for y, x in scores])
            assert metrics[f"mAP{source}"] == pytest.approx(expected, abs=1e-6)
        elif name == "vggsound":
            target, logits = (np.array(good[c].to_pylist()) for c in ("target", f"logits{source}"))
            assert metrics[f"top1{source}"] == pytest.approx((logits.argmax(1) == target).mean())
            best = np.argsort(-logits, 1)[:, :5]
            assert metrics[f"top5{source}"] == pytest.approx((best == target[:, None]).any(1).mean())
        else:
            right = []
            for task in ("verb", "noun"):
                target, logits = (np.array(good[c].to_pylist()) for c in (f"{task}/target", f"{task}/logits{source}"))
                right.append(logits.argmax(1) == target)
                assert metrics[f"{task}/top1{source}"] == pytest.approx(right[-1].mean())
            assert metrics[f"action/top1{source}"] == pytest.approx((right[0] & right[1]).mean())
            assert metrics[f"action/top5{source}"] >= metrics[f"action/top1{source}"]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A run on AudioSet, its manifest, and that packed."""
    folder = tmp_path_factory.mktemp("evaluated")
    audioset(folder)
    manifest, shards, run = folder / "manifest.parquet", folder / "shards", folder / "run"
    mbt("data", "build", "audioset", "--annotations", folder, "--media", folder / "media", "--out", manifest)
    mbt("data", "pack", manifest, "--out", shards, "--quality", 95, "--shard-size", 8)
    sets = [word for setting in TINY for word in ("--set", setting)]
    mbt("train", "--recipe", "audioset-mini", "--data", manifest, "--out", run, *sets)
    return run, manifest, shards


def read_by(run, data, workers):
    """Metrics, failed rows and fused logits of an evaluation in this process."""
    from mbt_core.run import load

    opened = load(run)
    opened.experiment.data.workers = workers
    found = opened.evaluate(data, device="cpu")[1]["rgb", "audio"]
    return found.metrics(), sorted(found.failed), found.logits[""]["label"]


def test_neither_files_nor_processes_change_the_metrics(evaluated, tmp_path, monkeypatch):
    """From videos, shards and shards by URL, with 0, 1 and 2 reading processes, in 1 and 2 processes."""
    run, manifest, shards = evaluated
    monkeypatch.setenv("MBT_CACHE", str(tmp_path / "cache"))
    expected = {}
    with serving(shards.parent) as served:
        for data in (manifest, shards, f"{served.url}/shards"):
            metrics, failed, logits = expected[data] = read_by(run, data, 0)
            assert len(failed) == 2
            for workers in (1, 2):
                again = read_by(run, data, workers)
                assert again[:2] == (metrics, failed)
                assert again[2].equal(logits)
            for workers in (1,) if "://" in str(data) else (0, 2):
                out = tmp_path / "two.json"
                ended = run_fleet(2, evaluate, run, str(data), workers, out, timeout=200.0)
                assert [one.code for one in ended] == [0, 0], ended[0].said
                found = json.loads(out.read_text())
                assert found["failed"] == failed
                assert found["metrics"] == pytest.approx(metrics, abs=1e-6)
                out.unlink()
    videos, packed, far = expected.values()
    assert far[0] == packed[0]
    np.testing.assert_allclose(packed[2], videos[2], atol=0.02)
    assert packed[0]["loss"] == pytest.approx(videos[0]["loss"], rel=1e-3)
    for metric, value in videos[0].items():  # the packed sound is that of the file, bit for bit
        assert packed[0][metric] == pytest.approx(value, abs=1e-6 if "[audio]" in metric else 0.1)


def test_metrics_are_those_of_a_plain_loop(evaluated):
    """Clip by clip and view by view, with scikit-learn's average precision and nothing of loader or evaluator."""
    from mbt_core.config import DataConfig
    from mbt_core.data.manifest import Manifest
    from mbt_core.media import MediaError, exists, open_clip
    from mbt_core.run import load

    run, path, shards = evaluated
    for data in (path, shards):
        opened = load(run)
        model = opened.model
        reads = {name: m.reads for name, m in model.modalities.items()}
        manifest = Manifest.read(data, reads, DataConfig())
        prepare = {name: m.preprocessor().eval() for name, m in model.modalities.items()}
        logits, targets, rows = {"": [], "rgb": [], "audio": []}, [], []
        for index in manifest.rows("test"):
            source = manifest.row(index).sources["rgb"]
            if source is None or not exists(source.path):
                continue
            views = []
            try:
                with open_clip(source.path) as clip:
                    for view in range(4):
                        inputs = {}
                        for name, modality in model.modalities.items():
                            start = view / 3 * max(0.0, clip.duration_of(modality.reads) - modality.seconds)
                            sample = modality.read(clip, Window(start, start + modality.seconds), None)
                            inputs[name] = prepare[name](modality.collate([sample]))
                        with torch.inference_mode():
                            out = model(inputs)
                        views.append({"": out.logits, **out.modality_logits})
            except MediaError:
                continue
            for name, found in logits.items():
                found.append(torch.stack([view[name][0] for view in views]).mean(0).numpy())
            targets.append(manifest.labels["label"].target(index))
            rows.append(index)
        metrics, failed, _ = read_by(run, data, 0)
        assert len(rows) == len(manifest.rows("test")) - len(failed) == 8
        target = np.stack(targets)
        used = target.any(0)
        for name, found in logits.items():
            expected = average_precision_score(target[:, used], np.stack(found)[:, used], average="macro")
            assert metrics[f"mAP[{name}]" if name else "mAP"] == pytest.approx(expected, abs=1e-6)


def test_training_from_a_server_is_training_from_here(evaluated, tmp_path, monkeypatch):
    _, _, shards = evaluated
    monkeypatch.setenv("MBT_CACHE", str(tmp_path / "cache"))
    sets = [word for setting in (*TINY, "data.workers=1") for word in ("--set", setting)]
    with serving(shards.parent) as served:
        url = f"{served.url}/shards"
        for name, data in (("here", shards), ("there", url)):
            mbt("train", "--recipe", "audioset-mini", "--data", data, "--out", tmp_path / name, *sets)
        assert mbt("data", "check", url, "--json")["classes"] == {"label": 527}
        assert small.mbt("data", "pack", url, "--out", tmp_path / "again").code == 2
        monkeypatch.setattr(remote, "_asked", set())  # as a later process: it was trained here
        again = mbt("eval", tmp_path / "there", "--json")  # its configuration names the URL
    assert (tmp_path / "there/model.safetensors").read_bytes() == (tmp_path / "here/model.safetensors").read_bytes()
    assert again["metrics"] == mbt("eval", tmp_path / "here", "--json")["metrics"]


def test_vggsounder_judges_a_model_of_vggsound(tmp_path):
    vggsound(tmp_path)
    rows = [(f"test-{i:06d}_{i:06d}", f"class {k}, sounding", "AV") for i in range(8) for k in (i % 5, i % 5 + 10)]
    write_csv(tmp_path / "vggsounder.csv", rows, ("video_id", "label", "modality"))
    folders = ("--annotations", tmp_path, "--media", tmp_path / "media")
    for name in ("vggsound", "vggsounder"):
        mbt("data", "build", name, *folders, "--out", tmp_path / f"{name}.csv")
    sets = [word for setting in (*TINY, "model.head.task=multilabel") for word in ("--set", setting)]
    mbt("train", "--recipe", "vggsound", "--data", tmp_path / "vggsound.csv", "--out", tmp_path / "run", *sets)
    found = mbt("eval", tmp_path / "run", "--data", tmp_path / "vggsounder.csv", "--json")
    assert found["examples"] == 8
    assert 0 < found["metrics"]["mAP"] <= 1
    assert np.sum(pq.read_table(tmp_path / "run/eval-vggsounder-test/predictions.parquet")["target"].to_pylist()) == 16

"""Ways to train on a small demo: what is configured happens, and what must not matter does not."""

import csv
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mbt_core import ConfigError, DataError, run
from mbt_core.errors import MBTWarning
from mbt_core.training.events import Listener
from mbt_core.training.loggers import read_metrics
from mbt_core.training.loop import Trainer
from mbt_core.training.state import FILE, load_state, read_progress
from small import clips_of, mbt, read_csv, tiny_experiment, tiny_run, tiny_sets, write_csv


def weights(run):
    return load_file(run.path / "model.safetensors")


def last_weights(run):
    return load_state(run.path / "state")[0]


def same(one, other, **tolerance):
    torch.testing.assert_close(one, other, **(tolerance or {"rtol": 0, "atol": 0}))


@pytest.fixture
def labelled(demo, tmp_path):
    """Writes a manifest of the small demo with one label column made from (shape, sound)."""

    def write(label, name="m.csv"):
        rows = [
            {"id": row["id"], "path": str(demo.parent / row["path"]), "split": row["split"],
             "label": label(*row["label.kind"].split("+"))}
            for row in read_csv(demo)
        ]  # fmt: skip
        return write_csv(tmp_path / name, rows)

    return write


@pytest.mark.slow
def test_the_number_of_workers_does_not_matter(demo, tmp_path):
    sets = ("data.cache=none", "train.modality_dropout=0.3", "train.mixup=0.3", "modalities.rgb.colour_jitter=0.5")
    runs = [tiny_run(demo, tmp_path / str(n), *sets, f"data.workers={n}") for n in (0, 1, 2)]
    for other in runs[1:]:
        assert (other.path / "model.safetensors").read_bytes() == (runs[0].path / "model.safetensors").read_bytes()
        same(last_weights(other), last_weights(runs[0]))


@pytest.mark.slow
def test_the_cache_does_not_matter(demo, tmp_path, monkeypatch):
    monkeypatch.setenv("MBT_CACHE", str(tmp_path / "cache"))
    runs = [tiny_run(demo, tmp_path / cache, f"data.cache={cache}") for cache in ("none", "memory", "disk")]
    for other in runs[1:]:
        same(weights(other), weights(runs[0]))


def test_the_test_split_is_not_looked_for_in_memory(demo, tmp_path, monkeypatch):
    """None of its clips is there: it is read as without a cache, by as many processes."""
    caches, evaluate = {}, run.evaluate_split

    def noting(experiment, model, manifest, split, *arguments):
        caches[split] = arguments[5]
        return evaluate(experiment, model, manifest, split, *arguments)

    monkeypatch.setattr(run, "evaluate_split", noting)
    tiny_run(demo, tmp_path / "run", "data.cache=memory", "train.steps=3")
    assert caches["val"].complete
    assert caches["test"] is None


@pytest.mark.slow
def test_a_batch_in_parts_is_the_same_batch(demo, tmp_path):
    sets = ("train.optimizer=sgd", "train.lr=0.1", "train.modality_dropout=0.4", "model.drop_path=0")
    runs = [tiny_run(demo, tmp_path / str(n), *sets, f"train.accumulate={n}") for n in (1, 3, 8)]
    for other in runs[1:]:
        same(last_weights(other), last_weights(runs[0]), rtol=1e-4, atol=1e-5)
    losses = [read_metrics(run.path / "metrics.jsonl")[0]["loss"] for run in runs]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


@pytest.mark.slow
def test_the_seed_decides(demo, tmp_path):
    runs = [tiny_run(demo, tmp_path / name, f"train.seed={seed}") for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    same(weights(runs[0]), weights(runs[1]))
    assert not torch.equal(weights(runs[0])["head.norms._shared.weight"], weights(runs[2])["head.norms._shared.weight"])


def test_bf16_computes_in_bf16_and_keeps_weights_in_fp32(demo, tmp_path):
    run = tiny_run(demo, tmp_path / "run", "train.precision=bf16", "train.log_every=1")
    plain = tiny_run(demo, tmp_path / "plain", "train.log_every=1")
    assert {tensor.dtype for tensor in weights(run).values()} == {torch.float32}
    mixed, full = ([line["loss"] for line in read_metrics(r.path / "metrics.jsonl") if line["event"] == "step"]
                   for r in (run, plain))  # fmt: skip
    assert mixed != full
    assert mixed == pytest.approx(full, rel=0.02)


@pytest.mark.slow  # the compiler takes half a minute
def test_compiled_blocks_train_the_same(demo, tmp_path):
    from torch._dynamo.utils import counters

    still = "model.drop_path=0"  # compiled, stochastic depth draws other numbers
    plain = tiny_run(demo, tmp_path / "plain", still)
    counters.clear()
    compiled = tiny_run(demo, tmp_path / "compiled", still, "train.compile=true")
    assert counters["stats"]["calls_captured"] > 0
    same(last_weights(compiled), last_weights(plain), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sets", [
    ("train.mixup=0.5", "train.label_smoothing=0.1", "train.modality_dropout=0.5"),
    ("train.mixup=0.5", "train.mixup_per_modality=true", "train.modality_dropout={audio: 0.5}"),
    ("model.pool=mean-joint", "train.mixup=0.5", "model.shared_encoder=true", "train.lr_factors={audio: 0.1}"),
    ("train.optimizer=sgd", "train.lr=0.1", "model.head.modality_weights={rgb: 2}", "model.checkpointing=true"),
], ids=["mixup", "mixup per modality", "joint", "sgd"])  # fmt: skip
def test_what_can_be_switched_on_together(demo, tmp_path, sets):
    run = tiny_run(demo, tmp_path / "run", *sets, "train.steps=2")
    assert 0 < run.results["loss"] < 3
    assert ("kind/top1[rgb]" in run.results) == ("model.pool=mean-joint" not in sets)


@pytest.mark.parametrize("strategy",
    ["bottleneck", "bottleneck-sequential", "cross-attention", "self-attention", "late"])  # fmt: skip
def test_every_strategy_goes_the_whole_way(demo, tmp_path, strategy):
    out = tmp_path / "run"
    sets = [f"model.fusion.strategy={strategy}", "train.steps=1"]
    run = tiny_run(demo, out, *sets)
    _, found = run.evaluate()
    assert found["rgb", "audio"].metrics() == pytest.approx(run.results, abs=1e-5)


@pytest.mark.slow
def test_frozen_parts_stay(demo, tmp_path):
    run = tiny_run(demo, tmp_path / "run", "train.tune=head", "train.steps=3")
    fresh = tiny_run(demo, tmp_path / "fresh", "train.tune=head", "train.steps=1", "train.lr=1e-30")
    changed = {name for name, value in weights(run).items() if not torch.equal(value, weights(fresh)[name])}
    assert changed == {name for name in weights(run) if name.startswith("head.classifiers")}


@pytest.mark.slow
def test_learning_is_seen_in_the_loss(labelled, tmp_path):
    """120 steps learn three shapes by heart."""
    run = tiny_run(labelled(lambda shape, sound: shape), tmp_path / "run", "train.steps=120", "train.lr=0.003",
                   "train.eval_every=120", "data.cache=memory")  # fmt: skip
    losses = [line["loss"] for line in read_metrics(run.path / "metrics.jsonl") if line["event"] == "step"]
    assert losses[0] == pytest.approx(np.log(3), abs=0.2)
    assert losses[-1] < 0.5 * losses[0]


def test_multilabel(labelled, tmp_path):
    run = tiny_run(labelled(lambda shape, sound: f"{shape};{sound}"), tmp_path / "run")
    assert run.experiment.model.head.task == "multilabel"
    assert run.classes == {"label": ["bursts", "disc", "square", "sweep", "tone", "triangle"]}
    assert run.results.keys() == {*(f"{m}{s}" for m in ("mAP", "macro_f1") for s in ("", "[rgb]", "[audio]")), "loss"}
    lines = read_metrics(run.path / "metrics.jsonl")
    best = max(line["mAP"] for line in lines if line["event"] == "val")
    assert read_progress(run.path / "state").best == best


def test_regression(labelled, demo, tmp_path):
    data = labelled(lambda shape, sound: f"{len(shape) / 4};{len(sound) / 4}")
    run = tiny_run(data, tmp_path / "run", "model.head.task=regression")
    names = [f"{metric}{source}" for metric in ("mae", "rmse", "r2", "pearson") for source in ("", "[rgb]", "[audio]")]
    assert run.results.keys() == {*names, "loss"}
    done = mbt("predict", run.path, clips_of(demo)[0])
    assert done.code == 0
    assert [line.split()[:2] for line in done.out.rstrip().splitlines()[-2:]] == [["label", "1"], ["label", "2"]]
    assert "█" not in done.out


@pytest.mark.slow
def test_several_tasks_with_weights(demo, tmp_path):
    run = tiny_run(demo, tmp_path / "run", "model.head.task_weights={kind: 0}", "train.steps=2")
    before = tiny_run(demo, tmp_path / "before", "train.lr=1e-30", "train.steps=1")
    moved = {name for name, value in weights(run).items() if (value - weights(before)[name]).abs().max() > 1e-9}
    assert "head.classifiers._shared.sum.bias" in moved
    assert "head.classifiers._shared.kind.bias" not in moved


def test_the_balanced_sampler_evens_out_the_classes(labelled, tmp_path, monkeypatch):
    drawn = []
    data = labelled(lambda shape, sound: "rare" if (shape, sound) == ("disc", "tone") else "common")

    class Count(Listener):
        def epoch(self, step, metrics):
            drawn.append(step)

    targets = []
    train_step = Trainer.train_step

    def spy(self, batch, *rest):
        targets.extend(batch.targets["label"].tolist())
        return train_step(self, batch, *rest)

    monkeypatch.setattr(Trainer, "train_step", spy)
    sets = ("train.steps=40", "train.eval_every=40", "model.backbone.dim=8", "data.cache=memory")
    tiny_run(data, tmp_path / "run", *sets, "data.sampler=balanced", listeners=[Count()])
    assert drawn == [40]
    assert len(targets) == 320
    assert 0.35 < np.mean(targets) < 0.65
    rare = sum(row["label"] == "rare" for row in read_csv(data) if row["split"] == "train")
    assert rare / 27 < 0.2


def test_early_stopping(demo, tmp_path):
    run = tiny_run(demo, tmp_path / "run", "train.steps=60", "train.lr=1e-30", "train.patience=2")
    steps = [line["step"] for line in read_metrics(run.path / "metrics.jsonl") if line["event"] == "val"]
    assert steps == [3, 6, 9]  # the best, and two without improvement
    progress = read_progress(run.path / "state")
    assert (progress.step, progress.best_step, progress.stale, progress.finished) == (9, 3, 2, True)


def test_the_best_weights_are_those_of_the_monitored_metric(demo, tmp_path):
    """A rate that is far too high: the loss on val rises, and the lowest is what counts."""
    sets = ("train.steps=12", "train.optimizer=sgd", "train.lr=30", "train.warmup=0")
    run = tiny_run(demo, tmp_path / "run", *sets, "train.monitor=loss")
    losses = {x["step"]: x["loss"] for x in read_metrics(run.path / "metrics.jsonl") if x["event"] == "val"}
    progress = read_progress(run.path / "state")
    assert list(losses) == [3, 6, 9, 12]
    assert progress.best_step == min(losses, key=losses.get)
    assert progress.best == -min(losses.values())
    _, found = run.evaluate(split="val")
    assert found["rgb", "audio"].metrics()["loss"] == pytest.approx(min(losses.values()), rel=1e-4)


def test_without_val_the_last_weights_are_the_best(labelled, tmp_path):
    rows = [row for row in read_csv(labelled(lambda shape, sound: shape)) if row["split"] != "val"]
    run = tiny_run(write_csv(tmp_path / "noval.csv", rows), tmp_path / "run")
    same(weights(run), last_weights(run))
    assert not any(line["event"] == "val" for line in read_metrics(run.path / "metrics.jsonl"))


def test_the_state_keeps_the_last_weights_and_not_the_best(demo, tmp_path):
    run = tiny_run(demo, tmp_path / "run", "train.steps=9", "train.lr=0.05", "train.patience=1", "train.monitor=loss")
    progress = read_progress(run.path / "state")
    assert progress.finished
    if progress.best_step < progress.step:
        assert not torch.equal(
            last_weights(run)["head.norms._shared.weight"], weights(run)["head.norms._shared.weight"]
        )


@pytest.mark.slow
def test_loggers(demo, tmp_path):
    pytest.importorskip("tensorboard")
    run = tiny_run(demo, tmp_path / "run", "train.loggers=[tensorboard]")
    events = b"".join(path.read_bytes() for path in (run.path / "tensorboard").glob("events*"))
    for tag in (b"train/loss", b"train/lr", b"val/kind/top1", b"test/sum/top1[rgb]"):
        assert tag in events
    for tag in (b"kind/Confusion", b"sum/Calibration", b"hardest/1", b"attention/1"):
        assert tag in events
    assert events.count(b"\x89PNG") > 8
    assert not (run.path / "metrics.jsonl").exists()


@pytest.fixture
def spoilt(labelled, demo, tmp_path):
    """A manifest with one truncated training clip, and one that is not there."""
    rows = read_csv(labelled(lambda shape, sound: shape))
    (tmp_path / "bad.mp4").write_bytes(clips_of(demo, "train")[0].read_bytes()[:4000])
    rows[0]["path"] = "bad.mp4"
    rows[1]["path"] = "gone.mp4"
    return write_csv(tmp_path / "spoilt.csv", rows)


def test_bad_clips_are_counted(spoilt, tmp_path):
    run = tiny_run(spoilt, tmp_path / "run", "data.max_missing=0.1", "train.steps=auto", "train.epochs=2")
    with (run.path / "bad_clips.csv").open() as file:
        found = list(csv.DictReader(file))
    first, second = (row["id"] for row in read_csv(spoilt)[:2])
    assert [row["id"] for row in found] == [first, second]
    assert found[0]["error"].endswith("bad.mp4: truncated: the file is shorter than it says")
    assert found[1]["error"].endswith("gone.mp4: there is no such file")


def test_too_many_bad_clips_stop_the_run(spoilt, tmp_path):
    with pytest.raises(DataError, match=r"split train: 1 of 27 named files are missing, more than the 1\.00%"):
        tiny_run(spoilt, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(DataError, match=r"1 of 27 named files are missing and 1 cannot be read, more than the 5\.00%"):
        tiny_run(spoilt, tmp_path / "run", "data.max_missing=0.05", "train.steps=20")
    assert "bad.mp4" in (tmp_path / "run" / "bad_clips.csv").read_text()


def test_bad_clips_of_val_and_test(labelled, tmp_path):
    rows = read_csv(labelled(lambda shape, sound: shape))
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    for row in (rows[27], rows[36]):
        row["path"] = "bad.mp4"
    data = write_csv(tmp_path / "bad.csv", rows)
    with pytest.raises(DataError, match=r"split val: 0 of 9 named files are missing and 1 cannot be read"):
        tiny_run(data, tmp_path / "strict", "data.max_missing=0.1")
    run = tiny_run(data, tmp_path / "run", "data.max_missing=0.2")
    found = [row["id"] for row in csv.DictReader((run.path / "bad_clips.csv").open())]
    assert sorted(found) == sorted([rows[27]["id"], rows[36]["id"]])


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(demo, tmp_path):
    sets = ("train.optimizer=sgd", "train.lr=1e30", "train.clip_grad=null", "train.warmup=0", "train.steps=20")
    done = mbt("train", "--data", demo, "--modalities", "rgb", "--out", tmp_path / "run", "-q",
               *(x for s in sets for x in ("--set", s)))  # fmt: skip
    assert done.code == 1
    assert "start again with a lower train.lr (it was 1e+30), or with train.clip_grad=1" in done.err


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    MemoryError(),
], ids=["cuda", "cpu", "python"])  # fmt: skip
def test_out_of_memory_says_what_to_lower(demo, tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(Trainer, "train_step", fail)
    sets = [x for s in tiny_sets("audio") for x in ("--set", s)]
    done = mbt("train", "--data", demo, "--modalities", "audio", "--out", tmp_path / "run", "-q", *sets)
    assert (done.code, done.err) == (1, "Error: out of memory with train.batch_size=8, train.accumulate=1: compute the "
                                     "batch in more parts (train.accumulate=4), lower train.batch_size, or set "
                                     "model.checkpointing=true\n")  # fmt: skip


@pytest.mark.parametrize(("task", "label", "main"), [
    ("multilabel", ";", "mAP"), ("regression", "1.5", "r2")])  # fmt: skip
def test_a_val_split_that_says_nothing(labelled, tmp_path, task, label, main):
    """No positives, or one row only: the metric has no value, and the last weights are the best."""
    train_label = "a;b" if task == "multilabel" else "2.5"
    rows = read_csv(labelled(lambda shape, sound: train_label))
    rows = [row for row in rows if row["split"] != "val"] + [{**rows[27], "label": label}]
    sets = (f"model.head.task={task}", "train.patience=1")
    with pytest.warns(MBTWarning, match=f"val says nothing about {main}") as said:
        run = tiny_run(write_csv(tmp_path / "one.csv", rows), tmp_path / "run", *sets)
    assert sum("val says nothing" in str(warning.message) for warning in said) == 1
    progress = read_progress(run.path / "state")
    assert (progress.step, progress.best, progress.best_step, progress.stale) == (6, None, 6, 0)
    same(weights(run), last_weights(run))
    lines = [line for line in (run.path / "metrics.jsonl").read_text().splitlines() if '"val"' in line]
    assert all(json.loads(line).get(main) is None for line in lines)
    assert "NaN" not in "".join(lines)


def test_a_failure_before_training_leaves_no_folder(demo, tmp_path):
    for sets, message in [
        (("train.freeze=[nothing*]",), r"train\.freeze: 'nothing\*' matches no parameter"),
        (("train.monitor=top9",), r"train\.monitor: unknown metric 'top9'. .*Known: .*kind/top1"),
        (("model.pretrained=nowhere",), r"model\.pretrained"),
        (("model.head.task={knd: single}",), r"unknown task 'knd'\. Did you mean 'kind'\?"),
    ]:
        with pytest.raises(ConfigError, match=message):
            tiny_run(demo, tmp_path / "run", *sets)
        assert not (tmp_path / "run").exists()


def test_the_device_is_looked_for_first(demo, tmp_path):
    from mbt_core.run import Hardware

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=r"--device cuda: not available here; available: cpu"):
        tiny_run(demo, tmp_path / "run", hardware=Hardware("cuda"))
    assert not (tmp_path / "run").exists()


def test_batch_size_auto(demo, tmp_path):
    run = tiny_run(demo, tmp_path / "run", "train.batch_size=auto", "train.steps=1")
    assert run.experiment.train.batch_size == 64  # without a GPU


def test_the_data_set_of_a_recipe_is_found_again(demo, tmp_path, monkeypatch):
    """A run on a data set that makes itself does not depend on where that was made."""
    from mbt_core.data import source

    monkeypatch.setattr(source, "make_dataset", lambda name: {"demo": demo}[name])
    experiment = tiny_experiment(demo, "train.steps=1")
    experiment.data.path, experiment.data.dataset = None, "demo"
    from mbt_core.run import load, train

    run = train(experiment, tmp_path / "run")
    assert load(run.path).experiment.data.path is None
    _, found = load(run.path).evaluate()
    assert len(found["rgb", "audio"].index) == 9
    with pytest.raises(ConfigError, match=r"--data .*nowhere\.csv: no such file or folder"):
        load(run.path).evaluate("nowhere.csv")


def test_another_manifest_is_read_without_the_run_s_split_rules(demo, labelled, tmp_path):
    rows = [{**row, "speaker": row["id"][-1]} for row in read_csv(labelled(lambda shape, sound: shape))]
    for row in rows:
        del row["split"]
    data = write_csv(tmp_path / "spoken.csv", rows)
    run = tiny_run(data, tmp_path / "run", "data.folds=3", "data.group=speaker", "train.steps=1")
    other = labelled(lambda shape, sound: shape, "other.csv")
    split, found = run.evaluate(other, "train")
    assert (split, len(found["rgb", "audio"].index)) == ("train", 27)


@pytest.mark.slow
def test_the_command_is_noted(demo, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/usr/bin/mbt", "train", "--set", "a=b\nc: d"])
    out = tmp_path / "run"
    sets = (x for s in ["model.backbone.dim=8", "train.steps=1"] for x in ("--set", s))
    assert mbt("train", "--data", demo, "-m", "audio", "--out", out, "-q", *sets).code == 0
    assert (out / "config.yaml").read_text().startswith("# mbt train --set 'a=b c: d'\n# started ")
    assert json.loads((out / "config.json").read_text())["classes"]["sum"] == ["0", "1", "2"]
    assert (out / "state" / FILE).exists()

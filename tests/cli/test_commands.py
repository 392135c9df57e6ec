"""What the commands print: a result on stdout, everything else on stderr; with --json one document and nothing else."""

import json
import math
import re
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from mbt_cli.output import print_json, show, table
from mbt_core.run import load
from small import clips_of, mbt, read_csv, tiny_sets, write_csv


def columns(text):
    """The table rows of an output, cell by cell; without rules and titles."""
    return [line.split() for line in text.splitlines() if "  " in line.strip() and "─" not in line]


def flags(*sets, modalities="rgb,audio"):
    return [x for s in tiny_sets(modalities, *sets) for x in ("--set", s)]


def test_train_says_what_it_chose_and_what_came_out(demo, tmp_path):
    done = mbt("train", "--data", demo, "--modalities", "rgb,audio", "--out", "run", *flags())
    assert done.code == 0
    said = done.err.splitlines()
    assert said[0].startswith("recipe small: rgb + audio, dim 32, depth 2, from scratch, bottleneck from layer 1, ")
    assert said[0].endswith("adamw 0.001, batch 8, steps 6")
    assert said[1].startswith("the decoded clips of 36 rows are kept in memory: ")
    assert said[2] == "run folder run"
    assert [line.split("  val: ")[0] for line in said if "val:" in line] == ["step 3", "step 6"]
    assert said[-3].startswith("step 6/6  loss ")
    shown = columns(done.out)
    assert done.out.startswith("test split, run\n")
    assert shown[0] == ["metric", "fused", "rgb", "audio"]
    assert [row[0] for row in shown[1:]] == [
        *("examples", "kind/top1", "kind/top5", "kind/macro_f1", "kind/balanced_accuracy"),
        *("sum/top1", "sum/macro_f1", "sum/balanced_accuracy", "loss"),
    ]
    assert shown[1][1:] == ["9", "9", "9"]
    assert all(len(cell) == 6 for row in shown[2:10] for cell in row[1:])

    again = mbt("train", "--data", demo, "--modalities", "rgb,audio", "--out", "run", *flags())
    assert again.code == 2
    assert again.err == ("Error: run exists and is not empty; go on with it by --resume run, or choose another --out\n")


def test_train_without_a_test_split_and_quiet(demo, tmp_path):
    rows = [{**row, "path": str(demo.parent / row["path"])} for row in read_csv(demo) if row["split"] == "train"]
    data = write_csv(tmp_path / "train.csv", rows)
    for out in ("runs/small-rgb", "runs/small-rgb-2"):
        done = mbt("train", "--data", data, "-m", "rgb", "-q", *flags("train.steps=1", modalities="rgb"))
        assert (done.code, done.out, done.err) == (0, f"no test split; the model is in {out}\n", "")


def test_flags_for_common_settings(demo, tmp_path):
    done = mbt("train", "--data", demo, "-m", "audio", "--out", "run", "--tune", "head", "--precision", "bf16",
               "--device", "cpu", "--show-init", *flags("train.steps=1", modalities="audio"))  # fmt: skip
    assert done.code == 0
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert "tune: head\n" in text
    assert "precision: bf16\n" in text
    assert "initial weights\n" in done.out
    plain = mbt("train", "--data", demo, "-m", "audio", "--out", "plain", "--precision", "32", "-q",
                *flags("train.steps=1", modalities="audio"))  # fmt: skip
    assert plain.code == 0
    report = json.loads(mbt("eval", "run", "--json").out)  # mixed precision brings no lines of others with it
    assert report["examples"] == 9


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["fused", "head"])
def test_lower_layers_computed_once(tune, demo, tmp_path, monkeypatch):
    """Its results are those of the whole model, as `mbt eval` finds them."""
    monkeypatch.setenv("MBT_CACHE", str(tmp_path / "cache"))
    alike = flags("model.fusion.exchange_drop=0")  # else the head's input is another one in every step
    done = mbt("train", "--data", demo, "-m", "rgb,audio", "--out", "run", "--tune", tune, "--cache-lower", *alike)
    assert done.code == 0, done.err
    where = {"fused": "layer 1", "head": "the head"}[tune]
    assert f"the tokens that enter {where} are computed once and kept in {tmp_path / 'cache' / 'lower'}" in done.err
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 45
    whole = json.loads(mbt("eval", "run", "--json").out)["metrics"]
    assert load("run").results["loss"] == pytest.approx(whole["loss"], rel=0.01)
    refused = mbt("train", "--data", demo, "-m", "rgb,audio", "--cache-lower", *flags())
    assert refused.code == 2
    assert "is trained, and lies below the fusion layer 1" in refused.err
    assert mbt("train", "--resume", "run", "--cache-lower").code == 2


def write_vit(folder):
    """A ViT of 2 blocks, 64 wide, patches of 8, in a file that tells no name."""
    torch.manual_seed(0)
    vit = VisionTransformer(img_size=16, patch_size=8, embed_dim=64, depth=2, num_heads=1, num_classes=0)
    save_file(vit.state_dict(), folder / "weights.safetensors")
    return folder / "weights.safetensors"


@pytest.mark.slow
def test_fine_tuning_in_one_flag(demo, tmp_path):
    """The model is the weights', and a table says what was chosen. Nothing else is needed."""
    file = write_vit(tmp_path)
    done = mbt("train", "--data", demo, "-m", "rgb,audio", "--pretrained", file, "--set", "train.steps=2")
    assert done.code == 0, done.err
    assert done.out.startswith("test split, runs/fine-tune-rgb-audio\n")
    assert done.err.startswith(f"recipe fine-tune: rgb + audio, geometry of the weights, {file}, ")
    table = {
        cells[0]: cells[1:] for line in done.err.splitlines() if len(cells := re.split(r" {2,}", line.strip())) == 3
    }
    assert table["setting"] == ["chosen", "by"]
    assert table["modalities.rgb.patch"] == ["8", "the weights"]
    assert table["modalities.rgb.size"] == ["64", "the data"]
    assert table["model.backbone"] == ["dim 64, depth 2, heads 1, mlp 256", "the weights"]
    assert table["model.fusion.layer"] == ["1", "two thirds of the depth"]
    assert table["train.tune"] == ["fused", "27 clips on the CPU"]
    assert table["train.cache_lower"] == ["true", "nothing is trained below"]
    assert "train.epochs" not in table  # steps are set
    experiment = load("runs/fine-tune-rgb-audio").experiment
    assert (experiment.model.backbone.depth, experiment.model.fusion.layer, experiment.train.tune) == (2, 1, "fused")
    assert not [field for config in experiment.modalities.values() for field in config.auto_fields()]
    again = mbt("train", "--data", demo, "-m", "rgb,audio", "--pretrained", "runs/fine-tune-rgb-audio", "-q",
                "--tune", "all", "--set", "train.steps=1", "--show-init")  # fmt: skip
    assert again.code == 0, again.err
    assert re.search(r"streams\.audio\.tokenizer +[\d,]+ +runs/fine-tune-rgb-audio \(audio\) +copied", again.out)


def test_weights_that_do_not_fit_are_one_message(demo, tmp_path):
    file = write_vit(tmp_path)
    command = ("train", "--data", demo, "-m", "rgb,audio", "--pretrained")
    for source, more, message in (
        (
            file,
            ["--set", "model.backbone={dim: 32, depth: 2, heads: 2}"],
            "has another width than the model: 64, expected 32",
        ),
        (f"vit_tiny_patch16_224@{file}", [], "is said to be a vit_tiny_patch16_224, which is 192 wide, but"),
        (tmp_path / "none.safetensors", [], "no such file or folder"),
        (file, ["--recipe", "small", "--set", "model.backbone.dim=32"], "has another width than the model"),
    ):
        done = mbt(*command, source, *more)
        assert (done.code, done.out) == (2, "")
        errors = done.err.split("Error: ")
        assert len(errors) == 2
        assert message in errors[1]
        assert errors[1].count("\n") == 1
    assert not any((tmp_path / "runs").glob("*"))


def test_eval(run, demo):
    done = mbt("eval", run.path, "--json")
    document = json.loads(done.out)
    assert (done.code, done.err) == (0, f"wrote {run.path / 'report.html'}\n")
    assert list(document) == ["split", "examples", "failed", "metrics", "baseline", "modalities"]
    assert (document["split"], document["examples"], document["failed"]) == ("test", 9, 0)
    assert document["metrics"] == pytest.approx(run.results, abs=1e-5)
    text = mbt("eval", run.path)
    assert text.out.startswith(f"test split of {run.path}: 9 examples, 0 failed\n")
    rows = {row[0]: row[1:] for row in columns(text.out)}
    assert rows["metric"] == ["fused", "rgb", "audio"]
    assert rows["sum/top1"] == [f"{document['metrics'][f'sum/top1{x}']:.4f}" for x in ("", "[rgb]", "[audio]")]


def test_eval_of_a_run_that_is_not_ours(run, monkeypatch):
    """Where the predictions cannot be written, the numbers come all the same."""
    from mbt_core.evaluate import table
    from mbt_core.io import files

    def refuse(path, write):
        files.write_atomically(path / "x", write)

    monkeypatch.setattr(table, "write_atomically", refuse)
    done = mbt("eval", run.path, "--json")
    assert done.code == 0
    assert json.loads(done.out)["examples"] == 9
    assert re.fullmatch(r"Warning: .*: cannot be written: .*\n", done.err)


def test_eval_of_another_split_with_views(run):
    document = json.loads(mbt("eval", run.path, "--split", "Validation", "--views", 2, "--json").out)
    assert (document["split"], document["examples"]) == ("val", 9)


def test_eval_subsets(run):
    document = json.loads(mbt("eval", run.path, "--subsets", "--json").out)
    assert list(document["subsets"]) == ["rgb", "audio", "rgb+audio"]
    assert document["subsets"]["rgb+audio"] == {"examples": 9, **document["metrics"]}
    assert document["confusion"][0].keys() == {"from", "adding", "task", "lost", "gained", "examples"}
    text = mbt("eval", run.path, "--subsets").out
    assert "subsets of the modalities, on all 9 rows\n" in text
    assert "modality confusion\n" in text
    assert ["from", "adding", "task", "examples", "right", "to", "wrong", "wrong", "to", "right"] in columns(text)


def test_predict(run, demo):
    files = clips_of(demo)[:2]
    done = mbt("predict", run.path, *files, "--top", 2, "--json")
    found = json.loads(done.out)
    assert (done.code, done.err) == (0, "")
    assert [list(item) for item in found] == [["file", "modalities", "top"]] * 2
    assert [len(best) for best in found[0]["top"].values()] == [2, 2]
    assert found[0]["top"]["kind"][0].keys() == {"label", "score"}
    text = mbt("predict", run.path, *files, "--top", 2).out
    lines = [line.rstrip() for line in text.splitlines()]
    assert lines[0] == f"{files[0]}  (rgb + audio)"
    best = found[0]["top"]["kind"][0]
    score, width = f"{best['score']:.3f}", max(len(b["label"]) for b in found[0]["top"]["kind"])
    assert f"  {best['label']:<{width}}   {score}   {'█' * round(20 * best['score'])}" in lines


@pytest.mark.slow
def test_predict_of_a_single_task_is_a_list(demo, tmp_path):
    rows = [{"id": row["id"], "path": str(demo.parent / row["path"]), "label": row["label.sum"], "split": row["split"]}
            for row in read_csv(demo)]  # fmt: skip
    data = write_csv(tmp_path / "sum.csv", rows)
    assert mbt("train", "--data", data, "-m", "rgb", "--out", "run", "-q", *flags(modalities="rgb")).code == 0
    item = json.loads(mbt("predict", "run", clips_of(demo)[0], "--json").out)[0]
    assert sorted(entry["label"] for entry in item["top"]) == ["0", "1", "2"]  # class names stay text
    assert mbt("eval", "run").out.splitlines()[2].split() == ["metric", "rgb"]


def test_predict_every(run, demo):
    text = mbt("predict", run.path, clips_of(demo)[0], "--every", 0.5).out
    assert text.splitlines()[0] == f"{clips_of(demo)[0]}  0.0-1.2 s  (rgb + audio)"


def test_data_check(demo, tmp_path):
    done = mbt("data", "check", demo, "--json")
    report = json.loads(done.out)
    assert (done.code, done.err) == (0, "")
    assert report["classes"] == {"kind": 9, "sum": 3}
    assert list(report["splits"]) == ["train", "val", "test"]
    train = report["splits"]["train"]
    assert train["rows"] == 27
    assert {"rgb", "audio"} <= train["modalities"].keys()  # those with a column or shared files, nothing else
    assert "text" not in train["modalities"]
    rgb = train["modalities"]["rgb"]
    assert (rgb["present"], rgb["missing"], rgb["unreadable"], rgb["sizes"]) == (27, 0, 0, {"64x64": 27})
    text = mbt("data", "check", demo, "-m", "audio")
    assert text.code == 0
    assert ["train", "27", "audio", "27", "0", "0", "0", "1.2-1.2", "16000"] in columns(text.out)
    assert "kind: 9 classes\nsum: 3 classes\n" in text.err
    rows = columns(text.out)
    assert ["sum", "train", "val", "test"] in rows
    for name in train["class_counts"]["sum"]:
        assert [name, *(str(found["class_counts"]["sum"][name]) for found in report["splits"].values())] in rows
    slow = mbt("data", "check", demo, "-m", "audio", "--set", "data.timeout=1e-7", "--json")
    audio = json.loads(slow.out)["splits"]["train"]["modalities"]["audio"]
    assert (audio["unreadable"], "took longer than 1e-07 s" in audio["problems"][0]) == (27, True)


def test_data_check_names_what_is_bad_and_eval_and_embed_may_go_on(run, demo, tmp_path):
    rows = [{**row, "path": str(demo.parent / row["path"])} for row in read_csv(demo) if row["split"] == "test"]
    data = write_csv(tmp_path / "gone.csv", [{**rows[0], "path": "nowhere.mp4"}, *rows[1:]])
    shutil.copy(demo.with_name("small.classes.json"), tmp_path / "gone.classes.json")
    done = mbt("data", "check", data, "-m", "rgb,audio")
    assert done.err.splitlines()[0] == f"{tmp_path / 'nowhere.mp4'}: there is no such file"
    assert columns(done.out)[1][:7] == ["test", "9", "rgb", "8", "0", "1", "0"]
    refused = mbt("eval", run.path, "--data", data)
    assert (refused.code, "mbt eval, predict, embed: --max-missing" in refused.err) == (1, True)
    assert json.loads(mbt("eval", run.path, "--data", data, "--max-missing", 0.2, "--json").out)["failed"] == 1
    assert mbt("embed", run.path, "--data", data, "--max-missing", 0.2, "--out", "e.npz").code == 0


def test_of_many_classes_check_shows_the_commonest_and_the_rarest(tmp_path):
    rows = [
        {"id": f"{k}-{i}", "text": "a", "label": f"c{k:02d}", "split": "train"} for k in range(40) for i in range(k)
    ]
    done = mbt("data", "check", write_csv(tmp_path / "m.csv", rows), "-m", "text", "--set", "data.val_fraction=0")
    shown = [row for row in columns(done.out) if row[0].startswith("c")]
    ends = [[f"c{k:02d}", f"{k}"] for k in (*range(39, 24, -1), *range(15, 0, -1))]
    assert shown == ends
    assert "9 classes between these are left out; --json has all" in done.err


def test_copies_of_train_in_test_are_told_by_check_and_train(demo, tmp_path):
    clips = clips_of(demo)
    shutil.copy(clips[0], tmp_path / "copy.mp4")
    rows = [{"id": str(i), "path": path, "label": "ab"[i % 2], "split": "train"} for i, path in enumerate(clips[:6])]
    rows += [{"id": "c", "path": "copy.mp4", "label": "a", "split": "test"}]
    data = write_csv(tmp_path / "m.csv", rows)
    line = f"1 of 1 rows of test repeats files of train, e.g. 'c' and '0': copy.mp4 is a copy of {clips[0]}. "
    assert line in mbt("data", "check", data, "-m", "rgb").err
    assert line in mbt("train", "--data", data, "-m", "rgb", *flags("train.steps=1", modalities="rgb")).err
    found = json.loads(mbt("data", "check", data, "-m", "rgb", "--json").out)["repeats"]
    pair = {"ids": ["0", "c"], "files": [str(clips[0]), "copy.mp4"]}
    assert found == [{"splits": ["train", "test"], "rows": 1, "total": 1, "examples": [pair]}]
    assert json.loads(mbt("data", "check", demo, "--json").out)["repeats"] == []


def test_train_tells_what_may_not_be_meant(demo, tmp_path):
    rows = [
        {"id": str(i), "path": path, "label": f"0.{i}", "split": "train"} for i, path in enumerate(clips_of(demo)[:4])
    ]
    data = write_csv(tmp_path / "numbers.csv", rows)
    done = mbt("train", "--data", data, "-m", "rgb", *flags("train.steps=1", modalities="rgb"))
    assert "no val split: 0.1 of the 4 training rows would be fewer than 20; " in done.err
    assert "4 classes that are numbers, e.g. '0.0'; to predict numbers, set model.head.task=regression\n" in done.err


def test_rows_of_numbers_are_not_said_to_be_held_out_by_class(demo, tmp_path):
    rows = [{"id": str(i), "path": path, "label": f"{i}"} for i, path in enumerate(clips_of(demo)[:9])]
    data = write_csv(tmp_path / "numbers.csv", rows)
    done = mbt("train", "--data", data, "-m", "rgb", *flags("model.head.task=regression", modalities="rgb"))
    assert "held out of 9, evenly over the range of their numbers, by their ids: 1 as val and 1 as test. " in done.err
    assert "class by class" not in done.err


def test_a_small_folder_without_splits_ends_with_a_number(demo, tmp_path):
    for number, clip in enumerate(clips_of(demo)[:9]):
        folder = tmp_path / "clips" / "abc"[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, folder / f"{number}.mp4")
    line = "no row says of which split it is; held out of 9, class by class, by their ids: 1 as val and 1 as test. "
    checked = mbt("data", "check", tmp_path / "clips", "-m", "rgb")
    assert line in checked.err
    done = mbt("train", "--data", tmp_path / "clips", "-m", "rgb", "--out", tmp_path / "run", *flags(modalities="rgb"))
    assert line in done.err
    assert "test split" in done.out
    assert "top1" in done.out
    rows = pq.read_table(tmp_path / "run/predictions.parquet")["id"].to_pylist()
    for data in ([], ["--data", tmp_path / "clips"]):
        again = mbt("eval", tmp_path / "run", *data, "--json")
        assert (again.code, again.err.count("changed")) == (0, 0)
        assert json.loads(again.out)["split"] == "test"
    assert pq.read_table(tmp_path / "run/predictions.parquet")["id"].to_pylist() == rows
    assert pq.read_table(tmp_path / "run/eval-clips-test/predictions.parquet")["id"].to_pylist() == rows
    shutil.copy(clips_of(demo, "val")[0], tmp_path / "clips/a/new.mp4")
    assert "its rows have changed since the training" in mbt("eval", tmp_path / "run").err


def test_runs_of_before_hold_out_no_test_rows(demo, tmp_path):
    rows = [{"id": str(i), "path": path, "label": "ab"[i % 2]} for i, path in enumerate(clips_of(demo)[:8])]
    data = write_csv(tmp_path / "m.csv", rows)
    assert mbt("train", "--data", data, "-m", "rgb", "--out", tmp_path / "run", *flags(modalities="rgb")).code == 0
    config = tmp_path / "run/config.yaml"
    config.write_text(config.read_text().replace("  test_fraction: 0.1\n", ""))
    done = mbt("eval", tmp_path / "run")
    assert (done.code, "has neither a test nor a val split; give --split; it has: train" in done.err) == (2, True)


def test_train_tells_of_splits_that_are_not_used_and_of_a_single_class(demo, tmp_path):
    rows = [{"id": str(i), "path": path, "label": "a", "split": "dev" if i else ""}
            for i, path in enumerate(clips_of(demo)[:2])]  # fmt: skip
    data = write_csv(tmp_path / "one.csv", rows)
    done = mbt("train", "--data", data, "-m", "rgb", *flags("train.steps=1", modalities="rgb"))
    assert "rows of other splits ('dev') are not used; those of train, val and test are\n" in done.err
    assert "task 'label' has one class, 'a': there is nothing to tell apart\n" in done.err


def test_missing_labels_of_the_test_split_are_told_before_training(demo, tmp_path):
    cells = zip(clips_of(demo)[:3], ["a", "b", ""], ["", "", "test"], strict=True)
    rows = [
        {"id": str(i), "path": path, "label": label, "split": split} for i, (path, label, split) in enumerate(cells)
    ]
    data = write_csv(tmp_path / "m.csv", rows)
    done = mbt("train", "--data", data, "-m", "rgb", "--out", "run", *flags("train.steps=1", modalities="rgb"))
    assert (done.code, "1 of 1 rows of the test split have no label of task 'label', e.g. '2'" in done.err) == (1, True)
    assert not (tmp_path / "run").exists()


def test_data_check_of_a_column_of_its_own(tmp_path):
    write_csv(tmp_path / "m.csv", [{"id": "a", "text": "words", "label": "x"}])
    report = json.loads(mbt("data", "check", "m.csv", "--json").out)
    assert list(report["splits"]["train"]["modalities"]) == ["text"]


def test_data_demo(tmp_path, monkeypatch):
    """What is there is not made again."""
    from mbt_benchmarks import demo as demo_module

    made = demo_module.make_demo(tmp_path / "demo", train=2, test=1)
    monkeypatch.setattr(demo_module, "_is_complete", lambda folder, settings: True)
    assert mbt("data", "demo", "--out", tmp_path / "demo").out == f"{made}\n"


def test_numbers_that_json_has_no_word_for(capsys):
    print_json({"a": math.nan, "b": [math.inf, (1.5, -math.inf)], "c": {"d": "NaN", "ü": 1}})
    text = capsys.readouterr().out
    assert json.loads(text) == {"a": None, "b": [None, [1.5, None]], "c": {"d": "NaN", "ü": 1}}
    assert "ü" in text


def test_lines_and_tables_are_not_folded_without_a_terminal(capsys):
    path = "/".join(["folder"] * 40)
    show(path, table(["file", "n"], [["x" * 150, "1"]]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == path
    assert any("x" * 150 in line for line in lines)


def test_what_looks_like_markup_is_printed_as_it_is(run, demo, tmp_path):
    odd = tmp_path / "[red]a :smile:.mp4"
    shutil.copy(clips_of(demo)[0], odd)
    assert mbt("predict", run.path, odd).out.startswith(f"{odd}  (rgb + audio)\n")


HOLDER = """
import sys, time
from contextlib import ExitStack
from pathlib import Path
from mbt_core.io.files import only_writer
with ExitStack() as stack:
    for out, part in zip(sys.argv[1::2], sys.argv[2::2]):
        stack.enter_context(only_writer(Path(out), part))
    print("writing", flush=True)
    time.sleep(60)
"""


def test_one_command_writes_to_an_out(run, demo, tmp_path):
    """Whatever it is that it writes: the second command is refused before it has worked for nothing."""
    clip = clips_of(demo)[0]
    commands = {
        "embeddings.parquet": ["embed", run.path, "--data", demo],
        "page.html": ["explain", run.path, clip],
        "model.pt2": ["convert", "torch-export", run.path],
        "shards": ["data", "pack", demo, "-m", "rgb", "--part", "1/2"],
    }
    held = [word for out in commands for word in (tmp_path / out, ".part-1-2" if out == "shards" else "")]
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, *held], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "writing\n"
        for out, command in commands.items():
            done = mbt(*command, "--out", tmp_path / out)
            assert (done.code, "another process is writing there" in done.err) == (2, True), done.err
            assert not (tmp_path / out).exists()
        assert mbt("data", "pack", demo, "-m", "rgb", "--out", tmp_path / "shards", "--part", "0/2").code == 0
    finally:
        holder.kill()
        holder.communicate()
    assert mbt(*commands["embeddings.parquet"], "--out", tmp_path / "embeddings.parquet").code == 0

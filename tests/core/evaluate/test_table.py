"""Predictions on disk: read back as they were written, and where those of other data go."""

import pyarrow.parquet as pq
import pytest
import torch

from mbt_core import DataError
from mbt_core.config import DataConfig, HeadConfig
from mbt_core.data.manifest import Manifest
from mbt_core.evaluate.evaluator import FUSED, Evaluation
from mbt_core.evaluate.table import FILE, About, evaluation_folder, read_about, read_predictions, write_predictions

HEADS = {
    "single": HeadConfig(classes=4),
    "multilabel": HeadConfig(classes=4, task="multilabel"),
    "regression": HeadConfig(classes=4, task="regression"),
    "several": HeadConfig(tasks={"kind": 4, "size": 2}, task={"kind": "multilabel", "size": "regression"}),
}


def manifest(path, splits=("test",)):
    rows = [f"clip{i},{'xy'[i // len(splits) % 2]},{splits[i % len(splits)]}\n" for i in range(6)]
    path.write_text("id,label,split\n" + "".join(rows))
    return Manifest.read(path, {}, DataConfig())


def found_for(head):
    generator = torch.Generator().manual_seed(0)
    logits, targets = {FUSED: {}, "m": {}}, {}
    present = torch.tensor([True, False, True, True])
    for task, C in head.outputs.items():
        for values in logits.values():
            values[task] = torch.randn(4, C, generator=generator)
        values = torch.randint(2, (4, C), generator=generator).float()
        targets[task] = values.argmax(1) if head.kind_of(task) == "single" else values
    return Evaluation(torch.tensor([0, 1, 3, 5]), logits, targets, {"m": present}, head, {2: "broken"})


@pytest.mark.parametrize("name", HEADS)
def test_predictions_are_read_as_they_were_written(tmp_path, name):
    head = HEADS[name]
    found = found_for(head)
    found.majority = {"label": 3}
    about = About("/data/x.csv", 4, {"m": {"top1": 0.5}}, [{"from": "m", "lost": 0.25}])
    write_predictions(tmp_path, found, manifest(tmp_path / "m.csv"), "test", about)
    read = read_predictions(tmp_path, head)
    assert read.ids == ["clip0", "clip1", "clip3", "clip5", "clip2"]
    assert read.split == "test"
    assert read.about == about == read_about(tmp_path)
    assert read.classes == {"label": ["x", "y"]}
    assert read.found.majority == {"label": 3}
    assert read.found.failed == {4: "broken"}
    here = found.present["m"]
    assert torch.equal(read.found.present["m"], here)
    for task in head.outputs:
        assert torch.equal(read.found.targets[task], found.targets[task])
        assert torch.equal(read.found.logits[FUSED][task], found.logits[FUSED][task])
        assert torch.equal(read.found.logits["m"][task][here], found.logits["m"][task][here])
    assert read.found.metrics() == found.metrics()


def test_groups_are_kept(tmp_path):
    """By name; a row without one is of its own, and so are all in a file without the column."""
    table = tmp_path / "m.csv"
    table.write_text("id,label,split,tape\n" + "".join(f"clip{i},x,test,{tape}\n" for i, tape in enumerate("aab bb")))
    grouped = Manifest.read(table, {}, DataConfig(group="tape"))
    write_predictions(tmp_path, found_for(HEADS["single"]), grouped, "test")
    read = read_predictions(tmp_path, HEADS["single"])
    assert read.ids == ["clip0", "clip1", "clip3", "clip5", "clip2"]
    assert read.groups == ["a", "a", "clip3", "b", "b"]
    file = tmp_path / FILE
    pq.write_table(pq.read_table(file).drop_columns(["group"]), file)
    assert read_predictions(tmp_path, HEADS["single"]).groups == read.ids


def test_all_clips_unreadable(tmp_path):
    nothing = Evaluation(torch.zeros(0, dtype=torch.int64), {}, {}, {}, HEADS["single"], {0: "a", 1: "b"})
    write_predictions(tmp_path, nothing, manifest(tmp_path / "m.csv"), "test")
    read = read_predictions(tmp_path, HEADS["single"])
    assert (read.ids, read.split, read.found.failed) == (["clip0", "clip1"], "test", {0: "a", 1: "b"})
    assert read.found.logits == {}


def test_predictions_of_another_kind_are_refused(tmp_path):
    write_predictions(tmp_path, found_for(HEADS["single"]), manifest(tmp_path / "m.csv"), "test")
    with pytest.raises(DataError, match="not of the tasks of this run"):
        read_predictions(tmp_path, HEADS["several"])
    with pytest.raises(DataError, match="not of the tasks of this run"):
        read_predictions(tmp_path, HeadConfig(classes=3))
    (tmp_path / "predictions.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(DataError, match="predictions.parquet: cannot be read"):
        read_predictions(tmp_path, HEADS["single"])


def test_other_data_never_replace_those_of_the_run(tmp_path):
    run = tmp_path / "run"
    own = manifest(tmp_path / "own.csv", ("train", "val", "test"))
    assert evaluation_folder(run, own, "test") == run
    assert evaluation_folder(run, own, "val") == run / "eval-val"
    without_test = manifest(tmp_path / "two.csv", ("train", "val"))
    assert evaluation_folder(run, without_test, "val") == run
    assert evaluation_folder(run, without_test, "train") == run / "eval-train"
    (tmp_path / "else").mkdir()
    for data, name in (
        (tmp_path / "new clips!.csv", "eval-new-clips-test"),
        (tmp_path / "else/new clips!.csv", "eval-new-clips-test-2"),
        (tmp_path / "new clips!.csv", "eval-new-clips-test"),
        (tmp_path / "else/new clips!.csv", "eval-new-clips-test-2"),
    ):
        other = manifest(data)
        folder = evaluation_folder(run, other, "test", data)
        assert folder == run / name
        write_predictions(folder, found_for(HEADS["single"]), other, "test", About(str(data)))

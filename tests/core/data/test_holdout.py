"""Data without splits: which rows are held out."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.data.fakes import write_csv
from mbt_core.config import DataConfig
from mbt_core.data.holdout import TaskClasses, hold_out
from mbt_core.data.manifest import Manifest
from mbt_core.data.splits import Groups


def parts(path: Path, labels: list[str], order: slice = slice(None), **settings: Any) -> Manifest:
    kinds = settings.pop("kinds", None)
    more = settings.pop("columns", {})
    rows = [{"id": f"r{i}", "p": f"{i}.mp4", "label": label, **{name: cells[i] for name, cells in more.items()}}
            for i, label in enumerate(labels)]  # fmt: skip
    return Manifest.read(write_csv(path / "m.csv", rows[order]), {"p": "frames"}, DataConfig(**settings), kinds=kinds)


def names(found: Manifest) -> dict[str, list[str]]:
    """Split -> ids of its rows."""
    return {split: sorted(found.row(i).id for i in rows) for split, rows in found.splits.items()}


def labels_of(found: Manifest, split: str) -> Counter[str]:
    return Counter(found.row(i).labels["label"] for i in found.splits.get(split, ()))


@pytest.mark.parametrize(
    ("labels", "held"),
    [
        ("ab" * 15, (3, 3)),
        ("abcdefghij" * 20, (20, 20)),
        ("aaaabbbb", (1, 1)),
        ("aabb", (1, 1)),
        ("aab", (0, 1)),
        ("abc", (0, 0)),
    ],
)
def test_something_is_held_out_whatever_the_size(tmp_path, labels, held):
    found = parts(tmp_path, list(labels))
    assert tuple(len(found.splits.get(split, ())) for split in ("val", "test")) == held
    rows = np.concatenate(list(found.splits.values()))
    assert sorted(rows.tolist()) == list(range(len(labels)))
    assert set(labels_of(found, "train")) == set(labels)
    assert found.unsplit


def test_classes_are_held_out_evenly_and_rare_ones_too(tmp_path):
    found = parts(tmp_path, ["common"] * 180 + ["rare"] * 20)
    assert labels_of(found, "test") == labels_of(found, "val") == {"common": 18, "rare": 2}
    found = parts(tmp_path, ["common"] * 95 + ["rare"] * 5)
    assert labels_of(found, "test") == labels_of(found, "val") == {"common": 9, "rare": 1}


def test_ids_decide_and_neither_order_nor_a_seed(tmp_path):
    labels = [f"c{i % 7}" for i in range(300)]
    assert names(parts(tmp_path, labels)) == names(parts(tmp_path, labels, slice(None, None, -1)))


def test_it_does_not_matter_where_the_folder_lies(tmp_path):
    labels, folders = [f"c{i % 7}" for i in range(300)], [tmp_path / "here", tmp_path / "elsewhere"]
    for spans in (1, 3):
        starts, held = [str(i % spans) for i in range(300)], []
        for folder in folders:
            folder.mkdir(exist_ok=True)
            files = [str(folder / f"{i // spans}.mp4") for i in range(300)]
            held.append(names(parts(folder, labels, columns={"start": starts, "p": files})))
        assert held[0] == held[1]


def test_shares_are_settings(tmp_path):
    labels = list("ab" * 100)
    found = parts(tmp_path, labels, test_fraction=0.3, val_fraction=0)
    assert {split: len(rows) for split, rows in found.splits.items()} == {"train": 140, "test": 60}
    assert set(parts(tmp_path, labels, test_fraction=0).splits) <= {"train", "val"}
    assert set(parts(tmp_path, list("ab" * 10), test_fraction=0).splits) == {"train"}
    half = parts(tmp_path, labels, fraction=0.5)
    assert names(half)["test"] == names(parts(tmp_path, labels))["test"]
    assert len(half.splits["train"]) == 80


@pytest.mark.parametrize("cells", [["train"] * 40, ["test"] + ["train"] * 39, [""] * 39 + ["val"]])
def test_given_splits_are_left_as_they_are(tmp_path, cells):
    found = parts(tmp_path, list("ab" * 20), columns={"split": cells})
    assert not found.unsplit
    assert {split: len(rows) for split, rows in found.splits.items()} == Counter(cell or "train" for cell in cells)


def test_an_empty_split_column_is_none(tmp_path):
    found = parts(tmp_path, list("ab" * 20), columns={"split": ["", " "] * 20})
    assert found.unsplit
    assert set(found.splits) == {"train", "val", "test"}


def test_folds_hold_out_no_test_rows(tmp_path):
    found = parts(tmp_path, list("ab" * 20), folds=4)
    assert {split: len(rows) for split, rows in found.splits.items()} == {"train": 30, "val": 10}


def test_groups_stay_together(tmp_path):
    people = [f"p{i % 12}" for i in range(120)]
    found = parts(tmp_path, list("aabb" * 30), columns={"who": people}, group="who")
    held = {split: {people[i] for i in rows} for split, rows in found.splits.items()}
    assert len(held["val"]) == len(held["test"]) == 2  # 12 rows are asked for, and a group has 10
    assert sum(map(len, held.values())) == 12
    assert set(labels_of(found, "train")) == {"a", "b"}


def test_spans_of_one_file_stay_together_if_that_leaves_something_to_hold_out(tmp_path):
    spans = {"start": [str(i // 10) for i in range(100)], "end": [str(i // 10 + 1) for i in range(100)]}
    files = [f"{i % 10}.mp4" for i in range(100)]
    found = parts(tmp_path, list("aabb" * 25), columns={**spans, "p": files})
    held = {split: {files[i] for i in rows} for split, rows in found.splits.items()}
    assert [len(held[split]) for split in ("train", "val", "test")] == [8, 1, 1]
    one = parts(tmp_path, list("ab" * 50), columns={**spans, "p": ["long.mp4"] * 100})
    assert [len(one.splits[split]) for split in ("train", "val", "test")] == [80, 10, 10]


def test_without_labels_nothing_is_held_out(tmp_path):
    path = write_csv(tmp_path / "m.csv", [{"id": i, "p": f"{i}.mp4"} for i in range(30)])
    assert set(Manifest.read(path, {"p": "frames"}, DataConfig()).splits) == {"train"}


def test_a_large_group_is_trained_on(tmp_path):
    people = ["large"] * 80 + [f"p{i}" for i in range(20)]
    found = parts(tmp_path, list("ab" * 50), columns={"who": people}, group="who")
    assert {people[i] for i in found.splits["train"]} >= {"large"}
    assert len(found.splits["test"]) == 10


def test_several_labels_count_as_the_rarest(tmp_path):
    labels = ["speech;rain"] * 10 + ["speech"] * 80 + ["speech;bark;rain"] * 2
    found = parts(tmp_path, labels)
    for split in ("val", "test"):
        assert sum("rain" in label for label in labels_of(found, split).elements()) >= 1
    assert {name for label in labels_of(found, "train") for name in label.split(";")} == {"speech", "rain", "bark"}


def test_numbers_are_held_out_over_their_range(tmp_path):
    found = parts(tmp_path, [f"{i / 3:.4f}" for i in range(100)], kinds="regression")
    for split in ("val", "test"):
        values = sorted(float(found.row(i).labels["label"]) for i in found.splits[split])
        assert len(values) == 10
        assert values[1] < 33.3 / 5 * 2
        assert values[-2] > 33.3 / 5 * 3


def test_every_class_of_every_task_stays_in_train():
    rng = np.random.default_rng(0)
    for _ in range(30):
        tasks = [TaskClasses(rng.integers(0, K, 60), [[k] for k in range(K)]) for K in (3, 20)]
        groups = Groups(rng.integers(0, 25, 60), [str(g) for g in range(25)])
        found = hold_out(tasks, groups, DataConfig())
        assert {"train", "test"} <= set(found)
        for task in tasks:
            assert set(task.codes[found["train"]].tolist()) == set(task.codes.tolist())

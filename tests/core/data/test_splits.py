"""The split rules."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from core.data.fakes import write_csv
from mbt_core.config import DataConfig
from mbt_core.data.manifest import Manifest
from mbt_core.data.splits import unit_hash
from mbt_core.errors import ConfigError, DataError


def manifest(path: Path, count: int, *, columns: dict[str, list[str]] | None = None, **config: object) -> Manifest:
    rows = [
        {"id": f"r{i:05d}", "p": f"{i}.mp4", "label": "ab"[i % 2], "split": "train"}
        | {name: cells[i] for name, cells in (columns or {}).items()}
        for i in range(count)
    ]
    return Manifest.read(write_csv(path / "m.csv", rows), {"p": "frames"}, DataConfig(**config))


def sizes(found: Manifest) -> dict[str, int]:
    return {split: len(rows) for split, rows in found.splits.items()}


def ids(found: Manifest, split: str) -> set[str]:
    return {found.row(i).id for i in found.splits[split]}


def test_unit_hash_is_what_it_always_was() -> None:
    """Splits must never change between versions."""
    np.testing.assert_allclose(unit_hash(["a", "b", "ü"], "val"), [0.74987012, 0.89164188, 0.26728632], atol=1e-8)


def test_a_tenth_is_held_out_by_the_hash_of_the_id(tmp_path: Path) -> None:
    found = manifest(tmp_path, 1000)
    assert 80 < sizes(found)["val"] < 120
    assert sizes(found)["train"] + sizes(found)["val"] == 1000
    expected = {name for name in (f"r{i:05d}" for i in range(1000)) if unit_hash([name], "val")[0] < 0.1}
    assert ids(found, "val") == expected


def test_rows_stay_where_they_are_as_data_grows(tmp_path: Path) -> None:
    few, many = ids(manifest(tmp_path, 500), "val"), ids(manifest(tmp_path, 1000), "val")
    assert few == {name for name in many if name < "r00500"}


def test_no_hold_out_of_fewer_than_twenty_rows(tmp_path: Path) -> None:
    assert sizes(manifest(tmp_path, 120)) == {"train": 120}
    assert sizes(manifest(tmp_path, 1000, val_fraction=0.0)) == {"train": 1000}
    assert sizes(manifest(tmp_path, 120, val_fraction=0.3))["val"] >= 20


def test_given_splits_are_kept_and_test_is_never_used(tmp_path: Path) -> None:
    names = ["", "Train", "validation", "test", "extra"]
    found = manifest(tmp_path, 1000, columns={"split": [names[i % 5] for i in range(1000)]})
    assert sizes(found) == {"train": 400, "val": 200, "test": 200, "extra": 200}
    without_val = manifest(tmp_path, 1000, columns={"split": ["test" if i % 4 > 1 else "" for i in range(1000)]})
    assert sizes(without_val)["test"] == 500
    assert sizes(without_val)["train"] + sizes(without_val)["val"] == 500


def test_rows_of_a_split(tmp_path: Path) -> None:
    found = manifest(tmp_path, 10, columns={"split": ["val"] * 3 + [""] * 7})
    assert found.rows("validation").tolist() == [0, 1, 2]
    with pytest.raises(DataError, match=r"unknown split 'tset'\. Known: train, val"):
        found.rows("tset")


def test_groups_are_held_out_whole(tmp_path: Path) -> None:
    groups = [f"speaker{i % 7}" for i in range(700)]
    found = manifest(tmp_path, 700, columns={"speaker": groups}, group="speaker")
    held = {groups[i] for i in found.splits["val"]}
    assert len(held) == 1
    assert not held & {groups[i] for i in found.splits["train"]}
    assert sizes(found) == {"train": 600, "val": 100}


def test_rows_without_a_group_are_groups_of_their_own(tmp_path: Path) -> None:
    found = manifest(tmp_path, 1000, columns={"g": ["" if i < 900 else "big" for i in range(1000)]}, group="g")
    assert 100 <= sizes(found)["val"] <= 200


def test_one_group_cannot_be_held_out(tmp_path: Path) -> None:
    assert sizes(manifest(tmp_path, 300, columns={"g": ["x"] * 300}, group="g")) == {"train": 300}


def test_a_group_in_two_given_splits_is_refused(tmp_path: Path) -> None:
    columns = {"g": ["x", "x", "y", "z"], "split": ["train", "test", "test", "train"]}
    with pytest.raises(DataError, match=r"data\.group: 1 values of column 'g' have rows in several splits, e\.g\. 'x'"):
        manifest(tmp_path, 4, columns=columns, group="g")
    with pytest.raises(ConfigError, match=r"data\.group: unknown column 'gg'\. Did you mean 'g'\?"):
        manifest(tmp_path, 4, columns=columns, group="gg")


def test_folds_part_the_training_rows_class_by_class(tmp_path: Path) -> None:
    columns = {"split": ["test" if i >= 90 else ["", "val"][i % 2] for i in range(100)]}
    folds = [manifest(tmp_path, 100, columns=columns, folds=3, fold=k) for k in range(3)]
    assert [sizes(f) for f in folds] == [{"train": 60, "val": 30, "test": 10}] * 3
    assert set.union(*(ids(f, "val") for f in folds)) == {f"r{i:05d}" for i in range(90)}
    assert all(f.class_counts("label", "val").tolist() == [15, 15] for f in folds)


def test_folds_by_group(tmp_path: Path) -> None:
    groups = [f"g{min(i // 10, 5)}" for i in range(100)]  # five of 10 and one of 50
    folds = [manifest(tmp_path, 100, columns={"g": groups}, group="g", folds=2, fold=k) for k in range(2)]
    assert [sizes(f)["val"] for f in folds] == [50, 50]
    assert not {groups[i] for i in folds[0].splits["val"]} & {groups[i] for i in folds[1].splits["val"]}


def test_folds_by_group_keep_the_classes(tmp_path: Path) -> None:
    """Patients, most of them healthy: by their size alone a fold could get all of the others."""
    ill, sizes_of = [i % 3 == 0 for i in range(30)], [2 + i % 5 for i in range(30)]
    people = [i for i in range(30) for _ in range(sizes_of[i])]
    columns = {"g": [f"p{i}" for i in people], "label": ["ill" if ill[i] else "well" for i in people]}
    count = len(people)
    found = [manifest(tmp_path, count, columns=columns, group="g", folds=5, fold=k) for k in range(5)]
    assert sum(sizes(f)["val"] for f in found) == count
    assert all(abs(sizes(f)["val"] - count / 5) <= 4 for f in found)
    each = np.array([f.class_counts("label", "val") for f in found])
    assert (each.max(0) - each.min(0) <= 4).all()
    assert (each > 0).all()


def test_spans_of_one_file_are_in_one_fold(tmp_path: Path) -> None:
    spans = {"start": [str(i // 10) for i in range(40)], "end": [str(i // 10 + 1) for i in range(40)]}
    columns = {**spans, "p": [f"{i % 10}.mp4" for i in range(40)]}
    found = [manifest(tmp_path, 40, columns=columns, folds=5, fold=k) for k in range(5)]
    files = [{columns["p"][i] for i in f.splits["val"]} for f in found]
    assert [len(names) for names in files] == [2] * 5
    assert set.union(*files) == set(columns["p"])
    columns["p"] = [f"{i % 3}.mp4" for i in range(40)]
    with pytest.raises(DataError, match="5 folds of 3 files, whose spans stay together; expected at most 3, or"):
        manifest(tmp_path, 40, columns=columns, folds=5, fold=0)
    apart = [manifest(tmp_path, 40, columns=columns, group="id", folds=5, fold=k) for k in range(5)]
    assert [sizes(f)["val"] for f in apart] == [8] * 5


def test_more_folds_than_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.folds: 5 folds of 4 training rows; expected at most 4"):
        manifest(tmp_path, 4, folds=5)
    with pytest.raises(DataError, match="5 folds of 2 training groups"):
        manifest(tmp_path, 8, columns={"g": list("xxxxyyyy")}, group="g", folds=5)


def test_fractions_are_nested_exact_and_keep_the_classes(tmp_path: Path) -> None:
    columns = {"label": ["rare" if i % 10 == 0 else "common" for i in range(1000)]}
    found = {
        f: manifest(tmp_path, 1000, columns=columns, fraction=f, val_fraction=0) for f in (0.01, 0.1, 0.25, 0.7, 1.0)
    }
    for fraction, one in found.items():
        assert len(one.splits["train"]) == round(1000 * fraction)
        assert one.class_counts("label", "train")[1] == pytest.approx(100 * fraction, abs=1)
    chosen = [ids(one, "train") for one in found.values()]
    assert all(small < large for small, large in pairwise(chosen))


def test_classes_are_those_of_the_whole_train_split(tmp_path: Path) -> None:
    columns = {"label": [f"c{i // 4:02d}" for i in range(200)]}
    assert len(manifest(tmp_path, 200, columns=columns, fraction=0.05).classes["label"]) == 50

"""Rows of a manifest: sources, root and confinement, labels and classes, missing files."""

import json
import os
import pickle
from pathlib import Path

import media_files
import numpy as np
import pytest

from core.data.fakes import write_csv, write_movie
from mbt_core.config import DataConfig
from mbt_core.data.manifest import Manifest
from mbt_core.data.missing import check_missing
from mbt_core.errors import ConfigError, DataError

READS = {"p": "frames", "s": "waveform", "a": "array", "w": "text"}


def read(path: Path, rows: list[dict[str, str]], reads: dict[str, str] | None = None, **options: object) -> Manifest:
    config = DataConfig(**{"test_fraction": 0.0, **options.pop("config", {})})
    return Manifest.read(write_csv(path / "m.csv", rows), reads or {"p": "frames"}, config, **options)


def labelled(path: Path, labels: list[str], splits: list[str] | None = None, **options: object) -> Manifest:
    rows = [{"id": f"r{i}", "path": "x", "label": label, "split": (splits or [""] * 99)[i]}
            for i, label in enumerate(labels)]  # fmt: skip
    return read(path, rows, **options)


def test_where_each_modality_is(tmp_path: Path) -> None:
    rows = [
        {"id": "1", "path": "1.mp4", "a": "1.npy", "w": "hello", "w.path": "x.txt"},
        {"id": "2", "path": "", "a": "", "w": "", "w.path": "/abs/x.txt"},
    ]
    first, second = map(read(tmp_path, rows, READS).row, range(2))
    shared, own = str(tmp_path / "1.mp4"), str(tmp_path / "1.npy")
    assert (first.sources["p"].path, first.sources["s"].path, first.sources["a"].path) == (shared, shared, own)
    assert (first.sources["w"].path, first.sources["w"].text) == (None, "hello")
    assert first.files() == {shared: ["p", "s"], own: ["a"]}
    assert second.sources["p"] is second.sources["s"] is second.sources["a"] is None
    assert second.sources["w"].path == "/abs/x.txt"


def test_rows_without_names_are_called_by_their_path_and_start(tmp_path: Path) -> None:
    rows = [{"path": "b/é.mp4", "start": ""}, {"path": "a.mp4", "start": "0"}, {"path": "a.mp4", "start": "12.50"}]
    assert [read(tmp_path, rows).row(i).id for i in range(3)] == ["b/é.mp4", "a.mp4@0", "a.mp4@12.5"]
    assert [read(tmp_path, [{"path": "a"}, {"path": "b"}]).row(i).id for i in range(2)] == ["a", "b"]


def test_a_shared_file_serves_arrays_but_no_text(tmp_path: Path) -> None:
    rows = [{"id": "1", "path": "1.npy", "other": "x"}]
    assert read(tmp_path, rows, {"a": "array"}).row(0).sources["a"].path == str(tmp_path / "1.npy")
    with pytest.raises(DataError, match="nothing for modality 'w'"):
        read(tmp_path, rows, {"w": "text"})


def test_texts_that_name_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "2.SRT").write_text("")
    rows = [{"id": f"{i}", "w": cell} for i, cell in enumerate(["", "1.srt", "2.SRT"])]
    with pytest.raises(DataError, match=r"'w': expected texts, .* e\.g\. '2\.SRT'; call the column 'w\.path'"):
        read(tmp_path, rows, {"w": "text"})
    assert len(read(tmp_path, [*rows, {"id": "3", "w": "who wrote 2.srt?"}], {"w": "text"})) == 4
    assert len(read(tmp_path, rows[:2], {"w": "text"})) == 2  # there is no such file


def test_a_modality_cannot_be_called_as_a_column(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'label' is a column of every manifest; choose another name"):
        read(tmp_path, [{"id": "1", "label": "x"}], {"label": "text"})


def test_root(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    rows = [{"id": "1", "path": "a/1.mp4"}]
    found = read(tmp_path, rows, config={"root": str(tmp_path / "media")})
    assert found.row(0).sources["p"].path == str(tmp_path / "media/a/1.mp4")
    with pytest.raises(ConfigError, match=r"data\.root: .*nowhere is no folder"):
        read(tmp_path, rows, config={"root": str(tmp_path / "nowhere")})


@pytest.mark.parametrize("cell", ["/etc/passwd", "../x.mp4", "a/../../x.mp4", ".."])
def test_confine_refuses_what_leaves_the_root(tmp_path: Path, cell: str) -> None:
    rows = [{"id": "1", "path": "ok.mp4"}, {"id": "2", "path": cell}]
    with pytest.raises(DataError, match=r"row 2: .* leaves the root .*data\.confine forbids"):
        read(tmp_path / "data", rows, config={"confine": True})
    assert len(read(tmp_path / "data", rows)) == 2


def test_confine_allows_what_stays_inside(tmp_path: Path) -> None:
    rows = [{"id": "1", "path": "a/../b.mp4"}, {"id": "2", "path": str(tmp_path / "c.mp4")}, {"id": "3", "path": "..d"}]
    found = read(tmp_path, rows, config={"confine": True})
    real = os.path.realpath(tmp_path)
    assert [found.row(i).sources["p"].path for i in range(3)] == [f"{real}/b.mp4", f"{real}/c.mp4", f"{real}/..d"]


def test_confine_follows_symbolic_links(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "secret.mp4").write_text("x")
    (data / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (data / "inside.mp4").write_text("x")
    (data / "alias.mp4").symlink_to(data / "inside.mp4")
    rows = [{"id": "1", "path": "link.mp4"}, {"id": "2", "path": "alias.mp4"}]
    found = read(data, rows, config={"confine": True})
    with pytest.raises(DataError, match=r"link\.mp4 leaves the root"):
        found.row(0)
    with pytest.raises(DataError, match=r"link\.mp4 leaves the root"):
        check_missing(found, "train", 1.0)
    assert found.row(1).sources["p"].path == os.path.realpath(data / "inside.mp4")


@pytest.mark.parametrize("place", ["1.png", "u/1.png", "u"])
def test_confine_follows_links_in_folders_of_pictures(tmp_path: Path, place: str) -> None:
    picture, data = tmp_path / "secret/1.png", tmp_path / "data"
    for folder in (tmp_path / "secret", data / "own/u", data / "bad"):
        folder.mkdir(parents=True)
    for path in (picture, data / "own/1.png", data / "own/u/1.png"):
        media_files.write_image(path, media_files.counting(1)[0], "gray")
    (data / "own/u/2.png").symlink_to(data / "own/1.png")
    if place != "u":
        (data / "bad" / place).parent.mkdir(exist_ok=True)
    (data / "bad" / place).symlink_to(picture if place != "u" else picture.parent)
    found = read(data, [{"id": "1", "path": "own"}, {"id": "2", "path": "bad"}], config={"confine": True})
    assert found.row(0).sources["p"].path == os.path.realpath(data / "own")
    with pytest.raises(DataError, match=rf"bad/{place} leaves the root .*, which data\.confine forbids"):
        found.row(1)


def test_tasks_classes_and_counts(tmp_path: Path) -> None:
    rows = [
        {"id": str(i), "path": "x", "label.verb": verb, "label.noun": noun}
        for i, (verb, noun) in enumerate([("cut", "egg;pan"), ("stir", "egg"), ("cut", ";")])
    ]
    found = read(tmp_path, rows)
    assert found.tasks == ["verb", "noun"]
    assert found.classes == {"verb": ["cut", "stir"], "noun": ["egg", "pan"]}
    assert found.kinds == {"verb": "single", "noun": "multilabel"}
    assert found.outputs == {"verb": 2, "noun": 2}
    assert found.row(0).labels == {"verb": "cut", "noun": "egg;pan"}
    assert found.class_counts("verb", "train").tolist() == [2, 1]
    assert found.class_counts("noun", "train").tolist() == [2, 1]
    assert [found.labels["noun"].target(i).tolist() for i in range(3)] == [[1, 1], [1, 0], [0, 0]]
    assert [int(found.labels["verb"].target(i)) for i in range(3)] == [0, 1, 0]


def test_regression(tmp_path: Path) -> None:
    found = labelled(tmp_path, ["1.5;2", "3; -4"], kinds="regression")
    assert found.outputs == {"label": 2}
    assert found.classes == {"label": []}
    assert found.labels["label"].target(1).tolist() == [3, -4]
    for bad in ("x;1", "nan;1", "1", "1e300;1"):
        with pytest.raises(DataError, match=rf"row 2: expected 2 finite numbers as the 'label' label, got '{bad}'"):
            labelled(tmp_path, ["1;2", bad], kinds="regression")


def test_classes_in_official_order(tmp_path: Path) -> None:
    (tmp_path / "m.classes.json").write_text(json.dumps({"label": ["b", "c", "a"]}))
    found = labelled(tmp_path, ["a", "b"])
    assert found.classes == {"label": ["b", "c", "a"]}
    assert int(found.labels["label"].target(0)) == 2
    given = labelled(tmp_path, ["a", "b"], classes={"label": ["b", "a"]})  # those of a trained model win
    assert given.classes == {"label": ["b", "a"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", r'm\.classes\.json: expected \{"TASK": \["first class".*got list'),
        ("{}", "expected"),
        ("{", "not valid JSON"),
        ('{"label": "a"}', "task 'label': expected"),
        ('{"label": ["a", 1]}', "task 'label': expected"),
        ('{"label": ["a", "b", "a"]}', "task 'label': the class 'a' is there twice"),
        ('{"labels": ["a"]}', r"unknown task 'label'\. Did you mean 'labels'\?"),
        (
            '{"label": ["cat", "dogs"]}',
            r"row 1: 'dog' is no class of task 'label'\. Did you mean 'dogs'\? Its 2 classes",
        ),
    ],
)
def test_wrong_classes_files(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "m.classes.json").write_text(content)
    with pytest.raises(DataError, match=message):
        labelled(tmp_path, ["dog"])


def test_wrong_labels(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"row 3: 'cet' is no class of task 'label'\. Did you mean 'cat'\?.*train split"
    ):
        labelled(tmp_path, ["cat", "dog", "cet"], ["", "", "test"])
    with pytest.raises(DataError, match=r"'2\.5' is no class .* set model\.head\.task=regression\. Its 2 classes"):
        labelled(tmp_path, ["1.5", "-2", "2.5"], ["", "", "test"])
    with pytest.raises(
        DataError, match=r"row 2: several labels 'a;b', but .*'single'; set model\.head\.task=multilabel"
    ):
        labelled(tmp_path, ["a", "a;b"], kinds="single")


def test_rows_without_label(tmp_path: Path) -> None:
    message = r"2 of 3 rows of the train split have no label of task 'label', e\.g\. 'r0', 'r2'"
    with pytest.raises(DataError, match=message):
        labelled(tmp_path, ["", "a", " "])
    found = labelled(tmp_path, ["a", ""], ["", "test"])
    with pytest.raises(DataError, match="1 of 1 rows of the test split have no label"):
        found.require_labels("test")
    assert labelled(tmp_path, ["", "a", ""], labelled=False).tasks == []


def test_balanced_weights(tmp_path: Path) -> None:
    found = labelled(tmp_path, ["a", "a", "a", "b", "a"], ["", "", "", "", "test"])
    weights = found.balanced_weights("train")
    np.testing.assert_allclose(weights, np.array([1 / 3, 1 / 3, 1 / 3, 1]) * 2)
    multi = labelled(tmp_path, ["a;b", "a", ";", "b;a", ";"]).balanced_weights("train")
    expected = np.array([1 / 3 + 1 / 2, 1 / 3, 1 / 2, 1 / 3 + 1 / 2, 1 / 2])
    np.testing.assert_allclose(multi, expected / expected.mean())
    assert labelled(tmp_path, ["1", "2"], kinds="regression").balanced_weights("train").tolist() == [1, 1]


def test_missing_files(tmp_path: Path) -> None:
    rows = [{"id": str(i), "path": f"{i}.mp4", "a": "" if i % 2 else f"{i}.npy"} for i in range(100)]
    for i in range(100):
        (tmp_path / f"{i}.mp4").write_text("x")
        (tmp_path / f"{i}.npy").write_text("x")
    found = read(tmp_path, rows, {"p": "frames", "s": "waveform", "a": "array"})
    whole = check_missing(found, "train", 0.0)
    assert (whole.named, whole.missing) == (150, 0)
    for i in (3, 8, 50):
        (tmp_path / f"{i}.mp4").unlink()
    (tmp_path / "8.npy").unlink()
    losses = check_missing(found, "train", 0.04)
    assert (losses.named, losses.missing) == (150, 4)
    with pytest.raises(
        DataError, match=r"split train: 4 of 150 named files are missing, more than the 1\.00%"
    ) as error:
        check_missing(found, "train", 0.01)
    assert sum(line.endswith(": there is no such file") for line in str(error.value).splitlines()) == 3
    assert str(tmp_path / "3.mp4") in str(error.value)

    losses.add([(8, "8.mp4: there is no such file"), (1, "1.mp4: damaged")])  # row 8 is counted already
    losses.add([(1, "1.mp4: damaged")])
    assert len(losses.unreadable) == 1
    with pytest.raises(DataError, match=r"4 of 150 named files are missing and 3 cannot be read, more than the 4\.00%"):
        losses.add([(2, "2.mp4: damaged"), (4, "4.mp4: damaged")])


def test_pickle(tmp_path: Path) -> None:
    found = labelled(tmp_path, ["a", "b", "a"])
    again = pickle.loads(pickle.dumps(found))
    assert again.row(2) == found.row(2)
    assert again.classes == found.classes


def test_rows_that_name_nothing_are_not_trained_on_nor_counted_as_broken(tmp_path: Path) -> None:
    rows = [{"id": str(i), "path": "" if i % 2 else f"{i}.mp4", "label": "ab"[i > 3]} for i in range(6)]
    for i in (0, 2, 4):
        write_movie(tmp_path / f"{i}.mp4", 0.4)
    found = Manifest.read(write_csv(tmp_path / "m.csv", rows), {"p": "frames"}, DataConfig(test_fraction=0))
    assert found.rows("train").tolist() == list(range(6))
    assert found.usable("train").tolist() == [0, 2, 4]
    assert found.balanced_weights("train").tolist() == [0.75, 0.75, 1.5]
    losses = check_missing(found, "train", 0.0)
    losses.add([(1, "row '1': all its cells are empty"), (3, "row '3': all its cells are empty")])
    assert (losses.named, losses.unreadable) == (3, {})
    with pytest.raises(DataError, match="1 cannot be read"):
        losses.add([(2, "2.mp4: broken")])


def test_a_fingerprint_tells_what_has_changed(tmp_path: Path) -> None:
    rows = [
        {"id": f"r{i}", "path": f"{i}.mp4", "label": "ab"[i % 2], "split": "train" if i else "test"} for i in range(4)
    ]
    before = read(tmp_path / "one", rows).fingerprint()
    assert before["rows"].startswith("4 ")
    assert before["split train"].startswith("3 ")

    def changed(rows: list[dict[str, str]], **options: object) -> set[str]:
        now = read(tmp_path / "two", rows, **options).fingerprint()
        return {part for part in before | now if before.get(part) != now.get(part)}

    assert changed(rows) == set()  # in another folder, written at another time
    assert changed(rows[::-1]) == {"order"}
    assert changed([row | {"label": "ba"[i % 2]} for i, row in enumerate(rows)]) == {"labels of label"}
    assert changed([row | {"path": "x.mp4"} for row in rows]) == {"files of p"}
    assert changed([row | {"split": "train"} for row in rows]) == {"split train", "split test"}
    assert changed([row | {"start": "1"} for row in rows]) == {"spans"}
    assert changed([row | {"fps": "25"} for row in rows]) == {"rates"}
    # the hold-out is of the run, not of the file alone
    assert changed(rows, config={"folds": 3}) >= {"split train", "split val"}
    (tmp_path / "two" / "m.classes.json").write_text('{"label": ["b", "a"]}')
    assert changed(rows) == {"classes"}

"""Examples: content, presence, windows, randomness, what cannot be read."""

from collections import Counter
from pathlib import Path
from typing import Any

import media_files
import numpy as np
import pytest
import torch

from core.data.fakes import Fake, Words, four, reads_of, write_csv, write_data, write_movie
from mbt_core.config import DataConfig
from mbt_core.data.dataset import ClipDataset, Draw, Example
from mbt_core.data.manifest import Manifest
from mbt_core.errors import ConfigError, DataError
from mbt_core.media import Clip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def dataset(path: Path, modalities: dict[str, Any] | None = None, **options: Any) -> ClipDataset:
    modalities = modalities or four(p=0.2, s=0.3)
    config = DataConfig(**options.pop("config", {}))
    manifest = Manifest.read(path, reads_of(modalities), config)
    options = {"tasks": {"label": "single"}, "seed": 3, "training": True} | options
    return ClipDataset(manifest, modalities, config=config, **options)


def windows(example: Example) -> dict[str, tuple[float, float]]:
    return {n: tuple(s["window"].tolist()) for n, s in example.samples.items() if example.present[n]}


def same(a: Example, b: Example, names: Any = None) -> bool:
    names = names or a.samples
    return all(torch.equal(a.samples[n][key], b.samples[n][key]) for n in names for key in a.samples[n])


def test_content_presence_and_targets(data: Path) -> None:
    (example,) = dataset(data, four(), training=False)[Draw(0, 3)]
    assert example.present == dict.fromkeys("psaw", True)
    assert media_files.shown(example.samples["p"]["x"].numpy()) == [0, 7]  # 0.6 s at 25 frames a second
    assert example.samples["a"]["x"].tolist() == [3, 4, 5, 6]
    assert "".join(map(chr, example.samples["w"]["x"].int())).rstrip("\0") == "word 3"
    assert example.samples["s"]["x"].abs().max() > 0.3
    assert (example.index, example.view, example.weight, example.error) == (3, 0, 1.0, None)
    assert example.targets["label"].dtype == torch.int64
    assert example.targets["label"].tolist() == 1


def test_absent_is_a_stand_in(data: Path) -> None:
    found = dataset(data, four(), training=False)
    (silent,), (without_array,) = found[Draw(0, 1)], found[Draw(0, 2)]
    assert silent.present == {"p": True, "s": False, "a": True, "w": True}
    assert silent.samples["s"]["x"].tolist() == [0.0] * 1000
    assert without_array.present["a"] is False
    assert (silent.weight, without_array.weight) == (1.0, 1.0)


def test_uniform_views(data: Path) -> None:
    found = dataset(data, training=False, views=3)
    views = found[Draw(0, 2)]  # 1 s
    assert [e.view for e in views] == [0, 1, 2]
    starts = [windows(e)["p"][0] for e in views]
    assert starts == pytest.approx([0, 0.4, 0.8], abs=0.03)
    assert all(float(e.samples["p"]["drawn"]) == 0 for e in views)
    assert windows(views[1])["s"] == pytest.approx((0.35, 0.65), abs=0.03)


def test_random_windows_together_or_each_its_own(data: Path) -> None:
    together, apart = dataset(data), dataset(data, config={"sync": False})
    free = {"p": 0.8, "s": 0.7}  # of 1 s

    def places(found: ClipDataset, epoch: int) -> list[float]:
        spans = windows(found[Draw(epoch, 2)][0])
        return [spans[name][0] / free[name] for name in ("p", "s")]

    first = [places(together, epoch) for epoch in range(8)]
    assert all(p == pytest.approx(s, abs=0.05) for p, s in first)
    assert len({round(p, 3) for p, _ in first}) == 8
    assert all(0 <= p <= 1.01 for p, _ in first)
    second = [places(apart, epoch) for epoch in range(8)]
    assert sum(abs(p - s) > 0.06 for p, s in second) >= 6


def test_an_example_depends_on_seed_epoch_row_and_repeat_only(data: Path) -> None:
    found = dataset(data)
    (a,), (b,) = found[Draw(5, 0)], dataset(data)[Draw(5, 0)]
    assert same(a, b)
    for other in (found[Draw(6, 0)], found[Draw(5, 0, 1)], dataset(data, seed=4)[Draw(5, 0)]):
        assert a.samples["w"]["drawn"] != other[0].samples["w"]["drawn"]
    assert same(a, dataset(data, seed=3 - 2**64)[Draw(5, 0)][0])  # a negative seed works as well


@pytest.mark.parametrize("sync", [True, False])
def test_leaving_a_modality_out_does_not_change_the_others(data: Path, sync: bool) -> None:
    fewer = {name: modality for name, modality in reversed(four(p=0.2, s=0.3).items()) if name != "s"}
    (a,) = dataset(data, config={"sync": sync})[Draw(1, 0)]
    (b,) = dataset(data, fewer, config={"sync": sync})[Draw(1, 0)]
    assert same(a, b, "paw")


def test_modality_dropout(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "m.csv", [{"id": "1", "u": "hi", "v": "ho", "w": "hu", "label": "a"}])
    words = {name: Words(name) for name in "uvw"}
    found = dataset(path, words, dropout={"u": 0.5, "w": 0.25})
    examples = [found[Draw(epoch, 0)][0] for epoch in range(400)]
    absent = Counter(name for e in examples for name, present in e.present.items() if not present)
    assert set(absent) == {"u", "w"}
    assert absent["u"] == pytest.approx(200, abs=40)
    assert absent["w"] == pytest.approx(100, abs=35)
    both = sum(not e.present["u"] and not e.present["w"] for e in examples)
    assert both == pytest.approx(50, abs=25)
    assert same(examples[0], dataset(path, words)[Draw(0, 0)][0], [n for n, p in examples[0].present.items() if p])


def test_one_modality_always_stays(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "m.csv", [{"id": "1", "w": "hi", "v": "ho", "x": "", "label": "a"}])
    found = dataset(path, {name: Words(name) for name in "wvx"}, dropout=0.99)
    kept = Counter(tuple(n for n, p in found[Draw(i, 0)][0].present.items() if p) for i in range(400))
    assert set(kept) <= {("w",), ("v",), ("w", "v")}
    assert kept[("w",)] == pytest.approx(200, abs=40)
    assert kept[("v",)] == pytest.approx(200, abs=40)
    assert all(found[Draw(i, 0)][0].weight == 1 for i in range(20))


def test_a_shared_file_is_opened_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    original = Clip.__init__

    def counting(self: Clip, source: Any, *args: Any, **options: Any) -> None:
        opened.append(str(source))
        original(self, source, *args, **options)

    monkeypatch.setattr(Clip, "__init__", counting)
    dataset(data, training=False, views=3)[Draw(0, 0)]
    assert sorted(Path(name).name for name in opened if name.startswith("/")) == ["0.mp4", "0.npy"]


@pytest.mark.parametrize("training", [True, False])
def test_what_cannot_be_read_weighs_nothing(tmp_path: Path, training: bool) -> None:
    write_movie(tmp_path / "ok.mp4")
    (tmp_path / "bad.mp4").write_bytes((tmp_path / "ok.mp4").read_bytes()[:3000])
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY garbage")
    cells = [("ok.mp4", ""), ("bad.mp4", ""), ("ok.mp4", "bad.npy"), ("gone.mp4", ""), ("", ""), ("bad.npy", "")]
    rows = [{"id": f"r{i}", "path": p, "a": a, "w": "", "label": "x"} for i, (p, a) in enumerate(cells)]
    found = dataset(write_csv(tmp_path / "m.csv", rows), training=training, views=1 if training else 2)
    results = [found[Draw(0, i)] for i in range(len(rows))]
    assert [r[0].weight for r in results] == [1, 0, 0, 0, 0, 0]
    assert all(len(r) == (1 if training else 2) for r in results)
    errors = [r[0].error or "" for r in results]
    for error, part in zip(errors, ["", "bad.mp4", "bad.npy", "gone.mp4: there is no such", "row 'r4': all", "bad.npy"],
                           strict=True):  # fmt: skip
        assert part in error
    for result in results[1:]:
        assert not any(result[0].present.values())
        assert {n: s["x"].shape for n, s in result[0].samples.items()} == {n: m.empty.shape for n, m in four().items()}
        assert result[0].targets["label"].tolist() == 0


def test_a_missing_file_beside_a_present_one_is_absent(tmp_path: Path) -> None:
    rows = [{"id": "1", "path": "gone.mp4", "a": "", "w": "hello", "label": "x"}]
    (example,) = dataset(write_csv(tmp_path / "m.csv", rows))[Draw(0, 0)]
    assert example.present == {"p": False, "s": False, "a": False, "w": True}
    assert (example.weight, example.error) == (1.0, None)


def test_nothing_that_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 4)))
    path = write_csv(tmp_path / "m.csv", [{"id": "1", "path": "x.npy", "label": "x"}])
    modalities = {name: modality for name, modality in four().items() if name in "ps"}
    assert (
        "x.npy: holds nothing that the model reads (frames or waveform)"
        in dataset(path, modalities)[Draw(0, 0)][0].error
    )


def test_a_row_past_the_end_of_its_file(tmp_path: Path) -> None:
    write_movie(tmp_path / "x.mp4")
    rows = [{"id": "1", "path": "x.mp4", "a": "", "w": "", "label": "x", "start": 30, "end": 40}]
    (example,) = dataset(write_csv(tmp_path / "m.csv", rows))[Draw(0, 0)]
    assert example.weight == 0
    assert "x.mp4: 'p' (frames): its row starts at 30 s, but it is only 1 s long" in example.error


def test_windows_of_streams_of_different_lengths_are_of_the_same_time(tmp_path: Path) -> None:
    media_files.write_media(tmp_path / "x.mp4", media_files.counting(100), media_files.sine(2.048, 16000))  # 4 s, 2 s
    rows = [{"id": "1", "path": "x.mp4", "w": "", "label": "x", "start": s} for s in ("", 1, 3)]
    rows = [row | {"id": str(i)} for i, row in enumerate(rows)]
    path = write_csv(tmp_path / "m.csv", rows)
    clips = {n: m for n, m in four(p=0.5, s=0.5).items() if n != "a"}
    views = [windows(e) for e in dataset(path, clips, training=False, views=3)[Draw(0, 0)]]
    assert all(view["p"] == view["s"] for view in views)
    assert views[2]["s"] == pytest.approx((1.55, 2.05), abs=0.05)
    for index, epoch in ((0, 0), (0, 1), (1, 2), (1, 3)):
        drawn = windows(dataset(path, clips)[Draw(epoch, index)][0])
        assert drawn["p"] == drawn["s"]
        assert index <= drawn["p"][0] <= 1.6
        (left,) = dataset(path, clips, dropout={"s": 0.999})[Draw(epoch, index)]  # it changes no others
        assert windows(left) == {"p": drawn["p"]}
    apart = windows(dataset(path, clips, training=False, views=3, config={"sync": False})[Draw(0, 0)][2])
    assert apart["p"] == pytest.approx((3.5, 4.0), abs=0.05)
    (past,) = dataset(path, clips, training=False)[Draw(0, 2)]
    assert (past.error or "").endswith(f"'s' (waveform): its row starts at 3 s, but it is only {2.048:g} s long")
    whole = {"p": clips["p"], "s": four()["s"]}  # what is read as a whole leaves the windows of others where they are
    view = windows(dataset(path, whole, training=False, views=2)[Draw(0, 0)][1])
    assert (view["p"], view["s"]) == (pytest.approx((3.5, 4.0), abs=0.05), pytest.approx((0, 2.05), abs=0.05))


def test_a_text_that_ended_does_not_move_the_windows_of_others(tmp_path: Path) -> None:
    write_movie(tmp_path / "x.mp4", 3.0)
    (tmp_path / "x.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nword\n")
    rows = [{"id": "1", "path": "x.mp4", "w.path": "x.srt", "label": "x", "start": 2, "end": 3}]
    clips = {n: m for n, m in four(p=0.2, w=0.2).items() if n in "pw"}
    first, last = dataset(write_csv(tmp_path / "m.csv", rows), clips, training=False, views=2)[Draw(0, 0)]
    assert [windows(view)["w"] for view in (first, last)] == [pytest.approx((2.0, 2.2)), pytest.approx((2.8, 3.0))]
    assert all(windows(view)["p"] == windows(view)["w"] for view in (first, last))


def test_a_row_is_read_inside_its_span(tmp_path: Path) -> None:
    write_movie(tmp_path / "x.mp4", 2.0)
    rows = [{"id": "1", "path": "x.mp4", "a": "", "w": "", "label": "x", "start": 0.8, "end": 1.4}]
    found = dataset(write_csv(tmp_path / "m.csv", rows), training=False, views=2)
    assert [windows(e)["p"] for e in found[Draw(0, 0)]] == [pytest.approx((0.8, 1.0)), pytest.approx((1.2, 1.4))]
    assert media_files.shown(found[Draw(0, 0)][0].samples["p"]["x"].numpy()) == [20, 22]


def test_a_link_out_of_the_root_is_never_opened(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_movie(tmp_path / "secret.mp4")
    path = write_csv(folder / "m.csv", [{"id": "1", "path": "x.mp4", "a": "", "w": "", "label": "x"}])
    (folder / "x.mp4").symlink_to(tmp_path / "secret.mp4")
    (example,) = dataset(path, config={"confine": True})[Draw(0, 0)]
    assert example.weight == 0
    assert "leaves the root" in example.error


class Broken(Fake):
    reads = "text"
    empty = torch.zeros(1)

    def read(self, clip: Any, window: Any, rng: Any) -> Any:
        raise self.config_error

    config_error: Exception = TypeError("a bug")


def test_a_bug_of_a_modality_is_raised_with_its_row(data: Path) -> None:
    with pytest.raises(TypeError, match="a bug") as error:
        dataset(data, {"w": Broken("w")})[Draw(0, 0)]
    assert error.value.__notes__ == ["while 'w' read row0: w, row 'row0'"]
    broken = Broken("w")
    broken.config_error = ConfigError("frames is still 'auto'")
    with pytest.raises(ConfigError, match="still 'auto'"):
        dataset(data, {"w": broken})[Draw(0, 0)]


def test_tasks_of_other_kinds(tmp_path: Path, data: Path) -> None:
    words = {"w": four()["w"]}
    multi = dataset(data, words, tasks={"label": "multilabel"})[Draw(0, 1)][0].targets["label"]
    assert multi.dtype == torch.float32
    assert multi.tolist() == [0, 1]
    with pytest.raises(ConfigError, match=r"unknown task 'verb'.*Known: label"):
        dataset(data, words, tasks={"verb": "single"})
    with pytest.raises(ConfigError, match=r"'regression' for 'label', but .* was read as 'single'"):
        dataset(data, words, tasks={"label": "regression"})
    several = write_csv(tmp_path / "m.csv", [{"id": "1", "w": "x", "label": "a;b"}])
    with pytest.raises(ConfigError, match="some rows have several labels joined by ';'"):
        dataset(several, words)
    assert dataset(several, words, tasks={"label": "multilabel"})[Draw(0, 0)][0].targets["label"].tolist() == [1, 1]
    assert dataset(several, words, tasks={})[Draw(0, 0)][0].targets == {}


def test_regression_targets(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "m.csv", [{"id": "1", "w": "x", "label": "0.5;-2"}])
    words = {"w": four()["w"]}
    manifest = Manifest.read(path, reads_of(words), DataConfig(), kinds="regression")
    found = ClipDataset(manifest, words, {"label": "regression"}, config=DataConfig(), seed=0, training=False)
    target = found[Draw(0, 0)][0].targets["label"]
    assert (target.dtype, target.tolist()) == (torch.float32, [0.5, -2.0])


def test_a_row_without_label_is_never_silent(tmp_path: Path) -> None:
    rows = [{"id": "1", "w": "x", "label": "a", "split": ""}, {"id": "2", "w": "x", "label": "", "split": "test"}]
    found = dataset(write_csv(tmp_path / "m.csv", rows), {"w": four()["w"]})
    with pytest.raises(DataError, match="row 2 has no label of task 'label'"):
        found[Draw(0, 1)]

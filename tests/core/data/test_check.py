"""The report on a data set, and filling ``auto`` fields."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import media_files
import numpy as np
import pytest

from core.data.fakes import Fake, FakeConfig, Pictures, Series, Sound, four, read, write_csv, write_data
from mbt_core import ModalitySpec, hookimpl, registry
from mbt_core.data.check import _sample, check, fit_modalities
from mbt_core.data.readers import Turn
from mbt_core.errors import DataError
from mbt_core.media import open_clip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_data(tmp_path, 6)
    (tmp_path / "4.mp4").write_bytes((tmp_path / "4.mp4").read_bytes()[:3000])
    (tmp_path / "5.npy").unlink()
    rows = [
        {"id": f"r{i}", "path": f"{i}.mp4", "a": "" if i == 2 else f"{i}.npy", "w": "x" if i else "",
         "label": "ab"[i % 2], "split": "test" if i == 5 else ""}
        for i in range(6)
    ]  # fmt: skip
    return write_csv(tmp_path / "m.csv", rows)


def test_report(data: Path) -> None:
    modalities = four()
    steps: list[tuple[int, int]] = []
    report = check(read(data, modalities), modalities, progress=lambda *step: steps.append(step))
    assert json.loads(json.dumps(report)) == report
    assert report["classes"] == {"label": 2}
    train, test = report["splits"]["train"], report["splits"]["test"]
    assert (train["rows"], train["checked"], test["rows"]) == (5, 5, 1)
    assert train["class_counts"] == {"label": {"a": 3, "b": 2}}
    assert steps == [(i + 1, 6) for i in range(6)]

    def states(found: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        names = ("present", "missing", "unreadable", "absent")
        return {name: tuple(m[key] for key in names) for name, m in found["modalities"].items()}

    assert states(train) == {"p": (4, 0, 1, 0), "s": (3, 0, 1, 1), "a": (4, 0, 0, 1), "w": (4, 0, 0, 1)}
    assert states(test) == {"p": (1, 0, 0, 0), "s": (1, 0, 0, 0), "a": (0, 1, 0, 0), "w": (1, 0, 0, 0)}
    pictures, sound, array = (train["modalities"][name] for name in "psa")
    assert pictures["seconds"] == pytest.approx({"min": 0.6, "median": 0.7, "max": 1.0}, abs=0.001)
    assert pictures["sizes"] == {"64x48": 4}
    assert pictures["frame_rates"] == {"25": 4}
    assert (sound["sample_rates"], sound["sizes"]) == ({"16000": 3}, {})
    assert (array["sizes"], array["seconds"]) == ({"1x5": 4}, None)
    assert "4.mp4" in pictures["problems"][0]
    assert test["modalities"]["a"]["problems"] == [f"{data.parent / '5.npy'}: there is no such file"]


def test_a_file_of_many_rows_is_opened_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"id": f"r{i}", "path": f"{i % 2}.mp4", "a": "", "w": "x", "label": "a", "split": "", "start": start}
        for i, start in enumerate((0.0, 0.1, 0.2, 0.3, 0.4, 0.9))
    ]
    opened: list[str] = []

    def counting(path: str, **options: Any) -> Any:
        opened.append(Path(path).name)
        return open_clip(path, **options)

    monkeypatch.setattr("mbt_core.data.check.open_clip", counting)
    report = check(read(write_csv(data.parent / "long.csv", rows), four(), val_fraction=0.0), workers=0)
    assert sorted(opened) == ["0.mp4", "1.mp4"]
    found = report["splits"]["train"]["modalities"]
    assert (found["p"]["present"], found["p"]["unreadable"]) == (5, 1)  # 1.mp4 is 0.8 s long
    assert (found["s"]["present"], found["s"]["absent"]) == (3, 3)
    assert "a row starts at 0.9 s, but it is only 0.8 s long" in found["p"]["problems"][0]


def test_limit_and_choice(data: Path) -> None:
    modalities = four()
    report = check(read(data, modalities), {"a": modalities["a"]}, limit=2)
    train = report["splits"]["train"]
    assert (train["rows"], train["checked"]) == (5, 2)
    assert list(train["modalities"]) == ["a"]
    assert train["modalities"]["a"]["present"] == 2


def test_a_link_out_of_the_root_is_unreadable(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    path = write_csv(folder / "m.csv", [{"id": "1", "path": "x.mp4", "w": "", "a": "", "label": "a"}])
    (folder / "x.mp4").symlink_to(tmp_path / "0.mp4")
    report = check(read(path, four(), confine=True))
    assert report["splits"]["train"]["modalities"]["p"]["unreadable"] == 1


class LevelConfig(FakeConfig):
    kind: str = "level"


class Level(Series):
    """Fits the mean first value of its arrays, and remembers the spans."""

    kind = "level"
    spans: list[Any] = []

    def __init__(self, name: str, config: Any) -> None:
        Fake.__init__(self, name)

    @classmethod
    def fit(cls, config: Any, clips: Any) -> Any:
        assert list(clips) == list(clips)
        cls.spans = [window for _, window in clips]
        values = [clip.array()[0, 0] for clip, _ in clips]
        return config if values[0] == 99 else config.model_copy(update={"level": float(np.mean(values))})


@pytest.fixture
def level() -> Iterator[type[LevelConfig]]:
    class Plugin:
        @hookimpl
        def mbt_modalities(self) -> list[ModalitySpec]:
            return [ModalitySpec("level", f"{__name__}:LevelConfig", f"{__name__}:Level")]

    plugin = Plugin()
    registry().register(plugin, "level")
    try:
        yield LevelConfig
    finally:
        registry().unregister(plugin)


def arrays(folder: Path, values: list[float], **cells: list[Any]) -> Path:
    rows = []
    for i, value in enumerate(values):
        np.save(folder / f"{i}.npy", np.full((1, 5), value, np.float32))
        rows.append({"id": f"r{i}", "a": f"{i}.npy", "label": "x", **{name: cell[i] for name, cell in cells.items()}})
    return write_csv(folder / "m.csv", rows)


def test_fit_reads_train_only(tmp_path: Path, level: Any) -> None:
    path = arrays(tmp_path, [1, 2, 3, 40], split=["", "", "", "test"], start=["", 1, 1, ""], end=["", "", 5, ""])
    (tmp_path / "1.npy").write_bytes(b"damaged")
    fitted = fit_modalities(read(path, {"a": Level("a", None)}), {"a": level(level="auto")}, workers=0)
    assert fitted["a"].level == 2.0
    assert sorted(map(repr, Level.spans)) == ["None", "Window(start=1.0, stop=5.0)"]
    given = level(level=0.5)
    assert fit_modalities(read(path, {"a": Level("a", None)}), {"a": given})["a"] is given


def test_an_open_end_is_that_of_the_modality(tmp_path: Path) -> None:
    media_files.write_media(tmp_path / "m.mkv", media_files.counting(25), media_files.sine(0.4, 16000))
    row = {"id": "a", "path": "m.mkv", "start": 0.2, "label": "x"}
    modalities = {"p": Pictures("p"), "s": Sound("s")}
    manifest = read(write_csv(tmp_path / "m.csv", [row]), modalities, val_fraction=0.0)
    ends = {}
    for name, modality in modalities.items():
        with ExitStack() as stack:
            ((_, window),) = _sample(manifest, modality, 60.0, stack, [0], Turn())
            ends[name] = window.stop
    assert ends == pytest.approx({"p": 1.0, "s": 0.4}, abs=0.1)


def test_fit_takes_the_same_64_clips_every_time(tmp_path: Path, level: Any) -> None:
    manifest = read(arrays(tmp_path, list(range(100)), split=["train"] * 100), {"a": Level("a", None)})
    first = fit_modalities(manifest, {"a": level(level="auto")}, workers=0)
    assert len(Level.spans) == 64
    assert fit_modalities(manifest, {"a": level(level="auto")}) == first


@pytest.mark.parametrize(
    ("value", "readable", "message"),
    [
        (
            99,
            True,
            r"modalities\.a\.level: 'auto' cannot be filled from the train split of .*its 2 clips do not tell",
        ),
        (1, False, r"modalities\.a\.level: .*: no row of it has a readable file; give a value"),
    ],
)
def test_fields_that_stay_auto(tmp_path: Path, level: Any, value: float, readable: bool, message: str) -> None:
    path = arrays(tmp_path, [value, value])
    if not readable:
        (tmp_path / "0.npy").unlink()
        (tmp_path / "1.npy").write_bytes(b"damaged")
    with pytest.raises(DataError, match=message):
        fit_modalities(read(path, {"a": Level("a", None)}), {"a": level(level="auto")})

"""Windows that slide over files, and answers of a model."""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from media_files import counting, sine, write_media

from mbt_core.config import DataConfig, HeadConfig
from mbt_core.data.collate import Batch
from mbt_core.evaluate.predict import FilePrediction, _rows, answers_of
from mbt_core.model import MBT


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound of 3.9 s."""
    return write_media(tmp_path_factory.mktemp("sound") / "s.wav", None, sine(3.9, 8000), rate=8000, audio_codec="flac")


def windows(path: Path, every: float, length: float) -> Iterator[Any]:
    modalities: Any = {"x": SimpleNamespace(seconds=length)}
    return _rows([path], modalities, DataConfig(), every)


@pytest.mark.parametrize(
    ("every", "length", "starts"),
    [
        (1, 1, [0, 1, 2, 2.9]),
        (0.5, 3, [0, 0.5, 0.9]),
        (1.3, 1.3, [0, 1.3, 2.6]),
        (0.1, 3.6, [0, 0.1, 0.2, 0.3]),
        (2, 3.9, [0]),
        (1, 5, [0]),
    ],
)
def test_windows_reach_the_end(sound: Path, every: float, length: float, starts: list[float]) -> None:
    found = list(windows(sound, every, length))
    assert [start for _, start, _ in found] == pytest.approx(starts)
    assert [end for _, _, end in found] == pytest.approx([min(start + length, 3.9) for start in starts])


def test_windows_are_made_as_they_are_asked_for(sound: Path) -> None:
    assert [start for _, start, _ in islice(windows(sound, 3e-6, 1), 3)] == [0, 3e-6, 6e-6]


@pytest.mark.parametrize("every", [1e-6, 1e-300, 5e-324])
def test_too_many_windows_are_one_error(sound: Path, every: float) -> None:
    [found] = windows(sound, every, 1)
    assert found == FilePrediction(
        str(sound),
        error=f"3.9 s long by its own account: more than 1000000 windows at --every {every:g}; give a larger one, or "
        "mend the file",
    )


def test_a_file_that_claims_years_has_the_windows_of_its_packets(tmp_path: Path) -> None:
    path = write_media(tmp_path / "h.mkv", counting(10))
    written, count = re.subn(rb"\d\d:\d\d:\d\d\.\d{9}", b"99999:00:03.900000", path.read_bytes())
    assert count
    path.write_bytes(written)
    assert list(windows(path, 1, 1)) == [(str(path), 0, pytest.approx(0.4))]


@pytest.mark.parametrize("task", ["single", "multilabel", "regression"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_an_error(task: str, bad: float) -> None:
    names = [f"class_{i}" for i in range(5)]
    head = HeadConfig(classes=5, task=task)
    model = SimpleNamespace(config=SimpleNamespace(head=head), output_names=lambda task: names)
    logits = torch.arange(15.0).reshape(3, 5)
    logits[1] = bad if task == "regression" else float("nan")
    here = torch.ones(3, dtype=torch.bool)
    rows = torch.arange(3)
    batch = Batch({}, {"x": here}, {}, torch.ones(3), rows, torch.zeros(3, dtype=torch.int64), [], True)
    first, second, third = answers_of(batch, {"label": logits}, cast(MBT, model), 2, "logits")
    assert second.error is not None
    assert second.error.startswith("the model gives no finite scores")
    assert second.top == {}
    assert first.error is third.error is None
    assert len(first.top["label"]) == (5 if task == "regression" else 2)

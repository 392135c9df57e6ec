"""Batches."""

from pathlib import Path

import pytest
import torch

from core.data.fakes import Words, four, read, write_csv, write_data
from mbt_core.config import DataConfig
from mbt_core.data.collate import Batch, Collate, Copier, Preprocess
from mbt_core.data.dataset import ClipDataset, Draw
from mbt_core.errors import MBTError


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    path = write_data(tmp_path_factory.mktemp("data"))
    (path.parent / "4.mp4").write_bytes(b"no video")
    modalities = four(p=0.2, s=0.3)
    dataset = ClipDataset(
        read(path, modalities), modalities, {"label": "single"}, config=DataConfig(), seed=0, training=False, views=2
    )
    return Collate(modalities)([dataset[Draw(0, i)] for i in range(5)])


def test_batch(batch: Batch) -> None:
    assert len(batch) == 10
    assert batch.index.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert batch.view.tolist() == [0, 1] * 5
    assert batch.weight.tolist() == [1.0] * 8 + [0.0] * 2
    assert batch.weight.dtype == torch.float32
    assert batch.present["s"].tolist() == [True, True, False, False, True, True, True, True, False, False]
    assert batch.present["a"].tolist() == [True] * 4 + [False] * 2 + [True] * 2 + [False] * 2
    assert batch.targets["label"].tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 0, 0]
    assert batch.samples["p"]["x"].shape == (10, 2, 12, 12, 3)
    assert batch.samples["p"]["x"].dtype == torch.uint8
    assert batch.complete is False
    assert [row for row, _ in batch.errors] == [4]
    assert "4.mp4" in batch.errors[0][1]


def test_preprocess_and_to(batch: Batch) -> None:
    inputs = Preprocess(four())(batch.to("cpu"))
    assert list(inputs) == list("psaw")
    assert inputs["p"].dtype == torch.float32
    assert torch.equal(batch.to("cpu", non_blocking=False).present["s"], batch.present["s"])


def test_split(batch: Batch) -> None:
    parts = batch.split(4)
    assert [len(part) for part in parts] == [3, 3, 2, 2]
    assert torch.equal(torch.cat([part.samples["s"]["x"] for part in parts]), batch.samples["s"]["x"])
    assert [part.errors for part in parts] == [[], [], [], batch.errors]
    assert [len(part) for part in batch.split(99)] == [1] * 10
    assert batch.split(1) == [batch]


def test_complete(tmp_path: Path) -> None:
    words = {"w": Words("w")}
    path = write_csv(tmp_path / "m.csv", [{"id": "1", "w": "a"}, {"id": "2", "w": ""}])
    dataset = ClipDataset(read(path, words), words, {}, config=DataConfig(), seed=0, training=False)
    assert Collate(words)([dataset[Draw(0, 0)]]).complete is True
    assert Collate(words)([dataset[Draw(0, 0)], dataset[Draw(0, 1)]]).complete is False


def test_samples_of_different_shapes(tmp_path: Path) -> None:
    class Ragged(Words):
        def content(self, clip: object, window: object) -> torch.Tensor:
            return torch.zeros(len(clip.text()))  # type: ignore[attr-defined]

    words = {"w": Ragged("w")}
    path = write_csv(tmp_path / "m.csv", [{"id": "1", "w": "abc"}, {"id": "2", "w": "ab"}])
    dataset = ClipDataset(read(path, words), words, {}, config=DataConfig(), seed=0, training=False)
    with pytest.raises(MBTError, match=r"w: the samples of a batch do not fit together: x \[3\].* and x \[2\]"):
        Collate(words)([dataset[Draw(0, 0)], dataset[Draw(0, 1)]])


GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
def test_copied_whole(batch: Batch, device: str) -> None:
    """One after the other, each right while the next is copied."""
    host = batch.pin_memory() if device == "cuda" else batch
    copy = Copier(torch.device(device))
    for _ in range(3):
        there = copy(host)
        assert {x.device.type for x in (there.weight, there.index, *there.targets.values())} == {device}
        assert torch.equal(there.index.cpu() * 1, batch.index)
        for name, sample in batch.samples.items():
            assert all(torch.equal(there.samples[name][key].cpu(), x) for key, x in sample.items())
        assert there.errors == batch.errors

"""Reading in several processes."""

import faulthandler
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from core.data.fakes import Words, four, read, write_csv, write_data
from mbt_core.config import DataConfig
from mbt_core.data import loader as loaders
from mbt_core.data import readers
from mbt_core.data.cache import Cache
from mbt_core.data.collate import Batch
from mbt_core.data.dataset import ClipDataset
from mbt_core.data.loader import auto_workers, make_loader
from mbt_core.data.sampler import EvalSampler, TrainSampler
from mbt_core.errors import ConfigError, DataError

CPU = torch.device("cpu")


def flat(batch: Batch) -> list[torch.Tensor]:
    samples = [x for name in batch.samples for x in batch.samples[name].values()]
    return [*samples, *batch.present.values(), *batch.targets.values(), batch.weight, batch.index, batch.view]


def equal(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        len(flat(x)) == len(flat(y)) and all(map(torch.equal, flat(x), flat(y))) and x.errors == y.errors
        for x, y in zip(a, b, strict=True)
    )


def training_set(path: Path, **options: Any) -> ClipDataset:
    modalities = four(p=0.2, s=0.3)
    manifest = read(path, modalities)
    return ClipDataset(
        manifest, modalities, {"label": "single"}, config=DataConfig(sync=False), seed=0, training=True,
        dropout=0.3, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_data(tmp_path_factory.mktemp("data"))
    (path.parent / "4.mp4").write_bytes(b"no video")
    return path


def test_batches_do_not_depend_on_the_number_of_processes(data: Path) -> None:
    def batches(workers: int) -> list[Batch]:
        dataset = training_set(data)
        sampler = TrainSampler(dataset.manifest.rows("train"), 4, 6, seed=5)
        return list(make_loader(dataset, sampler, workers, CPU))

    alone = batches(0)
    assert len(alone) == 6
    assert any(batch.errors for batch in alone)
    assert equal(alone, batches(1))
    assert equal(alone, batches(2))


@pytest.mark.slow
def test_a_data_set_can_be_sent_to_fresh_processes(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = training_set(data)
    sampler = TrainSampler(dataset.manifest.rows("train"), 4, 3, seed=5)
    monkeypatch.setattr(readers, "start_method", lambda: "forkserver")
    assert equal(list(make_loader(dataset, sampler, 1, CPU)), list(make_loader(dataset, sampler, 0, CPU)))


def test_a_loader_can_be_used_again(data: Path) -> None:
    dataset = training_set(data)
    loader = make_loader(dataset, EvalSampler(range(6), 4), 1, CPU)
    assert equal(list(loader), list(loader))


class Deadly(Words):
    """Does to its process what the text says."""

    def content(self, clip: Any, window: Any) -> torch.Tensor:
        match clip.text():
            case "kill":
                faulthandler.disable()  # pytest would print where
                os.kill(os.getpid(), signal.SIGSEGV)
            case "exit":
                os._exit(3)
            case "hang":
                time.sleep(60)
            case "eat":
                torch.empty(6 << 30, dtype=torch.uint8)
            case "once":
                if not (marker := Path(os.environ["MARKER"])).exists():
                    marker.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            case "config":
                raise ConfigError("frames is still 'auto'")
            case "bug":
                raise KeyError("a bug")
        return super().content(clip, window)


def words_of(path: Path, texts: list[str]) -> ClipDataset:
    words = {"w": Deadly("w")}
    rows = [{"id": str(number), "w": text} for number, text in enumerate(texts)]
    manifest = read(write_csv(path, rows), words)
    return ClipDataset(manifest, words, {}, config=DataConfig(), seed=0, training=False)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [("config", ConfigError, r"^frames is still 'auto'$"), ("bug", KeyError, "while 'w' read")],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_errors_that_are_no_fault_of_a_row(
    tmp_path: Path, text: str, error: type[Exception], message: str, workers: int
) -> None:
    dataset = words_of(tmp_path / "m.csv", ["fine", text])
    with pytest.raises(error, match=message):
        list(make_loader(dataset, EvalSampler([0, 1], 1), workers, CPU))


LOST = {
    "kill": "the process that read it died (SIGSEGV)",
    "exit": "the process that read it died (exit code 3)",
    "hang": "reading it did not end within 1 s",
    "eat": "reading it takes too much memory: ",
}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_row_that_its_process_comes_to_grief_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """It counts as unreadable; all others are what they are without it, and it is not tried again."""
    monkeypatch.setattr(loaders, "patience_for", lambda timeout: 1.0)
    texts = ["a", "kill", "b", "exit", "c", "hang", "d", "eat", "e"]
    dataset = words_of(tmp_path / "m.csv", texts)
    loader = make_loader(dataset, EvalSampler(range(len(texts)), 4), workers, CPU)
    batches = list(loader)
    errors = {texts[row]: error for batch in batches for row, error in batch.errors}
    assert errors.keys() == LOST.keys()
    for text, error in errors.items():
        assert error.startswith(f"row '{texts.index(text)}': {LOST[text]}")
    weights = torch.cat([batch.weight for batch in batches])
    assert weights.tolist() == [float(text not in LOST) for text in texts]
    good = words_of(tmp_path / "good.csv", [text if text not in LOST else "x" for text in texts])
    for batch, expected in zip(batches, make_loader(good, EvalSampler(range(len(texts)), 4), 0, CPU), strict=True):
        alive = batch.weight > 0
        assert torch.equal(batch.samples["w"]["x"][alive], expected.samples["w"]["x"][alive])
    began = time.monotonic()
    pids = {process.pid for process in multiprocessing.active_children()}
    assert equal(list(loader), batches)
    again = make_loader(dataset, EvalSampler(range(len(texts)), 4), workers, CPU)  # of the same manifest
    assert [batch.errors for batch in again] == [batch.errors for batch in batches]
    assert time.monotonic() - began < 1.0
    assert pids <= {process.pid for process in multiprocessing.active_children()}


def test_a_row_during_which_a_process_dies_once_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel ends some process when memory is out, and not always the one that took it."""
    monkeypatch.setenv("MARKER", str(tmp_path / "marker"))
    dataset = words_of(tmp_path / "m.csv", ["a", "once", "b"])
    [batch] = make_loader(dataset, EvalSampler(range(3), 3), 1, CPU)
    assert batch.errors == []
    assert batch.weight.tolist() == [1, 1, 1]


def test_an_abandoned_loader_leaves_no_process(data: Path) -> None:
    dataset = training_set(data)
    before = set(multiprocessing.active_children())
    for _ in make_loader(dataset, TrainSampler(dataset.manifest.rows("train"), 4, 40, seed=0), 2, CPU):
        assert len(set(multiprocessing.active_children()) - before) == 2
        break
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the sender of a signal is not known")
def test_workers_heed_sigterm_of_their_main_process_alone(data: Path) -> None:
    """Clusters send it to all processes of a job: the main one ends its step, for which it needs them."""
    dataset = training_set(data)
    sampler = TrainSampler(dataset.manifest.rows("train"), 4, 40, seed=0)
    batches = iter(make_loader(dataset, sampler, 2, CPU))
    next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    assert len(list(batches)) == 39


def test_errors_of_rows_are_errors_in_workers_too(tmp_path: Path) -> None:
    words = {"w": Words("w")}
    rows = [{"id": "1", "w": "x", "label": "a", "split": ""}, {"id": "2", "w": "x", "label": "", "split": "test"}]
    manifest = read(write_csv(tmp_path / "m.csv", rows), words)
    dataset = ClipDataset(manifest, words, {"label": "single"}, config=DataConfig(), seed=0, training=False)
    with pytest.raises(DataError, match=r"^row 2 has no label of task 'label'$"):
        list(make_loader(dataset, EvalSampler([0, 1], 2), 1, CPU))


def test_auto_workers(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = training_set(data)
    for cores, expected in ((1, 1), (2, 1), (4, 3), (64, 16)):
        monkeypatch.setattr(loaders, "cores", lambda count=cores: count)
        assert auto_workers(dataset) == expected
    dataset.cache = Cache(four(), 10.0)
    assert auto_workers(dataset) == 16  # what is not in memory is decoded in every epoch
    dataset.cache.complete = True
    assert auto_workers(dataset) == 1  # a modality's `read` may crash, too


def test_no_more_processes_than_batches(data: Path) -> None:
    before = set(multiprocessing.active_children())
    loader = make_loader(training_set(data), EvalSampler(range(6), 4), 8, CPU)
    assert len(list(loader)) == 2
    assert len(set(multiprocessing.active_children()) - before) == 2

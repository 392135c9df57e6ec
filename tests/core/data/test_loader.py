"""Reading in several processes."""

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
from mbt_core.data.cache import Cache
from mbt_core.data.collate import Batch
from mbt_core.data.dataset import ClipDataset
from mbt_core.data.loader import auto_workers, make_loader
from mbt_core.data.sampler import EvalSampler, TrainSampler
from mbt_core.errors import ConfigError, DataError, MBTError

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
def test_a_data_set_can_be_sent_to_fresh_processes(data: Path) -> None:
    dataset = training_set(data)
    sampler = TrainSampler(dataset.manifest.rows("train"), 4, 3, seed=5)
    loader = make_loader(dataset, sampler, 1, CPU)
    loader.multiprocessing_context = "forkserver"
    assert equal(list(loader), list(make_loader(dataset, sampler, 0, CPU)))


def test_a_loader_can_be_used_again(data: Path) -> None:
    dataset = training_set(data)
    loader = make_loader(dataset, EvalSampler(range(6), 4), 1, CPU)
    assert equal(list(loader), list(loader))


class Deadly(Words):
    """Does to its process what the text says."""

    def content(self, clip: Any, window: Any) -> torch.Tensor:
        match clip.text():
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                time.sleep(60)
            case "config":
                raise ConfigError("frames is still 'auto'")
            case "bug":
                raise KeyError("a bug")
        return super().content(clip, window)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (
            "kill",
            MBTError,
            r"a reading process died \(.*killed by signal.*most often memory.*lower data\.workers",
        ),
        ("hang", MBTError, r"no batch was read in 1 s: a reading process hangs.*data\.workers=0"),
        ("config", ConfigError, r"^frames is still 'auto'$"),
        ("bug", KeyError, "while 'w' read"),
    ],
)
def test_a_process_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, error: type[Exception], message: str
) -> None:
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.3)  # time given to a hanging process
    words = {"w": Deadly("w")}
    path = write_csv(tmp_path / "m.csv", [{"id": "1", "w": "fine"}, {"id": "2", "w": text}])
    dataset = ClipDataset(read(path, words), words, {}, config=DataConfig(), seed=0, training=False)
    with pytest.raises(error, match=message):
        list(make_loader(dataset, EvalSampler([0, 1], 1), 1, CPU, patience=1))


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
    dataset, few, many = training_set(data), EvalSampler(range(6), 4), EvalSampler(range(6), 1)
    for cores, expected in ((1, 1), (2, 1), (4, 3), (64, 6)):
        monkeypatch.setattr(loaders, "cores", lambda count=cores: count)
        assert auto_workers(dataset, many) == expected
    assert auto_workers(dataset, few) == 2
    dataset.cache = Cache(four(), 10.0)
    assert auto_workers(dataset, many) == 0

"""Processes that decode uploaded files: one that hangs, or dies of a file, is replaced and harms nobody else.

They get the path of a file and answer with tensors as safetensors, so that nothing that comes from a process which has
opened a stranger's file is ever unpickled.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from mbt_core.config import DataConfig
from mbt_core.data.collate import Batch, Collate
from mbt_core.data.dataset import Draw
from mbt_core.data.processes import MEMORY, Memory, ReadingProcess
from mbt_core.deploy.serve.upload import Refused
from mbt_core.errors import DataError, MBTError
from mbt_core.evaluate.predict import Files, files_manifest
from mbt_core.media import open_clip
from mbt_core.modality import Modality

READY, FAILED, READ = b"+", b"-", b"="
START = 120.0
"""Seconds a process may take to start."""
PRESENT = "present"


@dataclass(frozen=True)
class Reading:
    """How files are read.

    Args:
        modalities: name -> instance; their classes must be importable.
        config: of the run's data.
        views: windows of a file.
        max_seconds: longest file that is read.
        timeout: seconds of wall time that reading one file may take.
    """

    modalities: Mapping[str, Modality]
    config: DataConfig
    views: int
    max_seconds: float
    timeout: float

    def read(self, path: str) -> Batch:
        """The views of one file. Raises `MBTError` if it cannot be read or is too long."""
        with open_clip(path, timeout=self.timeout) as clip:
            reads = {modality.reads for modality in self.modalities.values()}
            lengths = [self._length(name, clip) for name, m in self.modalities.items() if clip.has(m.reads)]
            if not lengths:
                raise DataError(f"{path}: holds nothing that the model reads ({' or '.join(sorted(reads))})")
            longest = max((length for length in lengths if length is not None), default=0.0)
        if longest > self.max_seconds:
            raise DataError(f"{path}: lasts {longest:.1f} s, allowed are {self.max_seconds:g} s")
        manifest = files_manifest([(path, None, None)], {name: m.reads for name, m in self.modalities.items()})
        options: dict[str, Any] = {"config": self.config, "seed": 0, "training": False, "views": self.views}
        examples = Files(manifest, self.modalities, {}, **options)[Draw(0, 0)]
        if examples[0].error is not None:
            raise DataError(examples[0].error)
        return Collate(self.modalities)([examples])

    def _length(self, name: str, clip: Any) -> float | None:
        return self.modalities[name].duration(clip)


def pack(batch: Batch) -> bytes:
    """Samples and presence as safetensors."""
    tensors: dict[str, Tensor] = {}
    for name, sample in batch.samples.items():
        leaves = sample if isinstance(sample, dict) else {"": sample}
        tensors |= {f"{name}/{key}": leaf.contiguous() for key, leaf in leaves.items()}
        tensors[f"{name}//{PRESENT}"] = batch.present[name]
    return save(tensors)


def unpack(data: bytes, names: Iterable[str]) -> Batch:
    """What `pack` packed, the modalities in the order of `names`; the rest is that of one row without labels."""
    tensors = load(data)  # in no order
    present = {name: tensors.pop(f"{name}//{PRESENT}") for name in names}
    samples: dict[str, Any] = {name: {} for name in present}
    for key, tensor in tensors.items():
        name, _, leaf = key.partition("/")
        if leaf:
            samples[name][leaf] = tensor
        else:
            samples[name] = tensor
    size = len(next(iter(present.values())))
    row = torch.zeros(size, dtype=torch.int64)
    complete = all(bool(here.all()) for here in present.values())
    return Batch(samples, present, {}, torch.ones(size), row, torch.arange(size), [], complete)


def _work(connection: Connection, _: Any, reading: Reading) -> None:
    """A reading process: paths in, tensors or messages out, until the other end closes."""
    memory = Memory(MEMORY)
    connection.send_bytes(READY)
    while True:
        try:
            path = connection.recv_bytes().decode()
        except EOFError:
            return
        memory.limit()
        try:
            answer = READ + pack(reading.read(path))
        except (MBTError, OSError) as error:
            answer = FAILED + str(error).encode()
        except Exception as error:
            print(f"reading {path}: {type(error).__name__}: {error}", file=sys.stderr)
            answer = FAILED + f"it cannot be read ({type(error).__name__})".encode()
        connection.send_bytes(answer)


class Reader:
    """One reading process, started anew when it is lost."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.start()

    def start(self) -> None:
        """Starts the process. Raises `MBTError` if it does not come up."""
        # not a fork of a process that has threads; a fork server has imported everything once
        method = "forkserver" if sys.platform == "linux" else "spawn"
        if sys.platform == "linux":
            multiprocessing.set_forkserver_preload([__name__])
        self.worker = ReadingProcess(_work, self.reading, method=method)
        try:
            ready = self.worker.connection.poll(START) and self.worker.connection.recv_bytes() == READY
        except EOFError:
            ready = False
        if not ready:
            self.stop()
            raise MBTError("a process that reads files does not start; see above for the reason")

    def stop(self) -> None:
        """Ends the process, whatever it does; of one that did not start again nothing is left to end."""
        self.worker.stop()

    def read(self, path: Path) -> Batch:
        """Reads one file. Raises `Refused` with 422, and `MBTError` if no process can be started."""
        name = str(path).encode()
        try:
            self.worker.connection.send_bytes(name)
        except OSError:  # it died while it was idle, which is no fault of this file
            self._replace()
            self.worker.connection.send_bytes(name)
        try:
            if not self.worker.connection.poll(self.reading.timeout):
                self._replace()
                raise Refused(422, f"the file took longer than {self.reading.timeout:g} s to read")
            answer = self.worker.connection.recv_bytes()
        except (EOFError, OSError):
            self._replace()
            raise Refused(422, "the file cannot be read: the process that read it died of it") from None
        if answer[:1] == FAILED:
            raise Refused(422, answer[1:].decode().removeprefix(f"{path}: ").replace(str(path), "the file"))
        return unpack(answer[1:], self.reading.modalities)

    def _replace(self) -> None:
        self.stop()
        self.start()


class Readers:
    """A bounded pool of reading processes."""

    def __init__(self, reading: Reading, count: int) -> None:
        self.all: list[Reader] = []
        self.idle: asyncio.Queue[Reader] = asyncio.Queue()
        self.threads = ThreadPoolExecutor(count, "reader")  # the loop's own are few, and the model needs one
        for _ in range(count):
            self.all.append(Reader(reading))
            self.idle.put_nowait(self.all[-1])

    async def read(self, path: Path, wanted: Callable[[], Awaitable[None]]) -> Batch:
        """Reads a file as soon as a process is free, and `wanted` does not raise then. Raises as `Reader.read`."""
        reader = await self.idle.get()
        try:
            await wanted()
            return await asyncio.get_running_loop().run_in_executor(self.threads, reader.read, path)
        finally:
            self.idle.put_nowait(reader)

    def stop(self) -> None:
        self.threads.shutdown()
        for reader in self.all:
            reader.stop()

"""The processes of a run, one per device: what they tell each other beside gradients, and how they end together.

What is agreed on goes over the CPU (gloo), so that no step waits for an accelerator.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy

from mbt_core.distributed.launch import FIRST_GONE, Place, expected_place, processes, stop
from mbt_core.distributed.sharding import shard
from mbt_core.errors import ConfigError, MBTError, nearest

T = TypeVar("T")
ALONE = Place()
DEVICES = ("auto", "cpu", "cuda", "mps")
TIMEOUT = timedelta(hours=1)
"""For what one process does while the others wait (making a data set, looking for a batch size)."""
BEAT = 2.0
"""Seconds between signs of life."""
PATIENCE = 40.0
"""Seconds without a sign of life after which a process counts as dead."""
LAST_WORDS = 5.0
"""Seconds in which a broken connection may still be explained by the process at its other end."""


@dataclass(frozen=True)
class Hardware:
    """Where a run computes.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        devices: per machine; as many processes are started, unless a launcher has.
        nodes: machines.
        parallel: ``ddp``, or ``fsdp`` to share out weights, gradients and the optimiser's state.
    """

    device: str = "auto"
    devices: int = 1
    nodes: int = 1
    parallel: str = "ddp"

    def fabric(self, precision: str, place: Place = ALONE, joined: bool | None = None) -> Fabric:
        """The devices and precision, for processes in their places.

        Args:
            precision: ``32`` or ``bf16``.
            place: of this process.
            joined: whether to exchange gradients as `parallel` says, by `connect`; if there are several by default.

        Raises:
            ConfigError: for a device that is not there.
        """
        several = place.world > 1 if joined is None else joined
        return Fabric(
            accelerator=self.accelerator(place),
            devices=place.local_world,
            num_nodes=place.world // place.local_world,
            strategy=self._strategy(place.world) if several else "auto",
            precision="bf16-mixed" if precision == "bf16" else "32-true",
            plugins=[TorchElasticEnvironment() if several else LightningEnvironment()],
        )

    def accelerator(self, place: Place) -> str:
        """The device that is meant. Raises `ConfigError` if it is not there, or not for all processes."""
        accelerator = self.device
        if accelerator not in DEVICES:
            hint = nearest(accelerator, DEVICES)
            raise ConfigError(f"--device {accelerator}: expected {', '.join(DEVICES[:-1])} or {DEVICES[-1]}.{hint}")
        if accelerator == "auto":
            accelerator = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        counts = {"cpu": None, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
        there = {name: count for name, count in counts.items() if count != 0}
        if accelerator not in there:
            raise ConfigError(f"--device {accelerator}: not available here; available: {', '.join(there)}")
        count = there[accelerator]
        if count is not None and place.local_world > count:
            raise ConfigError(
                f"--devices {place.local_world}: every process sees all devices of its machine and takes its own, but "
                f"there are {count} of {accelerator} here (under SLURM: --gpus-per-node, not --gpus-per-task)"
            )
        return accelerator

    def _strategy(self, world: int) -> DDPStrategy | ModelParallelStrategy:
        if self.parallel == "ddp":
            return DDPStrategy(timeout=TIMEOUT)
        return ModelParallelStrategy(shard, data_parallel_size=world, tensor_parallel_size=1, timeout=TIMEOUT)


ONE_DEVICE = Hardware()


class Team:
    """This process among those of its run; alone, all of this costs nothing.

    Args:
        fabric: launched.

    Attributes:
        rank, world: this process's number, and how many there are.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.fabric, self.rank, self.world = fabric, fabric.global_rank, fabric.world_size
        self.group: Any = dist.new_group(backend="gloo", timeout=TIMEOUT) if self.world > 1 else None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Each value's sum over the processes."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.group)
        found: list[float] = total.tolist()
        return found

    def share(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process; in the others it is not called."""
        made = [make() if self.is_first else None]
        if self.world > 1:
            dist.broadcast_object_list(made, 0, group=self.group)
        return made[0]  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """In the first process the values of all by rank, in the others nothing."""
        if self.world == 1:
            return [value]
        found: list[Any] | None = [None] * self.world if self.is_first else None
        dist.gather_object(value, found, 0, group=self.group)
        return found or []

    def gather_everywhere(self, value: T) -> list[T]:
        """The values of all by rank."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value, group=self.group)
        return found

    def barrier(self) -> None:
        """Waits for all."""
        self.sum(0)


@contextmanager
def together(hardware: Hardware, precision: str) -> Iterator[Team]:
    """The processes of a run, started if they are not there; an error in one of them ends them all.

    One message says why: that of the first process that failed. A process that is gone without a word is missed
    within `PATIENCE` seconds.

    Raises:
        ConfigError: for devices that are not there.
        SystemExit: where another process has failed and said why.
    """
    place = expected_place(hardware.devices, hardware.nodes)
    if hardware.parallel == "fsdp" and place.world == 1:
        raise ConfigError("--parallel fsdp: shares a model out over several devices; give --devices, or leave it out")
    if place.world == 1:
        fabric = hardware.fabric(precision)
        fabric.launch()
        yield Team(fabric)
        return
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    accelerator = hardware.accelerator(place)  # an error is best found before others are started
    with processes(place):
        connect(place, accelerator)
        fabric = hardware.fabric(precision, place)
        fabric.launch()
        team = Team(fabric)
        watch = Watch(team)
        try:
            yield team
            team.barrier()
        except BaseException as error:
            if not getattr(error, "in_good_order", False):
                watch.explain(error)
                raise
            team.barrier()
            watch.end()
            raise
        watch.end()


def connect(place: Place, accelerator: str) -> None:
    """Joins the processes. Fabric would too, but after a restart by `torchrun` it meets what the last attempt left."""
    store = next(dist.rendezvous("env://", place.rank, place.world, timeout=TIMEOUT))[0]
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    cuda = accelerator == "cuda"
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=dist.PrefixStore(f"attempt {attempt}", store),
        rank=place.rank,
        world_size=place.world,
        timeout=TIMEOUT,
        device_id=torch.device("cuda", place.local_rank) if cuda else None,
    )


class Watch:
    """Looks after the other processes: ends this one when one of them has failed or died, and tells them of this one.

    The first process watches all others' signs of life, the others the first's.

    Args:
        team: of several.
    """

    def __init__(self, team: Team) -> None:
        self.team = team
        self.store = dist.distributed_c10d._get_default_store().clone()  # the main thread may block the original
        self.store.set(f"beat/{team.rank}", "0")
        self._leaving = threading.Event()
        team.barrier()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stops watching, together with the others."""
        self._stop_watching()
        self.team.barrier()
        # its threads end with it: at the end of the interpreter they would abort the process
        self.team.group = None
        dist.destroy_process_group()

    def explain(self, error: BaseException) -> None:
        """Tells the others of an error, unless it only follows from another process's.

        Raises:
            SystemExit: another process has said why all end.
            MBTError: in place of the words of a library, if a connection broke and no process says why.
        """
        self._stop_watching()
        lost = _is_lost_connection(error)
        until = time.monotonic() + (LAST_WORDS if lost else 0)
        mine, code = False, None
        try:
            while (code := self._failed()) is None and time.monotonic() < until:
                time.sleep(0.2)
            if code is None:
                mine = self._fail(getattr(error, "exit_code", 130 if isinstance(error, KeyboardInterrupt) else 1))
                code = self._failed()
            self._let_hear(mine)
        except RuntimeError:  # word of it is gone with the first process, who kept it
            mine = mine or not lost or self.team.rank == 1
        if not mine:
            raise SystemExit(1 if code is None else code) from None
        if lost:
            raise MBTError(LOST) from None

    def _stop_watching(self) -> None:
        self._leaving.set()
        self._thread.join()

    def _run(self) -> None:
        others = range(1, self.team.world) if self.team.is_first else [0]
        keys = [f"beat/{rank}" for rank in others]
        latest: list[tuple[bytes, float]] = [(b"", time.monotonic())] * len(keys)
        beat = 0
        while not self._leaving.wait(BEAT):
            beat += 1
            try:
                self.store.set(f"beat/{self.team.rank}", str(beat))
                if (code := self._failed()) is not None:
                    self._let_hear(False)
                    stop("", code)
                now = time.monotonic()
                beats = self.store.multi_get(keys)
                latest = [old if old[0] == new else (new, now) for old, new in zip(latest, beats, strict=True)]
            except RuntimeError:
                stop(FIRST_GONE if self.team.rank == 1 else "", 1)
            for rank, (_, seen) in zip(others, latest, strict=True):
                if now - seen > PATIENCE:
                    self._miss(rank)

    def _miss(self, rank: int) -> None:
        mine = self._fail(1)
        self._let_hear(mine)
        message = f"process {rank} of the run has given no sign of life for {PATIENCE:g} s: it died, or its machine did"
        stop(message if mine else "", 1)

    def _fail(self, code: int) -> bool:
        """Tells the others to end with `code`. Whether this process is the first to, and is to say why."""
        mine = f"{self.team.rank} {code}"
        return bool(self.store.compare_set("failure", "", mine) == mine.encode())

    def _failed(self) -> int | None:
        """The exit code that a process has told."""
        return int(self.store.get("failure").split()[1]) if self.store.check(["failure"]) else None

    def _let_hear(self, mine: bool) -> None:
        """Waits until all have heard of the failure: word of it is gone with the first process, who keeps it."""
        if not mine:
            self.store.add("heard", 1)
        until = time.monotonic() + LAST_WORDS
        while (mine or self.team.is_first) and time.monotonic() < until:
            if self.store.add("heard", 0) >= self.team.world - 1:
                break
            time.sleep(0.1)


LOST = (
    "the connection to another process of the run broke: it was killed (most often memory is out), or its machine or "
    "network failed. The last saved state is whole: go on with mbt train --resume RUN"
)


def _is_lost_connection(error: BaseException) -> bool:
    text = str(error).lower()
    words = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "timed out waiting")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in text for word in words)
    )

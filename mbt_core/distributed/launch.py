"""Starts the processes of a run, or finds out what a launcher (`torchrun`, `srun`) has started. Imports no torch.

However they were started, the processes know their places from the variables that `torchrun` sets: ``RANK``,
``WORLD_SIZE``, ``LOCAL_RANK``, ``LOCAL_WORLD_SIZE``, ``MASTER_ADDR``, ``MASTER_PORT``.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, NoReturn

from mbt_core.errors import ConfigError

PARENT = "MBT_PARENT"
"""Set for processes that another process of the run has started: its id."""
FIRST_GONE = "the first process of the run is gone. The last saved state is whole: go on with mbt train --resume RUN"
POLL = 0.5
GRACE = 10.0
"""Seconds in which the other processes may end by themselves."""


class Place(NamedTuple):
    """Where a process stands among those of its run.

    Args:
        rank: among all, from 0.
        world: how many there are.
        local_rank, local_world: the same on this machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1


def place() -> Place:
    """This process's place."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    there = {**os.environ, **_slurm(os.environ)}
    if not all(there.get(name, "").isdigit() for name in names):
        return Place()
    return Place(*(int(there[name]) for name in names))


def restarted() -> bool:
    """Whether `torchrun` has started the processes anew after a failure (``--max-restarts``)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def may_restart() -> bool:
    """Whether `torchrun` will start the processes anew after a failure."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def expected_place(devices: int, nodes: int) -> Place:
    """The place of this process if there are to be `devices` processes on each of `nodes` machines.

    Raises:
        ConfigError: if a launcher has started other numbers, or there is none where one is needed.
    """
    found = place()
    if found.world > 1:
        machines = found.world // found.local_world
        if (devices, nodes) not in ((1, 1), (found.local_world, machines)):
            raise ConfigError(
                f"--devices {devices} --nodes {nodes}: the launcher has started {found.local_world} processes on each "
                f"of {machines} machines; leave both options out, they are taken from the launcher"
            )
        return found
    if nodes > 1:
        raise ConfigError(
            f"--nodes {nodes}: processes on several machines are started by srun, or on each of them by: torchrun "
            f"--nnodes {nodes} --nproc-per-node {devices} --rdzv-backend c10d --rdzv-endpoint FIRST_MACHINE:29500 "
            "-m mbt_cli train ..."
        )
    return Place(0, devices, 0, devices)


@contextmanager
def processes(here: Place) -> Iterator[None]:
    """Makes sure that the processes of the run are there, each with its variables, while the context lasts.

    Where no launcher has started them, this process starts the others by its own command line, and watches over them.
    """
    before = dict(os.environ)
    os.environ.update(_slurm(os.environ))
    children = Children(here.world) if place().world < here.world else None
    if PARENT in os.environ:
        threading.Thread(target=_end_with_parent, args=(int(os.environ[PARENT]),), daemon=True).start()
    try:
        yield
    finally:
        if children is not None:
            children.end()
            os.environ.clear()
            os.environ.update(before)


class Children:
    """The other processes of a run on this machine alone, started by the first one's command line.

    If one of them dies, all are ended.

    Args:
        world: number of processes, with this one.
    """

    def __init__(self, world: int) -> None:
        command = _command()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(_variables(0, world, 0, world, "127.0.0.1", port))
        self.children = [
            subprocess.Popen(
                command,
                env=os.environ | _variables(rank, world, rank, world, "127.0.0.1", port) | {PARENT: str(os.getpid())},
            )
            for rank in range(1, world)
        ]
        self._ending = threading.Event()
        self._watch = threading.Thread(target=self._watch_over, daemon=True)
        self._watch.start()

    def _watch_over(self) -> None:
        while not self._ending.wait(POLL):
            for rank, child in enumerate(self.children, start=1):
                if child.poll():
                    self._died(rank, child.returncode)

    def _died(self, rank: int, code: int) -> None:
        # a process that ends in good order has told the others why, and they are ending by themselves
        if not self._ending.wait(GRACE if code > 0 else 0):
            self._kill()
            stop(f"process {rank} of the run {describe(code)}", code if code > 0 else 1)

    def end(self) -> None:
        """Waits a little for the others to end, then makes them."""
        self._ending.set()
        self._watch.join()
        until = time.monotonic() + GRACE
        for child in self.children:
            try:
                child.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._kill()

    def _kill(self) -> None:
        for child in self.children:
            if child.poll() is None:
                child.kill()


def describe(code: int) -> str:
    """What a process's exit code says."""
    if code >= 0:
        return f"ended with code {code}"
    name = signal.Signals(-code).name
    reason = "; most often memory is out" if -code == signal.SIGKILL else ""
    return f"was killed by {name}{reason}"


def stop(message: str, code: int) -> NoReturn:
    """Ends this process at once, whatever its other threads are doing. An empty message is not printed."""
    if message:
        print(f"Error: {message}", file=sys.stderr, flush=True)
    os._exit(code)


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL)
    stop(FIRST_GONE if place().rank == 1 else "", 1)


def _variables(rank: int, world: int, local_rank: int, local_world: int, address: str, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(local_world),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }


def _slurm(there: Mapping[str, str]) -> dict[str, str]:
    """`torchrun`'s variables from those that `srun` sets in each of its tasks; empty outside of it."""
    tasks = there.get("SLURM_STEP_NUM_TASKS", "")
    if "RANK" in there or not tasks.isdigit() or tasks == "1":
        return {}
    world, machines = int(tasks), int(there["SLURM_STEP_NUM_NODES"])
    if world % machines:
        raise ConfigError(f"srun has started {world} tasks on {machines} machines; expected as many on each")
    # node[07-12,20],other3 -> node07
    first = re.sub(r"\[(\w+).*", r"\1", re.split(r",(?![^\[]*\])", there["SLURM_STEP_NODELIST"])[0])
    address = there.get("MASTER_ADDR", first)
    port = there.get("MASTER_PORT") or 15_000 + int(there["SLURM_JOB_ID"]) % 10_000
    return _variables(
        int(there["SLURM_PROCID"]), world, int(there["SLURM_LOCALID"]), world // machines, address, int(port)
    )


def _command() -> list[str]:
    """The command line of this process."""
    import __main__

    if (spec := getattr(__main__, "__spec__", None)) is not None:
        return [sys.executable, "-m", spec.name, *sys.argv[1:]]
    script = os.path.abspath(sys.argv[0])
    if not os.path.isfile(script):
        raise ConfigError(
            f"--devices: other processes are started by this one's command line, and {shlex.join(sys.argv)!r} is no "
            "script; use mbt train, or a script, or start it by torchrun"
        )
    return [sys.executable, script, *sys.argv[1:]]

"""What the machine offers one process of a run."""

from __future__ import annotations

import os
from pathlib import Path


def processes_here() -> int:
    """Processes of this run on this machine (as `torchrun` and Fabric tell them)."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def cores() -> int:
    """Processor cores this process may use, shared out among the processes of the run; at least 1."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // processes_here())


def free_memory() -> int:
    """Bytes of memory this process may still take without swapping, its share among the processes of the run."""
    limits = [_meminfo(), _cgroup()]
    known = [limit for limit in limits if limit is not None]
    if not known:
        known = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2]
    return max(0, min(known)) // processes_here()


def _meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _cgroup() -> int | None:
    """What is left of a container's limit (cgroup v2)."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return None
    return None if limit == "max" else int(limit) - int(used)

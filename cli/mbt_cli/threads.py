"""How threads wait for each other, which can only be said before torch is imported."""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from pathlib import Path

SPIN = "GOMP_SPINCOUNT"
USERS = (SPIN, "OMP_WAIT_POLICY")
"""Variables by which a user has decided."""
SHORT = "300"
"""How often a waiting thread looks before it sleeps, in place of 300,000 times. Sleeping costs a quarter of the speed
where nothing else runs; looking costs three quarters where a core is wanted by others (`benchmarks/loop.py`)."""
LOOKS, BETWEEN = 4, 0.003
STAT = Path("/proc/stat")


def settle_waiting(environment: MutableMapping[str, str]) -> None:
    """Has threads sleep early if other processes are running now. A user's variables stay; no result depends on it."""
    if not any(name in environment for name in USERS) and others_run():
        environment[SPIN] = SHORT


def others_run() -> bool:
    """Whether something else is running all the time; False where the system does not tell it (Linux does)."""
    for look in range(LOOKS):
        if look:
            time.sleep(BETWEEN)
        if _running() < 2:
            return False
    return True


def _running() -> int:
    """Processes and threads that run or could, this one included; 0 if it is not told."""
    try:
        lines = STAT.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("procs_running ")), 0)

"""The memory that each process of a command takes at most, read from outside while it runs."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

_FREED = {  # freed tensors go back to the system
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "OMP_NUM_THREADS": "1",
}


def own_memory(process: int) -> int:
    """Bytes of a process that are of no file."""
    with Path(f"/proc/{process}/status").open() as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("RssAnon"))


def peaks(command: Sequence[str], folder: Path) -> dict[str, int]:
    """Run a command of several processes in a folder; the most bytes of each, by ``RANK``."""
    log = folder / "log"
    with log.open("w") as said:
        running = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **_FREED}, stdout=said, stderr=subprocess.STDOUT
        )
    most: dict[str, int] = {}
    ranks: dict[int, str] = {}
    try:
        for turn in range(10**6):
            if running.poll() is not None:
                break
            if turn % 100 == 0:
                ranks |= _ranks(running.pid)
            for process, rank in ranks.items():
                try:
                    most[rank] = max(most.get(rank, 0), own_memory(process))
                except (OSError, StopIteration):  # it ended
                    continue
            time.sleep(0.002)
    finally:
        running.kill()
    assert running.returncode == 0, log.read_text()
    return most


def _ranks(parent: int) -> dict[int, str]:
    found = {}
    for child in psutil.Process(parent).children(recursive=True):
        try:
            rank = child.environ().get("RANK")
        except psutil.Error:
            continue
        if rank is not None:
            found[child.pid] = rank
    return found

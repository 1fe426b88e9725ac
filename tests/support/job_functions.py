"""Functions for jobs in other processes. They import this module, so it imports little."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from stlm_kd.errors import NonFiniteError


def square(number: int) -> int:
    return number * number


def fail(message: str) -> int:
    raise NonFiniteError(message)


def touch(path: Path) -> None:
    path.touch()


def appear(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def outlast_a_failure(folder: Path) -> None:
    touch(folder / "running")
    appear(folder / "failing")
    time.sleep(0.5)
    touch(folder / "ended")


def divide(folder: Path) -> None:
    appear(folder / "running")
    touch(folder / "failing")
    raise ZeroDivisionError("by nothing")


def end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class State:
    """What a worker has when its job begins."""

    folder: str
    arguments: list[str]
    environment: dict[str, str]
    parent: int
    threads: int
    is_preloaded: bool


def state(name: str) -> State:
    import torch

    os.write(1, f"out {name}\n".encode())
    sys.stderr.write(f"err {name}\n")
    time.sleep(0.5)  # for the other worker to take the other job
    return State(
        str(Path.cwd()),
        sys.argv,
        dict(os.environ),
        os.getppid(),
        torch.get_num_threads(),
        "stlm_kd.pipeline.preloaded" in sys.modules,
    )

"""Bounds on what foreign code, such as a template, may use of this process."""

from __future__ import annotations

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

SECONDS = 10.0
"""Of the processor, after which what runs is ended."""
BYTES = 1 << 30
"""Of memory, beyond what the process has."""


class BoundError(Exception):
    """What runs took more than it may."""


@contextmanager
def bounded(seconds: float = SECONDS, memory: int = BYTES) -> Iterator[None]:
    """Raise BoundError within the block where it takes more than that.

    The memory is bounded on Linux alone, the time in the main thread alone; each counts all threads.
    """
    try:
        with _bounded_memory(memory), _bounded_time(seconds):
            yield
    except MemoryError as error:
        raise BoundError(f"it takes more than {memory >> 20:,} MiB of memory") from error


@contextmanager
def _bounded_memory(memory: int) -> Iterator[None]:
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:  # noqa: PTH123  # a third of pathlib's time
            pages = int(file.read(64).split()[0])
    except OSError:  # no Linux
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + memory
    if soft == resource.RLIM_INFINITY or limit < soft:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def _bounded_time(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise BoundError(f"it takes more than {seconds:g} s")

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        with suppress(BoundError):
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)

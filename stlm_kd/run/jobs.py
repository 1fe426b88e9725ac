"""Independent pieces of work, one after the other or side by side in processes of their own."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from multiprocessing import active_children, get_context
from types import FrameType
from typing import Any, Generic, TypeVar

from stlm_kd.errors import Interrupted, Preempted, StlmKdError

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Job(Generic[R]):
    """A top-level function and its arguments, all of which can be sent to another process."""

    function: Callable[..., R]
    arguments: tuple[Any, ...]


def run_jobs(jobs: Sequence[Job[R]], *, workers: int) -> list[R]:
    """The results in the order of the jobs; the first failure is raised after the running jobs have ended.

    Args:
        jobs: Independent of each other.
        workers: Processes at once; 1 works in this process. Each gets its share of the threads.

    Raises:
        Interrupted, Preempted: SIGINT or SIGTERM came; what was running had time to save.
    """
    if workers == 1 or len(jobs) < 2:
        return [job.function(*job.arguments) for job in jobs]
    import torch

    threads = max(1, torch.get_num_threads() // workers)
    with ProcessPoolExecutor(
        min(workers, len(jobs)),
        mp_context=get_context("spawn"),
        initializer=_begin_worker,
        initargs=(threads,),
    ) as pool:
        futures = [pool.submit(job.function, *job.arguments) for job in jobs]
        with _passing_signals_on(futures) as received:
            return _results(futures, received)


def _results(futures: Sequence[Future[R]], received: list[int]) -> list[R]:
    try:
        return [future.result() for future in futures]
    except (StlmKdError, BrokenProcessPool, CancelledError) as error:
        for future in futures:
            future.cancel()
        if not received:
            raise
        ending = Preempted if received[0] == signal.SIGTERM else Interrupted
        raise ending(
            "stopped; what was being trained is saved, and the same command goes on from there"
        ) from error


@contextmanager
def _passing_signals_on(futures: Sequence[Future[Any]]) -> Iterator[list[int]]:
    """While it is entered, SIGINT and SIGTERM reach the workers as SIGTERM, which makes a training save."""
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for future in futures:
            future.cancel()
        for child in active_children():
            child.terminate()

    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _begin_worker(threads: int) -> None:
    """A terminal's Ctrl-C reaches all processes; only the first one decides what it means."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)


class PrefixedLines(StringIO):
    """Standard error for one of several jobs: whole lines, each with the job's name before it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def write(self, text: str, /) -> int:
        """Pass whole lines on."""
        for line in text.splitlines():
            if line:
                sys.stderr.write(f"[{self.name}] {line}\n")
        return len(text)

    def flush(self) -> None:
        """Let the line appear."""
        sys.stderr.flush()

    def isatty(self) -> bool:
        """Several live displays would overwrite each other."""
        return False

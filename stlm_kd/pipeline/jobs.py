"""Independent pieces of work, one after the other or side by side in processes of their own."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from multiprocessing import active_children, get_context
from types import FrameType
from typing import Any, Generic, TypeVar

from stlm_kd.errors import Interrupted, Preempted, StlmKdError
from stlm_kd.training.signals import is_third_interrupt, leave_interrupts_to_parent

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Job(Generic[R]):
    """A top-level function and its arguments, all of which can be sent to another process."""

    function: Callable[..., R]
    arguments: tuple[Any, ...]


def run_jobs(jobs: Sequence[Job[R]], *, workers: int) -> list[R]:
    """The results in the order of the jobs.

    Once a job fails, whatever its error, no further one begins; the error is raised when those that were
    running have ended.

    Args:
        jobs: Independent of each other.
        workers: Processes at once; 1 works in this process. Each gets its share of the threads.

    Raises:
        Interrupted, Preempted: SIGINT or SIGTERM came; what was running had time to save, unless SIGINT came
            three times.
        StlmKdError: A worker was killed.
    """
    if workers == 1 or len(jobs) < 2:
        return [job.function(*job.arguments) for job in jobs]
    import torch

    threads = max(1, torch.get_num_threads() // workers)
    with (
        ProcessPoolExecutor(
            min(workers, len(jobs)),
            mp_context=get_context("spawn"),
            initializer=_begin_worker,
            initargs=(threads,),
        ) as pool,
        _passing_signals_on() as received,
    ):
        try:
            return _results(pool, jobs, workers, received)
        except (CancelledError, BrokenProcessPool, Interrupted, Preempted) as error:
            if received:
                ending = Preempted if received[0] == signal.SIGTERM else Interrupted
                if isinstance(error, BrokenProcessPool):  # which may have been training
                    raise ending("stopped; the same command goes on from what was saved") from error
                raise ending(
                    "stopped; what was being trained is saved, and the same command goes on from there"
                ) from error
            if isinstance(error, BrokenProcessPool):
                raise StlmKdError(
                    "a worker process was killed, probably because memory ran out; use fewer --jobs or a "
                    "smaller train.micro_batch; the same command goes on from what was saved"
                ) from error
            raise


def _results(
    pool: ProcessPoolExecutor, jobs: Sequence[Job[R]], workers: int, received: Sequence[int]
) -> list[R]:
    """No more jobs are handed out than there are workers: what the pool holds cannot be taken back."""
    futures: list[Future[R]] = []
    running: set[Future[R]] = set()
    failed = False
    while running or (len(futures) < len(jobs) and not failed and not received):
        while len(running) < workers and len(futures) < len(jobs) and not failed and not received:
            job = jobs[len(futures)]
            futures.append(pool.submit(job.function, *job.arguments))
            running.add(futures[-1])
        ended, running = wait(running, return_when=FIRST_COMPLETED)
        failed = failed or any(future.exception() is not None for future in ended)
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:  # what says more than that a worker was killed, and that more than that one stopped and saved
        kinds = (Interrupted | Preempted, BrokenProcessPool)
        raise min(errors, key=lambda error: [isinstance(error, kind) for kind in kinds])
    if received:
        raise CancelledError
    return [future.result() for future in futures]


@contextmanager
def _passing_signals_on() -> Iterator[list[int]]:
    """While it is entered, SIGINT and SIGTERM reach the workers as SIGTERM, which makes a training save.

    Outside the main thread it does nothing, since only the main thread may set handlers.
    """
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        is_forced = number == signal.SIGINT and is_third_interrupt(received)
        for child in active_children():
            child.kill() if is_forced else child.terminate()

    previous = (
        {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
        if threading.current_thread() is threading.main_thread()
        else {}
    )
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _begin_worker(threads: int) -> None:
    """A terminal's Ctrl-C reaches all processes; only the first one decides what it means."""
    import torch

    leave_interrupts_to_parent()
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

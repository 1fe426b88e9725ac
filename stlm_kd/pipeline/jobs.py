"""Independent jobs, run sequentially or in parallel worker processes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from multiprocessing import active_children
from types import FrameType
from typing import Any, Generic, TypeVar

from stlm_kd.errors import Interrupted, Preempted, StlmKdError
from stlm_kd.pipeline.workers import WorkerState, begin_worker, worker_context
from stlm_kd.sharing import pins
from stlm_kd.training.signals import handled, is_third_interrupt

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Job(Generic[R]):
    """A top-level function and its arguments, all picklable."""

    function: Callable[..., R]
    arguments: tuple[Any, ...]


def run_jobs(jobs: Sequence[Job[R]], *, workers: int) -> list[R]:
    """Run jobs and return their results in order.

    After a failure no further job starts; the error is raised once the running jobs have ended.

    Args:
        jobs: Independent jobs.
        workers: Number of processes, which share the threads; 1 runs in this process.

    Raises:
        Interrupted, Preempted: SIGINT or SIGTERM was received; running jobs saved their state, except after
            three SIGINTs.
        StlmKdError: A worker was killed.
    """
    if workers == 1 or len(jobs) < 2:
        return [job.function(*job.arguments) for job in jobs]
    import torch

    threads = max(1, torch.get_num_threads() // workers)
    with (
        ProcessPoolExecutor(
            min(workers, len(jobs)),
            mp_context=worker_context(),
            initializer=begin_worker,
            initargs=(WorkerState(threads, pins.current().as_json()),),
        ) as pool,
        _forward_signals() as received,
    ):
        try:
            return _results(pool, jobs, workers, received)
        except (CancelledError, BrokenProcessPool, Interrupted, Preempted) as error:
            if received:
                ending = Preempted if received[0] == signal.SIGTERM else Interrupted
                if isinstance(error, BrokenProcessPool):  # the worker may have been training
                    raise ending("stopped; the same command resumes from the saved state") from error
                raise ending(
                    "stopped; running trainings are saved, and the same command resumes from there"
                ) from error
            if isinstance(error, BrokenProcessPool):
                raise StlmKdError(
                    "a worker process was killed, probably because memory ran out; use fewer --jobs or a "
                    "smaller train.micro_batch; the same command resumes from the saved state"
                ) from error
            raise


def _results(
    pool: ProcessPoolExecutor, jobs: Sequence[Job[R]], workers: int, received: Sequence[int]
) -> list[R]:
    """Submit at most one job per worker at a time, since the pool cannot withdraw submitted jobs."""
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
    if errors:  # prefer a specific error to a killed worker, and that to an orderly stop
        kinds = (Interrupted | Preempted, BrokenProcessPool)
        raise min(errors, key=lambda error: [isinstance(error, kind) for kind in kinds])
    if received:
        raise CancelledError
    return [future.result() for future in futures]


@contextmanager
def _forward_signals() -> Iterator[list[int]]:
    """Forward SIGINT and SIGTERM to the workers as SIGTERM, on which a training saves a checkpoint."""
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        is_forced = number == signal.SIGINT and is_third_interrupt(received)
        for child in active_children():
            child.kill() if is_forced else child.terminate()

    with handled(pass_on):
        yield received


class PrefixedLines(StringIO):
    """Standard error of one of several jobs, with the job's name before each line."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def write(self, text: str, /) -> int:
        """Write whole lines with the prefix."""
        for line in text.splitlines():
            if line:
                sys.stderr.write(f"[{self.name}] {line}\n")
        return len(text)

    def flush(self) -> None:
        """Flush standard error."""
        sys.stderr.flush()

    def isatty(self) -> bool:
        """False, since several live displays would overwrite each other."""
        return False

"""The processes of parallel jobs: how they start, what they get from the command, and how they end with it.

On Linux without CUDA they are forked from one server, which has imported the libraries and done nothing else
(``pipeline.preloaded``). It starts with the command's first parallel jobs and ends with the command.
Elsewhere each is a new interpreter: CUDA does not survive a fork.

``multiprocessing`` hands a worker the current folder, ``sys.path`` and ``sys.argv`` of the command as they
are when the worker starts; ``WorkerState`` hands it the rest.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import forkserver, get_context, parent_process, resource_tracker
from multiprocessing.context import BaseContext
from multiprocessing.reduction import DupFd
from typing import Any

from stlm_kd.sharing import pins
from stlm_kd.training.signals import leave_interrupts_to_parent

PRELOADED = ["stlm_kd.pipeline.preloaded"]
"""What the server imports."""
_STOPS = (signal.SIGINT, signal.SIGTERM)
_REMINDER_S = 5.0
"""As the grace of ``watchdog``: for a saved training to end by itself."""


def worker_context() -> BaseContext:
    """How workers start: from the fork server, which this starts if need be, or each as a new interpreter."""
    import torch

    if sys.platform != "linux" or torch.cuda.is_available():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    resource_tracker.ensure_running()  # else the server starts it, which unblocks signals that it had blocked
    # The server and its workers inherit the mask: a signal to all processes does not end the server, and one
    # that comes early reaches a worker when it can handle it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


class _Output:
    """An open file of the command; pickled for a worker, whose file of the same number becomes this one."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _take_over, (self.number, DupFd(self.number))


def _take_over(number: int, sent: Any) -> _Output:
    if (received := sent.detach()) != number:
        os.dup2(received, number)
        os.close(received)
    return _Output(number)


def _open_outputs() -> tuple[_Output, ...]:
    streams = ((1, sys.__stdout__), (2, sys.__stderr__))
    return tuple(_Output(number) for number, stream in streams if stream is not None)


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What a worker gets from the command as it is when the worker starts.

    Attributes:
        threads: Number of threads of PyTorch.
        pinned: The pins of the command.
        environment: Its variables, among them the modules of ``--import``.
        outputs: Its stdout and stderr.
    """

    threads: int
    pinned: str
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    outputs: tuple[_Output, ...] = field(default_factory=_open_outputs)


def begin_worker(state: WorkerState) -> None:
    """Take over the state of the command; leave Ctrl-C, which reaches all processes, to it; end with it."""
    import torch

    os.environ.clear()
    os.environ.update(state.environment)
    leave_interrupts_to_parent()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    threading.Thread(target=_end_with_command, name="end with the command", daemon=True).start()
    pins.use(pins.from_json(state.pinned, "the pins of the main process"))
    torch.set_num_threads(state.threads)


def _end_with_command() -> None:
    """Send SIGTERM once the command is gone: a training saves at the first, and the next ends the process."""
    command = parent_process()
    assert command is not None
    command.join()
    while True:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_REMINDER_S)

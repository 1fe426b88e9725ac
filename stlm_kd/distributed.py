"""The launched processes of a command, before and outside any training.

With a single process nothing is imported or initialised.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, TypeVar, cast

from stlm_kd.errors import (
    MissingResourceError,
    RemoteProcessError,
    StlmKdError,
    UsageError,
    first_line,
    foreign_errors,
    one_line,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")

LONGEST_WAIT = timedelta(days=7)
"""Tokenising may take the main process hours. If a process dies, the launcher ends the others."""

_alone = False


def launched_processes() -> int:
    """Number of processes that the launcher started for this command; 1 without a launcher."""
    return _number("WORLD_SIZE", 1, least=1)


def process_rank() -> int:
    """The rank of this process, from 0."""
    return _number("RANK", 0)


def check_launch_variables() -> None:
    """Raise UsageError if a variable that a launcher sets is no number, or no rank of a process."""
    processes = launched_processes()
    for name in ("RANK", "LOCAL_RANK"):
        if (rank := _number(name, 0)) >= processes:
            raise UsageError(f"{name}: {rank} found; expected less than WORLD_SIZE, which is {processes}")
    if (port := _number("MASTER_PORT", 1, least=1)) >= 2**16:
        raise UsageError(f"MASTER_PORT: {port} found; expected a port below 65536")


def _number(name: str, default: int, *, least: int = 0) -> int:
    """The whole number of an environment variable."""
    text = os.environ.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= least):
        raise UsageError(
            f"{name}: {one_line(text)!r} found; expected a whole number from {least} on, as torchrun sets "
            "it; correct it, or unset it to run one process"
        )
    return int(text)


def join_processes() -> None:
    """Initialise ``torch.distributed`` for several processes, unless it is initialised already.

    Accelerate and DeepSpeed use the existing process group. MissingResourceError without rendezvous
    variables.
    """
    if launched_processes() == 1:
        return
    import torch
    from torch import distributed

    missing = [n for n in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if n not in os.environ]
    if missing:
        raise MissingResourceError(
            f"WORLD_SIZE: {launched_processes()} processes were launched, but {', '.join(missing)} "
            "is not set; launch with torchrun, which sets them all"
        )
    if distributed.is_initialized():
        return
    if torch.cuda.is_available():
        take_device(int(os.environ["LOCAL_RANK"]), torch.cuda.device_count())
    # The default timeouts, so that a training ends if another process hangs.
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    with foreign_errors(lambda error: MissingResourceError(_no_meeting(address, error))):
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def _no_meeting(address: str, error: BaseException) -> str:
    return (
        f"MASTER_ADDR, MASTER_PORT: the processes cannot meet at {address} ({first_line(error)}); give a "
        "host that all of them reach, and a free port"
    )


def take_device(local_rank: int, devices: int) -> None:
    """Make an accelerator the current one; MissingResourceError if the node has fewer than processes."""
    import torch

    if local_rank >= devices:
        raise MissingResourceError(
            f"LOCAL_RANK: process {local_rank} of this node has no GPU, of which there are {devices}; "
            f"launch {devices} processes on a node, or hide the GPUs (CUDA_VISIBLE_DEVICES=) to train on CPUs"
        )
    torch.cuda.set_device(local_rank)


def on_main_process(work: Callable[[], T]) -> T:
    """Run ``work`` on the main process, while the other ranks wait without timeout; return its result on all.

    All processes must call this in the same order. A nested call within ``work`` runs directly, as with a
    single process. The result is pickled, so it should be small. A StlmKdError of ``work`` is raised on the
    main process, and on the others a RemoteProcessError with its exit code.
    """
    if launched_processes() == 1 or _alone:
        return work()
    join_processes()
    import torch
    from torch import distributed

    error: StlmKdError | None = None
    message: list[object] = [None, None]  # an exit code or a result
    if process_rank() == 0:
        try:
            with _others_waiting():
                message = [None, work()]
        except StlmKdError as raised:
            error, message = raised, [raised.exit_code, None]
    try:
        distributed.broadcast_object_list(message, src=0, group=_waiting_group(), device=torch.device("cpu"))
    except RuntimeError as lost:  # the main process ended without sending a message
        raise error or RemoteProcessError(StlmKdError.exit_code) from lost
    if error is not None:
        raise error
    if isinstance(message[0], int):
        raise RemoteProcessError(message[0])
    return cast("T", message[1])


def require_all_processes(what: str) -> None:
    """Refuse a collective operation (``what``) within ``on_main_process``, where it would deadlock."""
    if launched_processes() > 1 and _alone:
        raise StlmKdError(
            f"{what}: called in the main process alone, while the other {launched_processes() - 1} wait for "
            "it, but all train together; call it before or after on_main_process, in every process"
        )


def wait_for_all() -> None:
    """Wait for all processes, without timeout; RemoteProcessError if another ended, which says why."""
    if launched_processes() == 1 or _alone:
        return
    join_processes()
    from torch import distributed

    try:
        distributed.barrier(group=_waiting_group())
    except RuntimeError as lost:
        raise RemoteProcessError(StlmKdError.exit_code) from lost


@cache
def _waiting_group() -> ProcessGroup | None:
    """A CPU process group of all processes for long waits; created on first use."""
    from torch import distributed

    group: ProcessGroup | None = distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
    return group


@contextmanager
def _others_waiting() -> Iterator[None]:
    """Mark that the other processes wait, so that this one must not call collectives."""
    global _alone
    _alone = True
    try:
        yield
    finally:
        _alone = False


def end_processes() -> None:
    """Destroy the process group at the end of a command; otherwise a process may abort on exit."""
    if launched_processes() == 1 or "torch.distributed" not in sys.modules:
        return
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()
    _waiting_group.cache_clear()

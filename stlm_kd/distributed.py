"""The processes that one command was launched as, before and outside any training.

With one process nothing here imports or initialises anything.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, TypeVar, cast

from stlm_kd.errors import MissingResourceError, RemoteProcessError, StlmKdError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")

LONGEST_WAIT = timedelta(days=7)
"""Tokenising may take the first process hours. A launcher ends the others when one of them dies."""

_alone = False


def launched_processes() -> int:
    """How many processes the launcher started for this command; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """The number of this process among them, from 0."""
    return int(os.environ.get("RANK", "0"))


def join_processes() -> None:
    """Initialise ``torch.distributed`` where several processes were launched and nobody did so before.

    Accelerate and DeepSpeed use what they find.

    Raises:
        MissingResourceError: the launcher did not say where the processes meet.
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
        _take_device(int(os.environ["LOCAL_RANK"]), torch.cuda.device_count())
    # The usual timeouts, so that a training whose other process hangs ends some time.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def _take_device(local_rank: int, devices: int) -> None:
    import torch

    if local_rank >= devices:
        raise MissingResourceError(
            f"LOCAL_RANK: process {local_rank} of this node has no GPU, of which there are {devices}; "
            f"launch {devices} processes on a node, or hide the GPUs (CUDA_VISIBLE_DEVICES=) to train on CPUs"
        )
    torch.cuda.set_device(local_rank)


def on_main_process(work: Callable[[], T]) -> T:
    """What ``work`` gives on the first process, which alone runs it; the others wait for as long as it takes.

    Called by all processes, in the same order; within ``work`` it just runs what it is given, as if there
    were one process. The result is pickled, so it should be small.

    Raises:
        StlmKdError: the first process raised it.
        RemoteProcessError: in the other processes, with the exit code of that error.
    """
    if launched_processes() == 1 or _alone:
        return work()
    join_processes()
    import torch
    from torch import distributed

    error: StlmKdError | None = None
    told: list[object] = [None, None]  # an exit code or a result
    if process_rank() == 0:
        try:
            with _others_waiting():
                told = [None, work()]
        except StlmKdError as raised:
            error, told = raised, [raised.exit_code, None]
    try:
        distributed.broadcast_object_list(told, src=0, group=_waiting_group(), device=torch.device("cpu"))
    except RuntimeError as lost:  # the first process ended in another way, and so said nothing
        raise error or RemoteProcessError(StlmKdError.exit_code) from lost
    if error is not None:
        raise error
    if isinstance(told[0], int):
        raise RemoteProcessError(told[0])
    return cast("T", told[1])


def require_all_processes(what: str) -> None:
    """See that no process does alone what all do together: it would wait for the others, and they for it.

    Args:
        what: Is to be done together; it begins the message.

    Raises:
        StlmKdError: it is called within the work of ``on_main_process``.
    """
    if launched_processes() > 1 and _alone:
        raise StlmKdError(
            f"{what}: asked of the first process alone, while the other {launched_processes() - 1} wait for "
            "it, but all train together; call it before or after on_main_process, in every process"
        )


def wait_for_all() -> None:
    """Go on once all processes are here, for as long as it takes.

    Raises:
        RemoteProcessError: another process ended, and says why.
    """
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
    """A group of all processes in which one may wait for long, on the CPU; made by the first such wait."""
    from torch import distributed

    group: ProcessGroup | None = distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
    return group


@contextmanager
def _others_waiting() -> Iterator[None]:
    """While it is entered, the other processes do nothing together with this one."""
    global _alone
    _alone = True
    try:
        yield
    finally:
        _alone = False


def end_processes() -> None:
    """Leave the process group at the end of a command; without it a process may abort while it exits."""
    if launched_processes() == 1 or "torch.distributed" not in sys.modules:
        return
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()
    _waiting_group.cache_clear()

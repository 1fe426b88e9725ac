"""The launched processes of a command, before and outside any training.

With a single process nothing is imported or initialised.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from stlm_kd import activity
from stlm_kd.errors import (
    Interrupted,
    MissingResourceError,
    Preempted,
    RemoteProcessError,
    StlmKdError,
    UsageError,
)
from stlm_kd.placement import missing_variables, placement
from stlm_kd.rendezvous import meet, refuse_other

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from stlm_kd.watchdog import Ending, LostProcess, Watchdog

T = TypeVar("T")

LONGEST_WAIT = timedelta(days=7)
"""Tokenising may take the main process hours; the watchdog ends the wait for a process that is lost."""

TIMEOUT = "STLM_KD_PROCESS_TIMEOUT"
"""The environment variable with the longest silence of another process, in minutes."""
DEFAULT_TIMEOUT_MIN = 10.0
SHORTEST_START_S = 60.0
"""Importing the libraries may take long where several processes do it at once."""

_alone = False
_watchdog: Watchdog | None = None
_before_the_end: list[Callable[[Ending, str], None]] = []
_handed_over: list[tuple[Callable[[], object], Callable[[Any], None]]] = []


def launched_processes() -> int:
    """Number of processes that the launcher started for this command; 1 without a launcher."""
    return placement().size


def process_rank() -> int:
    """The rank of this process, from 0; without several processes, another program's ``RANK`` is not read."""
    return placement().rank


def check_launch_variables() -> None:
    """Raise UsageError if the variables of launchers are wrong; then set for all libraries what they read.

    A single process has no launcher: ranks other than 0 are from elsewhere, and removed.
    """
    found = placement()
    if found.size == 1:
        for name in ("RANK", "LOCAL_RANK"):
            if os.environ.get(name) != "0":
                os.environ.pop(name, None)
    elif "WORLD_SIZE" not in os.environ:  # srun's
        os.environ.update(found.variables)


def timeout_s(option: float | None = None) -> float:
    """The longest silence of another process, in seconds; UsageError if the option or variable is not one."""
    place, text, cure = (
        TIMEOUT,
        os.environ.get(TIMEOUT, "") or str(DEFAULT_TIMEOUT_MIN),
        "correct or unset it",
    )
    if option is not None:
        place, text, cure = "--process-timeout", f"{option:g}", "correct it or leave it out"
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < 1e6:
        raise UsageError(f"{place}: {text!r} found, expected minutes above 0, such as 10; {cure}")
    return minutes * 60


def start_limit_s() -> float:
    """How long processes wait for each other to start, in seconds."""
    return max(timeout_s(), SHORTEST_START_S)


def join_processes() -> None:
    """Initialise ``torch.distributed`` for several processes, unless it is initialised already.

    Accelerate and DeepSpeed use the existing process group. MissingResourceError without rendezvous
    variables.
    """
    if launched_processes() == 1:
        return
    import torch
    from torch import distributed

    check_launch_variables()
    if missing := missing_variables():
        raise MissingResourceError(
            f"WORLD_SIZE: {launched_processes()} processes were launched, but {', '.join(missing)} "
            f"{'are' if len(missing) > 1 else 'is'} not set; launch with torchrun or --processes, which set "
            "them all, or unset WORLD_SIZE to run one process"
        )
    if not distributed.is_initialized():
        if torch.cuda.is_available():
            take_device(placement().local_rank, torch.cuda.device_count())
        _initialise("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    if _watchdog is None:
        _start_watchdog()


def _initialise(backend: str) -> None:
    """Meet the other processes; MissingResourceError, which names them, if some do not come in time."""
    from torch import distributed
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # left out of torch's __all__

    start_s = start_limit_s()
    store = meet(start_s)
    # A collective operation's own limit is for where nothing watches: it does not say who is missing.
    longer = max(timedelta(minutes=30), timedelta(seconds=2 * start_s))
    rank, size = process_rank(), launched_processes()
    store = PrefixStore("stlm-kd", store)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=longer)


def require_same(**facts: str) -> None:
    """Refuse processes in which a fact, such as the recipe's hash, is not that of the first one.

    Raises:
        MissingResourceError: In all processes, with the first one that differs.
    """
    if launched_processes() == 1 or _alone:
        return
    join_processes()
    from torch import distributed

    told: list[str] = [""] * launched_processes()
    with activity.doing("waiting for the other processes", pace="waits"):
        own = json.dumps({"host": socket.gethostname(), **facts})
        distributed.all_gather_object(told, own, group=waiting_group())
    refuse_other(told)


def _start_watchdog() -> None:
    """Start the watchdog of this process, in all processes together."""
    global _watchdog
    import torch
    from torch import distributed

    from stlm_kd.watchdog import watch_over

    def exchange(text: str) -> str:
        found = [text]
        group, cpu = waiting_group(), torch.device("cpu")
        distributed.broadcast_object_list(found, src=0, group=group, device=cpu)
        return found[0]

    _watchdog = watch_over(process_rank(), launched_processes(), timeout_s(), exchange)
    if _watchdog is not None:
        _watchdog.before_the_end = _before_the_end


def lost_process() -> LostProcess | None:
    """The process that was lost, if any, after an error of communication."""
    return _watchdog.lost() if _watchdog is not None else None


def remote_error() -> RemoteProcessError:
    """The error of this process after an error of communication, with the exit code that the other told."""
    lost = lost_process()
    return RemoteProcessError((lost.exit_code if lost is not None else 0) or StlmKdError.exit_code)


@contextmanager
def before_the_end(record: Callable[[Ending, str], None]) -> Iterator[None]:
    """Call ``record`` with status and reason if a thread ends this process within the block.

    The status is "failed" where another process is lost, "interrupted" where SIGTERM's time is over.
    """
    _before_the_end.append(record)
    try:
        yield
    finally:
        _before_the_end.remove(record)


def end_now(status: Ending, reason: str, exit_code: int) -> NoReturn:
    """From another thread than the main one: record why this process ends, tell the others, and end it."""
    for call in _before_the_end:
        with suppress(Exception):
            call(status, reason)
    if _watchdog is not None:
        _watchdog.leave(exit_code)
    sys.stderr.flush()
    os._exit(exit_code)


def tell_stop() -> None:
    """Tell the other processes of SIGTERM, which may have reached this one alone."""
    if _watchdog is not None:
        _watchdog.stopped_in = _watchdog.trainings


def training_has_ended() -> None:
    """Note the end of a training, so that no later one is taken for that in which SIGTERM came."""
    if _watchdog is not None:
        _watchdog.trainings += 1


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
    message: list[Any] = [None, None, []]  # an exit code or a result, and what the others take over
    if process_rank() == 0:
        try:
            with _others_waiting():
                message = [None, work(), [collect() for collect, _ in _handed_over]]
        except StlmKdError as raised:
            error, message = raised, [raised.exit_code, None, []]
    try:
        with activity.doing("waiting for the main process", pace="waits"):
            cpu = torch.device("cpu")
            distributed.broadcast_object_list(message, src=0, group=waiting_group(), device=cpu)
    except RuntimeError as lost:  # the main process ended without sending a message
        raise error or remote_error() from lost
    if error is not None:
        raise error
    if isinstance(message[0], int):
        raise RemoteProcessError(message[0])
    if process_rank() > 0:
        for (_, take_over), found in zip(_handed_over, message[2], strict=True):
            take_over(found)
    return cast("T", message[1])


def hand_over(collect: Callable[[], object], take_over: Callable[[Any], None]) -> None:
    """Let the other processes take over what the main process found out, after each ``on_main_process``.

    Called when a module is imported, in all processes alike: ``collect`` gives what is new since its last
    call, which can be pickled; ``take_over`` gets it in the others.
    """
    _handed_over.append((collect, take_over))


def are_together() -> bool:
    """Whether several processes run this call together, so that they can share its work."""
    return launched_processes() > 1 and not _alone


def largest_of_all(numbers: Sequence[int]) -> list[int]:
    """The largest of each number over all processes, which must call this together."""
    if launched_processes() == 1:
        return list(numbers)
    join_processes()
    import torch
    from torch import distributed

    found = torch.tensor(numbers, dtype=torch.int64)
    distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
    return [int(number) for number in found.tolist()]


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
        with activity.doing("waiting for the other processes", pace="waits"):
            distributed.barrier(group=waiting_group())
    except RuntimeError as lost:
        raise remote_error() from lost


@cache
def waiting_group() -> ProcessGroup | None:
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
        with activity.doing("on the main process"):
            yield
    finally:
        _alone = False


def end_processes() -> None:
    """Destroy the process group at the end of a command; otherwise a process may abort on exit.

    An exception in flight is reported to the other processes, unless all of them raise it.
    """
    global _watchdog
    if launched_processes() == 1 or "torch.distributed" not in sys.modules:
        return
    from torch import distributed

    if _watchdog is not None:
        _watchdog.leave(_failure(sys.exc_info()[1]))
        _watchdog = None
    if distributed.is_initialized():
        distributed.destroy_process_group()
    waiting_group.cache_clear()


def _failure(error: BaseException | None) -> int:
    """The exit code of an error; 0 if the other processes have it too: one's failure, a stop of all."""
    known = RemoteProcessError, Preempted, Interrupted
    if error is None or isinstance(error, known) or isinstance(error.__cause__, known):
        return 0
    code = getattr(error, "exit_code", getattr(error, "code", None))  # of typer.Exit, or SystemExit
    return code if isinstance(code, int) and 0 <= code < 256 else StlmKdError.exit_code

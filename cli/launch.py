"""Start a command again as several processes on this node, which train together."""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from stlm_kd.errors import Interrupted, Preempted, StlmKdError, UsageError

PROGRAM: Sequence[str] = (sys.executable, "-m", "stlm_kd")

GRACE_S = 30.0
"""Seconds that the other processes have to end by themselves once one has ended."""

_HOST = "127.0.0.1"
_POLL_S = 0.1
_ENDINGS: Mapping[int, type[StlmKdError]] = {signal.SIGINT: Interrupted, signal.SIGTERM: Preempted}
_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def launch(words: Sequence[str], processes: int) -> int:
    """Run ``python -m stlm_kd`` with these words in several processes; the exit code of the whole.

    Each process learns its number and where to meet the others from the variables that torchrun sets, so that
    the same words under torchrun do the same. What the first process prints appears; of the others, errors
    alone. SIGINT and SIGTERM are passed on to all of them, which save and stop at the same step; on Linux
    they do so too when this process is killed.

    Args:
        words: The command line without the program's name and without ``--processes``.
        processes: How many.

    Raises:
        UsageError: This process was itself started by a launcher.
    """
    if "WORLD_SIZE" in os.environ:
        raise UsageError(
            f"--processes: a launcher started this command already (WORLD_SIZE={os.environ['WORLD_SIZE']}); "
            "leave --processes out"
        )
    port = _free_port()
    print(command_lines(words, processes, port), file=sys.stderr, flush=True)
    started: list[subprocess.Popen[bytes]] = []
    with forward_signals(started) as received:
        with _held_back():
            for rank in range(processes):
                places = rank_env(rank, processes, port)
                started.append(_start([*PROGRAM, *words], places, is_heard=rank == 0))
        codes = _wait(started)
    code, message = exit_status(codes, received)
    if message:
        print(message, file=sys.stderr)
    return code


def command_lines(words: Sequence[str], processes: int, port: int) -> str:
    """What is run, as it could be typed; and how to run it on several nodes."""
    command = shlex.join([*PROGRAM, *words])
    lines = [
        " ".join([*(f"{name}={value}" for name, value in rank_env(rank, processes, port).items()), command])
        for rank in range(processes)
    ]
    same = shlex.join(["torchrun", "--nproc-per-node", str(processes), "-m", "stlm_kd", *words])
    return "\n".join([*lines, f"the same by torchrun, which takes --nnodes as well: {same}"])


def rank_env(rank: int, processes: int, port: int) -> dict[str, str]:
    """What is set for one process: its place among them, its share of the threads, no warnings of PyTorch's.

    What the user has set stays, but for the place.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quiet = {"OMP_NUM_THREADS": str(max(1, cores // processes)), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(processes),
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": _HOST,
        "MASTER_PORT": str(port),
        **{name: value for name, value in quiet.items() if name not in os.environ},
    }


def exit_status(codes: Sequence[int | None], received: Sequence[int]) -> tuple[int, str]:
    """One exit code for all processes, and what has to be said, if anything.

    A process that only lost the others ends with 1, and so the largest code says most.

    Args:
        codes: Their exit codes by rank, negative where a signal killed one; None where the launcher did.
        received: The signals that were passed on.
    """
    killed = {rank: -code for rank, code in enumerate(codes) if code is not None and code < 0}
    failed = max([code for code in codes if code is not None and code >= 0], default=0)
    asked = [number for number in killed.values() if number in received]
    if asked and failed <= 1:
        name = signal.Signals(asked[0]).name
        return _ENDINGS[asked[0]].exit_code, f"stopped by {name}; the same command begins or goes on"
    if killed and not asked:
        rank, number = next(iter(killed.items()))
        return 1, (
            f"process {rank} of {len(codes)} was killed by {signal.Signals(number).name}"
            f"{', perhaps because memory ran out' if number == signal.SIGKILL else ''}; "
            "the same command resumes from the last checkpoint"
        )
    if None in codes and not failed:
        return 1, f"process {codes.index(None)} of {len(codes)} did not end when the others did"
    return failed, ""


def first_process_ends(patience_s: float) -> bool:
    """Whether the first of the launched processes ends within so many seconds, or has ended.

    For as long as it lives it keeps the place open where the processes met.
    """
    if not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return False
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        with socket.create_connection(place, timeout=patience_s) as line:
            return line.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def _start(command: Sequence[str], places: Mapping[str, str], *, is_heard: bool) -> subprocess.Popen[bytes]:
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDINGS)
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    return subprocess.Popen(
        command,
        env={**os.environ, **places},
        stdout=None if is_heard else subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # a terminal's Ctrl-C reaches the launcher alone, which passes it on once
        preexec_fn=prepare,
    )


@contextmanager
def forward_signals(started: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """While it is entered, SIGINT and SIGTERM go to all processes that run; those that came."""
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in started:
            if process.poll() is None:
                process.send_signal(number)

    in_main = threading.current_thread() is threading.main_thread()
    previous = {number: signal.signal(number, pass_on) for number in _ENDINGS} if in_main else {}
    try:
        yield received
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _held_back() -> Iterator[None]:
    """While it is entered, SIGINT and SIGTERM wait: a process that is just begun would miss them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDINGS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDINGS)


def _wait(started: Sequence[subprocess.Popen[bytes]]) -> list[int | None]:
    """The exit codes, by rank. Once one has ended, the others are ended if they do not end by themselves."""
    deadline: float | None = None
    ended_here: list[subprocess.Popen[bytes]] = []
    while running := [process for process in started if process.poll() is None]:
        if deadline is None and len(running) < len(started):
            deadline = time.monotonic() + GRACE_S
        if deadline is not None and time.monotonic() > deadline:
            for process in running:
                process.kill() if process in ended_here else process.terminate()
            ended_here, deadline = running, time.monotonic() + GRACE_S
        time.sleep(_POLL_S)
    return [None if process in ended_here else process.returncode for process in started]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
    return port

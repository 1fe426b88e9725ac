"""Start a command again as several processes on this node, which train together."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from stlm_kd.errors import UsageError

GRACE_S = 60.0
"""Seconds that the other processes have to end by themselves once one has failed."""

_HOST = "127.0.0.1"
_POLL_S = 0.1
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def launch(words: Sequence[str], processes: int) -> int:
    """Run ``python -m stlm_kd`` with these words in several processes; the exit code of the whole.

    Each process learns its number and where to meet the others from the variables that torchrun sets, so that
    the same words under torchrun do the same. What the first process prints appears; of the others, errors
    alone. A signal is passed on to all of them, which save and stop at the same step.

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
    print(described(words, processes, port), file=sys.stderr, flush=True)
    started: list[subprocess.Popen[bytes]] = []
    with _passed_on(started):
        for rank in range(processes):
            started.append(_start(words, rank, processes, port))
        codes = _wait(started)
    return _verdict(codes)


def described(words: Sequence[str], processes: int, port: int) -> str:
    """What is run, as it could be typed; and how to run it on several nodes."""
    command = shlex.join([sys.executable, "-m", "stlm_kd", *words])
    meeting = f"WORLD_SIZE={processes} MASTER_ADDR={_HOST} MASTER_PORT={port}"
    lines = [
        f"RANK={rank} LOCAL_RANK={rank} LOCAL_WORLD_SIZE={processes} {meeting} {command}"
        for rank in range(processes)
    ]
    same = shlex.join(["torchrun", "--nproc-per-node", str(processes), "-m", "stlm_kd", *words])
    return "\n".join([*lines, f"the same by torchrun, which takes --nnodes as well: {same}"])


def _start(words: Sequence[str], rank: int, processes: int, port: int) -> subprocess.Popen[bytes]:
    threads = max(1, (os.cpu_count() or 1) // processes)
    places = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": processes,
        "LOCAL_WORLD_SIZE": processes,
        "MASTER_ADDR": _HOST,
        "MASTER_PORT": port,
    }
    environment = {"OMP_NUM_THREADS": str(threads), "TORCH_CPP_LOG_LEVEL": "ERROR", **os.environ}
    return subprocess.Popen(
        [sys.executable, "-m", "stlm_kd", *words],
        env={**environment, **{name: str(value) for name, value in places.items()}},
        stdout=None if rank == 0 else subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # a terminal's Ctrl-C reaches the launcher alone, which passes it on once
    )


@contextmanager
def _passed_on(started: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """While it is entered, SIGINT and SIGTERM go to all processes that run."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in started:
            if process.poll() is None:
                process.send_signal(number)

    in_main = threading.current_thread() is threading.main_thread()
    previous = {number: signal.signal(number, pass_on) for number in _SIGNALS} if in_main else {}
    try:
        yield
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(started: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """The exit codes, by rank. Once one has failed, the others are ended if they do not end by themselves."""
    deadline: float | None = None
    asked = False
    while any(process.poll() is None for process in started):
        if deadline is None and any(process.returncode for process in started):
            deadline = time.monotonic() + GRACE_S
        if deadline is not None and time.monotonic() > deadline:
            for process in started:
                if process.poll() is None:
                    process.kill() if asked else process.terminate()
            asked, deadline = True, time.monotonic() + GRACE_S
        time.sleep(_POLL_S)
    return [process.returncode for process in started]


def _verdict(codes: Sequence[int]) -> int:
    """One exit code for all: the one that most processes that failed agree on; 1 where one was killed."""
    for rank, code in enumerate(codes):
        if code < 0:
            name = signal.Signals(-code).name
            print(
                f"process {rank} of {len(codes)} was killed by {name}, perhaps because memory ran out; "
                "the same command goes on from the last checkpoint",
                file=sys.stderr,
            )
    killed = any(code < 0 for code in codes)
    failed = [code for code in codes if code > 0]
    if killed:
        return 1
    return max(set(failed), key=failed.count) if failed else 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
    return port

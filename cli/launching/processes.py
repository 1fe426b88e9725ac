"""Launch a command as several processes on this node, which train together."""

from __future__ import annotations

import ctypes
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from stlm_kd.distributed import timeout_s
from stlm_kd.errors import Interrupted, Preempted, StlmKdError, UsageError
from stlm_kd.placement import LOOPBACK, Placement
from stlm_kd.training.signals import handled
from stlm_kd.watchdog import REPORTS, LostProcess, describe, read_lost

PROGRAM: Sequence[str] = (sys.executable, "-m", "stlm_kd")

FROM_STDIN = "STLM_KD_SIGNALS_FROM_STDIN"
"""The environment variable of a launcher that another node started, and that ends with its stdin."""

GRACE_S = 8.0  # seconds for the other processes to end after one has failed
_LONG_GRACE_S = 30.0  # after the first one has ended well
_LAST_GRACE_S = 2.0  # between SIGTERM and SIGKILL

_POLL_S = 0.1
_ENDINGS: Mapping[int, type[StlmKdError]] = {signal.SIGINT: Interrupted, signal.SIGTERM: Preempted}
_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


@dataclass(frozen=True, slots=True)
class Node:
    """A node among those of a command, and where process 0 listens."""

    rank: int = 0
    count: int = 1
    host: str = LOOPBACK
    port: int = 0

    def places(self, processes: int) -> list[Placement]:
        """The places of so many processes on this node, as on all others."""
        first, size = self.rank * processes, self.count * processes
        return [
            Placement(first + local, size, local, processes, self.count, self.host, self.port)
            for local in range(processes)
        ]


def launch(words: Sequence[str], processes: int, node: Node | None = None) -> int:
    """Run ``python -m stlm_kd`` with these arguments in several processes; return the combined exit code.

    Sets the same environment variables as torchrun, so that the same arguments work with torchrun. Prints the
    output of the main process, and the errors of the others. Forwards SIGINT and SIGTERM to all processes,
    which save and stop at the same step; on Linux they also do so if this process is killed. ``node`` is this
    node, if there are others.
    """
    refuse_launched("--processes")
    places = (node or Node(port=free_port())).places(processes)
    print(command_lines(words, places), file=sys.stderr, flush=True)
    is_watched = os.environ.pop(FROM_STDIN, None) is not None
    started: list[subprocess.Popen[bytes]] = []
    with forward_signals(started) as received, tempfile.NamedTemporaryFile(prefix="stlm-kd-") as reports:
        with _block_signals():
            for place in places:
                variables = {**rank_env(place), REPORTS: reports.name}
                started.append(_start([*PROGRAM, *words], variables, prints=place.rank == 0))
        if is_watched:
            threading.Thread(target=_obey_stdin, daemon=True).start()
        codes = _wait(started)
        lost = read_lost(reports.read().decode())
    code, message = exit_status(codes, received, lost, places)
    if message:
        print(message, file=sys.stderr)
    return code


def refuse_launched(option: str) -> None:
    """Raise UsageError for an option that starts processes in one that a launcher started."""
    if "WORLD_SIZE" in os.environ:
        raise UsageError(
            f"{option}: a launcher started this command already (WORLD_SIZE={os.environ['WORLD_SIZE']}); "
            f"leave {option} out"
        )


def command_lines(words: Sequence[str], places: Sequence[Placement]) -> str:
    """The command lines of a node's processes, and the equivalent torchrun command."""
    command = shlex.join([*PROGRAM, *words])
    lines = [
        " ".join([*(f"{name}={value}" for name, value in rank_env(place).items()), command])
        for place in places
    ]
    first, several = places[0], ""
    if first.nodes > 1:
        several = (
            f"--nnodes {first.nodes} --node-rank {first.rank // first.local_size} "
            f"--master-addr {first.host} --master-port {first.port} "
        )
    same = shlex.join(["--nproc-per-node", str(first.local_size), "-m", "stlm_kd", *words])
    note = "equivalent torchrun command" + ("" if several else ", which also accepts --nnodes")
    return "\n".join([*lines, f"{note}: torchrun {several}{same}"])


def rank_env(place: Placement) -> dict[str, str]:
    """One process's rank, rendezvous, share of the threads and silence; the user may set the last two."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quiet = {"OMP_NUM_THREADS": str(max(1, cores // place.local_size)), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    kept = {name: value for name, value in quiet.items() if name not in os.environ}
    return {**place.variables, **kept}


def exit_status(
    codes: Sequence[int | None],
    received: Sequence[int],
    lost: LostProcess | None = None,
    places: Sequence[Placement] = (),
) -> tuple[int, str]:
    """The combined exit code of a node's processes, and a message, if any.

    Processes that only lost a connection end with 1, so the largest code is the most specific. ``codes`` are
    by rank: negative if a signal killed the process, None if the launcher did. ``lost`` is the process that
    the others found to be dead, stopped or hung, and then killed. Without ``places`` there is no other node.
    """
    first, size = (places[0].rank, places[0].size) if places else (0, len(codes))
    ranks = range(first, first + len(codes))
    killed = {rank: -code for rank, code in zip(ranks, codes, strict=True) if code is not None and code < 0}
    failed = max([code for code in codes if code is not None and code >= 0], default=0)
    forwarded = [number for number in killed.values() if number in received]
    if forwarded and failed <= 1:
        name = signal.Signals(forwarded[0]).name
        return _ENDINGS[forwarded[0]].exit_code, f"stopped by {name}; the same command starts or resumes"
    if lost is not None and (not lost.has_ended or (lost.rank not in ranks and not lost.exit_code)):
        return 1, str(lost)
    if killed and not forwarded:
        rank = lost.rank if lost is not None and lost.rank in killed else next(iter(killed))
        number = killed[rank]
        cause = ", perhaps because memory ran out" if number == signal.SIGKILL else ""
        fate = f"was killed by {signal.Signals(number).name}{cause}"
        return 1, describe(rank, size, fate, lost if lost is not None and lost.rank == rank else None)
    if None in codes and not failed:
        return 1, f"process {ranks[codes.index(None)]} of {size} did not end when the others did"
    return failed, ""


def first_process_ends(patience_s: float) -> bool:
    """Whether the main process, which keeps the rendezvous port open, ends within this many seconds."""
    if not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return False
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        with socket.create_connection(address, timeout=patience_s) as connection:
            return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def _start(command: Sequence[str], variables: Mapping[str, str], *, prints: bool) -> subprocess.Popen[bytes]:
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDINGS)
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    return subprocess.Popen(
        command,
        env={**os.environ, **variables},
        stdout=None if prints else subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches only the launcher, which forwards it once
        preexec_fn=prepare,
    )


@contextmanager
def forward_signals(started: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Forward SIGINT and SIGTERM to all running processes; yields the received signals."""
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in started:
            if process.poll() is None:
                process.send_signal(number)

    with handled(pass_on):
        try:
            yield received
        finally:
            for process in started:
                if process.poll() is None:
                    process.kill()


def _obey_stdin() -> None:
    """Take signals, one number on each line, from the node that started this launcher; the end is SIGTERM."""
    for line in open(0, "rb", buffering=0, closefd=False):  # noqa: SIM115  # no lock at exit
        os.kill(os.getpid(), int(line))
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _block_signals() -> Iterator[None]:
    """Block SIGINT and SIGTERM, which processes that are just starting would miss."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDINGS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDINGS)


def _wait(started: Sequence[subprocess.Popen[bytes]]) -> list[int | None]:
    """The exit codes by rank. Once some have ended, stops the others after a grace period."""
    ends_at = math.inf
    ended_here: list[subprocess.Popen[bytes]] = []
    while running := [process for process in started if process.poll() is None]:
        if not ended_here:
            ends_at = min(ends_at, time.monotonic() + _grace_s(started))
        if time.monotonic() > ends_at:
            for process in running:
                process.kill() if process in ended_here else process.terminate()
            ended_here, ends_at = running, time.monotonic() + _LAST_GRACE_S
        time.sleep(_POLL_S)
    return [None if process in ended_here else process.returncode for process in started]


def _grace_s(started: Sequence[subprocess.Popen[bytes]]) -> float:
    """How long those that run may still take.

    The main process may outlast the others, but once they have left, no watchdog sees whether it is stopped.
    """
    first, *others = (process.poll() for process in started)
    if first or any(others):
        return GRACE_S
    if first is not None:
        return _LONG_GRACE_S
    return timeout_s() if others and None not in others else math.inf


def free_port() -> int:
    """A port that is free on this node at the moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port

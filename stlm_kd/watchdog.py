"""Watches the other processes of a command, so that none waits for one that is dead, stopped or hung.

Each process has a thread with a connection to the main process, over which it tells its host, its last step
and what it does (``stlm_kd.activity``). The kernel closes the connections of a process that is killed, so
its end is seen at once. One that is stopped sends nothing, and one that hangs always sends the same; once
that lasts as long as ``--process-timeout``, it is named. Then all processes end: a collective operation
cannot be interrupted from Python, so the thread ends its process. The training's steps are not touched.

A process that got SIGTERM says so, and how many trainings had ended before (``stopped_in``, ``trainings``):
a scheduler may send it to one alone, and all must stop.
A process that leaves in order says so, and with which exit code if an error ends it, which then ends all.
Once one has left, no collective operation can succeed, so that a wait in one is a hang as well.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal, cast

from stlm_kd import activity
from stlm_kd.errors import StlmKdError, printable
from stlm_kd.placement import LOOPBACK, placement

Ending = Literal["failed", "interrupted"]
"""What a thread that ends its process records."""

REPORTS = "STLM_KD_LOST_PROCESS"
"""The environment variable with the file in which a launcher reads which process was lost."""

GRACE_S = 5.0
"""Seconds after another process's death for this one to end by itself, with what it saves and records."""
_SPEAK_AFTER_S = 1.0  # unless this process ends as well, as after a signal to all
_MAX_MESSAGE = 1 << 16
_BUSY = 0.01
"""The share of a processor from which on a process counts as working."""
_MOVING = 1 << 16
"""Bytes per second from which on it does too: more than words on stderr and signs of life over a network."""


@dataclass(frozen=True, slots=True)
class LostProcess:
    """A process that is lost: what became of it, what it last told of itself, and the exit code it told.

    ``numbering`` is what its number in ``place`` is unique in; empty if that is unknown.
    """

    rank: int
    size: int
    fate: str
    place: str
    doing: str
    exit_code: int = 0
    numbering: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether it is no longer there, rather than stopped or hung."""
        return self.fate == ENDED or self.exit_code > 0

    def __str__(self) -> str:
        return describe(self.rank, self.size, self.fate, self)


def describe(rank: int, size: int, fate: str, last: LostProcess | None) -> str:
    """The message about a lost process, with what it last told if that is known."""
    known = f" ({last.place}; last at: {last.doing})" if last is not None else ""
    return f"process {rank} of {size} {fate}{known}; the same command resumes from the last checkpoint"


ENDED = "ended without a word"


def read_lost(text: str) -> LostProcess | None:
    """The first lost process in what processes wrote to the file ``REPORTS``; None if they wrote none."""
    return next((LostProcess(**json.loads(line)) for line in text.splitlines()), None)


@dataclass(slots=True)
class _Peer:
    """What a process told, and for how long it has told nothing, or nothing new."""

    rank: int
    place: str
    doing: str
    numbering: str
    life: int = 0
    waits: bool = False
    silent_s: float = 0.0
    lifeless_s: float = 0.0

    def told(self) -> dict[str, Any]:
        """The message about a process."""
        return {name: getattr(self, name) for name in _TOLD}

    def hear(self, told: Mapping[str, Any]) -> None:
        """Take in a message."""
        self.silent_s = 0.0
        if told["life"] != self.life:
            self.lifeless_s = 0.0
        self.doing, self.life, self.waits = told["doing"], told["life"], told["waits"]


_TOLD = ("rank", "place", "doing", "numbering", "life", "waits")


class Watchdog:
    """The thread of one process; see ``watch_over``.

    Args:
        rank: This process's number.
        size: The number of processes.
        limit_s: The longest silence, in seconds.
        listener: On rank 0, the socket to which the others connect.
        key: The shared secret that a connection must send first.
        line: On the others, the connection to rank 0.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        limit_s: float,
        *,
        listener: socket.socket | None = None,
        key: str = "",
        line: Connection | None = None,
    ) -> None:
        self.rank, self.size, self.limit_s = rank, size, limit_s
        self.beat_s = max(min(1.0, limit_s / 8), limit_s / 600)
        self.before_the_end: list[Callable[[Ending, str], None]] = []
        self.trainings, self.stopped_in = 0, -1
        self._told_stop_in = -1
        self._listener, self._key = listener, key
        self._lines: dict[Connection, _Peer | None] = {} if line is None else {line: None}
        place = f"pid {os.getpid()} on {socket.gethostname()}"
        self._self = _Peer(rank, place, activity.described(), _numbering())
        self._main_thread = threading.main_thread().ident
        self._advances, self._work = 0, (0.0, 0.0)
        self._lock = threading.Lock()
        self._lost: LostProcess | None = None
        self._lost_at = 0.0
        self._saw_lost = threading.Event()
        self._is_reported = self._has_left = self._is_incomplete = False
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()
        atexit.register(self._exit)

    def leave(self, exit_code: int = 0) -> None:
        """Tell the others that this process ends, and the exit code of an error; it is watched no more."""
        atexit.unregister(self._exit)
        with self._lock:
            if not self._has_left:
                self._has_left = True
                if self._lost is not None and not self._lost.exit_code:  # whoever told one says why
                    self._report()
                self._send({"bye": exit_code})

    def _exit(self) -> None:
        self.leave(int(hasattr(sys, "last_value")))  # the error that ends the interpreter

    def lost(self) -> LostProcess | None:
        """The process that was lost, if any; waits a moment, since the main thread may notice it first."""
        self._saw_lost.wait(2.0)
        return self._lost

    def _run(self) -> None:
        try:
            self._watch()
        except BaseException:  # a fault of this thread must not pass for a silent process
            self.leave()
            raise

    def _watch(self) -> None:
        before = beat_at = time.monotonic()
        while True:
            ready = wait([*self._lines, *([self._listener] if self._listener else [])], self.beat_s)
            with self._lock:
                if self._has_left:
                    if self._listener is not None:
                        self._listener.close()
                    return
                for source in ready:
                    self._accept() if source is self._listener else self._read(cast("Connection", source))
                now = time.monotonic()
                # At most two beats: where this process was stopped itself, the others are not to blame.
                passed_s, before = min(now - before, 2 * self.beat_s), now
                if now >= beat_at:
                    beat_at = now + self.beat_s
                    self._beat()
                if self._lost is None:
                    self._judge(passed_s)
                else:
                    self._see_it_out(now)

    def _accept(self) -> None:
        assert self._listener is not None
        with suppress(OSError):
            connection, _ = self._listener.accept()
            with connection:
                connection.settimeout(1.0)
                if secrets.compare_digest(connection.recv(len(self._key)), self._key.encode()):
                    connection.settimeout(None)
                    self._lines[Connection(connection.detach())] = None

    def _read(self, line: Connection) -> None:
        """Take in one message; a connection that closes is a process that ended."""
        try:
            told = json.loads(line.recv_bytes(_MAX_MESSAGE))
        except (EOFError, OSError):
            told = {"bye": None}
        if "bye" in told:
            peer, exit_code = self._lines.pop(line), told["bye"]
            line.close()
            if exit_code == 0:
                self._go_on_without_one()
            elif peer is not None:
                fate = ENDED if exit_code is None else f"ended with exit code {exit_code}"
                self._lose(peer, fate, exit_code or 0)
        elif "left" in told:
            self._go_on_without_one()
        elif "stop" in told:
            self._hear_stop(told["stop"])
        elif "lost" in told:
            if self._lost is None:
                self._is_reported = True
                self._pass_on(LostProcess(**told["lost"]))
        elif (peer := self._lines[line]) is None:
            self._lines[line] = _Peer(**told)
        else:
            peer.hear(told)

    def _go_on_without_one(self) -> None:
        """Note that a process left in order, and tell the others."""
        if not self._is_incomplete:
            self._is_incomplete = True
            for peer in (self._self, *self._lines.values()):
                if peer is not None:
                    peer.lifeless_s = 0.0
            self._send({"left": True})

    def _tell_stop(self, training: int) -> None:
        """Tell the others once that a process got SIGTERM in a training; process 0 passes it on to all."""
        if training > self._told_stop_in:
            self._told_stop_in = training
            self._send({"stop": training})

    def _hear_stop(self, training: int) -> None:
        """Take another process's SIGTERM as one of this process, unless it has had one or ended since."""
        self._tell_stop(training)
        is_new = training > self.stopped_in and training >= self.trainings
        if is_new and callable(signal.getsignal(signal.SIGTERM)):
            os.kill(os.getpid(), signal.SIGTERM)

    def _beat(self) -> None:
        """Tell the others what this process does, and whether it moved since the last beat."""
        self._tell_stop(self.stopped_in)
        own = self._self
        advances, pace = activity.progress()
        cpu_s, moved = work = activity.work()
        own.doing, own.waits = activity.described(), pace == "waits"
        if own.waits and self._is_incomplete:
            own.waits = not _stack(self._main_thread)[1]
        if (
            advances != self._advances
            or own.waits
            or activity.waits_for_disk()
            or moved - self._work[1] > _MOVING * self.beat_s
            or (pace == "free" and cpu_s - self._work[0] > _BUSY * self.beat_s)
        ):
            own.life, own.lifeless_s = own.life + 1, 0.0
        elif own.lifeless_s > self.limit_s / 2:
            where, is_collective = _stack(self._main_thread)
            own.waits = is_collective and not self._is_incomplete
            own.doing = f"{own.doing}, in {where}"
        self._advances, self._work = advances, work
        self._send(own.told())

    def _send(self, message: Mapping[str, Any]) -> None:
        text = json.dumps(message).encode()
        for line in self._lines:
            with suppress(OSError):  # its end is read in its turn
                line.send_bytes(text)

    def _judge(self, passed_s: float) -> None:
        """Find a process that was silent, or did nothing, for too long."""
        peers = [peer for peer in self._lines.values() if peer is not None]
        for peer in peers:
            peer.silent_s += passed_s
        for peer in (self._self, *peers):
            peer.lifeless_s += passed_s
        limit = activity.duration(self.limit_s)
        if silent := [peer for peer in peers if peer.silent_s >= self.limit_s]:
            self._lose(silent[0], f"did not answer for {limit}")
        # Who waits for a slow or silent process in a collective operation makes no progress either.
        late = [peer for peer in (self._self, *peers) if peer.lifeless_s >= self.limit_s + 3 * self.beat_s]
        stuck = [peer for peer in late if not peer.waits] or (late if len(late) > len(peers) else [])
        judges = self.rank == 0 or not self._lines  # process 0, or who outlasts it
        if stuck and judges and all(peer.silent_s < self.limit_s / 2 for peer in peers):
            after = " after another process had left" if self._is_incomplete else ""
            self._lose(max(stuck, key=lambda peer: peer.lifeless_s), f"made no progress for {limit}{after}")

    def _lose(self, peer: _Peer, fate: str, exit_code: int = 0) -> None:
        told = peer.place, peer.doing, exit_code, peer.numbering
        self._pass_on(LostProcess(peer.rank, self.size, fate, *told))

    def _pass_on(self, lost: LostProcess) -> None:
        """Note the first lost process, and tell the others."""
        if self._lost is None:
            self._lost, self._lost_at = lost, time.monotonic()
            self._send({"lost": asdict(lost)})
            self._saw_lost.set()

    def _see_it_out(self, now: float) -> None:
        """Report the lost process unless this process ends as well, as after a signal to all; then end it."""
        assert self._lost is not None
        patience_s = GRACE_S if self._lost.has_ended else _SPEAK_AFTER_S
        if now >= self._lost_at + (patience_s if self._lost.exit_code else _SPEAK_AFTER_S):
            self._report()
        if now < self._lost_at + patience_s:
            return
        for call in self.before_the_end:
            with suppress(Exception):
                call("failed", str(self._lost))
        is_here = self._lost.numbering == self._self.numbering != ""
        if not self._lost.has_ended and self._lost.rank != self.rank and is_here:
            with suppress(OSError):
                pid = int(self._lost.place.split()[1])
                os.kill(pid, signal.SIGKILL)  # the only signal that ends a stopped one
        sys.stderr.flush()
        os._exit(self._lost.exit_code or StlmKdError.exit_code)

    def _report(self) -> None:
        """Say once which process was lost: to the launcher if it reads, else by one process of each node."""
        if self._is_reported or self._lost is None:
            return
        self._is_reported = True
        if path := os.environ.get(REPORTS):
            with suppress(OSError), Path(path).open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(self._lost)) + "\n")
        elif self.rank <= 1 or placement().local_rank == 0:
            print(printable(self._lost), file=sys.stderr, flush=True)


def watch_over(rank: int, size: int, limit_s: float, exchange: Callable[[str], str]) -> Watchdog | None:
    """Start this process's watchdog; ``exchange`` gives all processes the text of rank 0.

    None, with a message, where rank 0 cannot be reached; collective operations still have their own limit.
    """
    host = placement().host or LOOPBACK
    if rank == 0:
        key = secrets.token_hex(16)
        is_local = host == "localhost" or host.startswith("127.")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server(("127.0.0.1" if is_local else "", 0), family=family)
        exchange(json.dumps([key, listener.getsockname()[1]]))
        return Watchdog(rank, size, limit_s, listener=listener, key=key)
    key, port = json.loads(exchange(""))
    try:
        connection = socket.create_connection((host, port), timeout=10)
        connection.sendall(key.encode())
        connection.settimeout(None)
    except OSError as error:
        problem = f"{host}, port {port}: {error.strerror or error}"
        print(f"process {rank}: not watched, since it cannot reach process 0 ({problem})", file=sys.stderr)
        return None
    return Watchdog(rank, size, limit_s, line=Connection(connection.detach()))


def _numbering() -> str:
    """What the numbers of this node's processes are unique in: container, boot and host; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{Path('/proc/self/ns/pid').readlink()} {boot} {socket.gethostname()}"
    except (OSError, ValueError):
        return ""


def _stack(thread: int | None) -> tuple[str, bool]:
    """The place in this package at which a thread is, and whether it is in a collective operation."""
    frame = sys._current_frames().get(thread or 0)
    place, waits = "", False
    while frame is not None and not place:
        path = Path(frame.f_code.co_filename)
        waits = waits or path.match("torch/distributed/*") or path.match("torch/autograd/*")
        if str(path).startswith(str(Path(__file__).parent)):
            place = f"{path.name}:{frame.f_lineno} ({frame.f_code.co_name})"
        frame = frame.f_back
    return place or "code of another package", waits

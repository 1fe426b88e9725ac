"""Processes that watch each other, without a training: who is dead, stopped or hung is named, and all end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from stlm_kd.watchdog import ENDED, LostProcess, Watchdog, read_lost
from tests.support.paths import ROOT
from tests.support.processes import lives

LIMIT_S, GRACE_S = 1.6, 2.0
SIZE = 3
PROGRAM = f"""
import os, sys, time
from pathlib import Path
from stlm_kd import activity, watchdog

rank, place = int(os.environ["RANK"]), Path("meeting")

def exchange(text):
    if rank == 0:
        place.with_name("half").write_text(text)
        place.with_name("half").rename(place)
    while not place.exists():
        time.sleep(.01)
    return place.read_text()

def await_(name):
    while not Path(name).exists():
        time.sleep(.01)

def train(steps, every=.05):
    with activity.doing("student", unit="step", total=steps, pace="steps") as progress:
        Path(f"ready-{{rank}}").touch()
        for _ in range(steps):
            progress.advance()
            time.sleep(every)

watchdog.GRACE_S = {GRACE_S}
exec(os.environ.get("FIRST", ""))
watch = watchdog.watch_over(rank, {SIZE}, {LIMIT_S}, exchange)
watch.before_the_end.append(lambda status, message: Path(f"told-{{rank}}").write_text(message))
"""


@dataclass(frozen=True)
class Together:
    """Processes that run the same lines."""

    folder: Path
    processes: list[subprocess.Popen[str]]

    def ready(self) -> None:
        wait_for(lambda: len([*self.folder.glob("ready-*")]) == SIZE)
        time.sleep(0.5)

    def ended(self, seconds: float) -> list[int]:
        """The exit codes, if all end in this time."""
        deadline = time.monotonic() + seconds
        return [process.wait(max(deadline - time.monotonic(), 0.01)) for process in self.processes]

    def lost(self) -> LostProcess:
        """What was reported."""
        found = read_lost((self.folder / "lost").read_text())
        assert found is not None
        return found


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def together(tmp_path: Path) -> Iterator[Callable[[str], Together]]:
    processes: list[subprocess.Popen[str]] = []

    def run(lines: str) -> Together:
        for rank in range(SIZE):
            environment = {"RANK": str(rank), "STLM_KD_LOST_PROCESS": str(tmp_path / "lost")}
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", PROGRAM + lines],
                    cwd=tmp_path,
                    env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        return Together(tmp_path, processes)

    yield run
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_killed_process_is_named_and_the_others_end_within_seconds(
    together: Callable[[str], Together], rank: int
) -> None:
    found = together("train(10_000)")
    found.ready()
    found.processes[rank].kill()
    assert found.ended(GRACE_S + 4) == [-signal.SIGKILL if one == rank else 1 for one in range(SIZE)]
    assert (found.lost().rank, found.lost().fate) == (rank, ENDED)
    assert f"pid {found.processes[rank].pid} on " in str(found.lost())
    assert "last at: student, step " in str(found.lost())
    told = {file.name for file in found.folder.glob("told-*")}
    assert told == {f"told-{one}" for one in range(SIZE) if one != rank}


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.long), 1])
def test_an_error_that_ends_a_process_ends_all_with_its_exit_code(
    together: Callable[[str], Together], rank: int
) -> None:
    found = together(f"""
train(10)
if rank == {rank}:
    watch.leave(5)
    sys.exit(5)
with activity.doing("waiting", pace="waits"):
    time.sleep(100)
""")
    assert found.ended(GRACE_S + 6) == [5] * SIZE
    assert (found.lost().rank, found.lost().fate) == (rank, "ended with exit code 5")


def test_who_waits_for_processes_that_have_left_hangs_and_who_works_does_not(
    together: Callable[[str], Together],
) -> None:
    found = together(f"""
waits = compile("time.sleep(100)", "/x/torch/distributed/distributed_c10d.py", "exec")
train(10)
if rank == 1:
    with activity.doing("waiting", pace="waits"):
        exec(waits)
if rank == 2:
    train({int(2.5 * LIMIT_S / 0.05)})
""")
    assert found.ended(2.5 * LIMIT_S + 8) == [0, 1, 0]
    assert (found.lost().rank, found.lost().fate) == (
        1,
        "made no progress for 2s after another process had left",
    )


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.long), 2])
def test_a_stopped_process_is_named_and_ends_too(together: Callable[[str], Together], rank: int) -> None:
    found = together("train(10_000)")
    found.ready()
    found.processes[rank].send_signal(signal.SIGSTOP)
    assert found.ended(LIMIT_S + 5) == [-signal.SIGKILL if one == rank else 1 for one in range(SIZE)]
    assert (found.lost().rank, found.lost().fate) == (rank, "did not answer for 2s")


@pytest.mark.parametrize("pace", ["steps", pytest.param("free", marks=pytest.mark.long)])
def test_a_process_that_hangs_is_named_with_the_function_in_which_it_does(
    together: Callable[[str], Together], pace: str
) -> None:
    lines = f"""
import threading
train(10)
lock = threading.Lock()
lock.acquire()
activity.WORD_EVERY_S = .1
with activity.doing("student", unit="step", pace="waits" if rank != 1 else "{pace}"):
    lock.acquire()
"""
    found = together(lines)
    codes = found.ended(LIMIT_S + 8)
    assert codes[::2] == [1, 1] and codes[1] in (1, -signal.SIGKILL)
    assert (found.lost().rank, found.lost().fate) == (1, "made no progress for 2s")
    assert ", in code of another package" in found.lost().doing


def test_long_work_waits_for_it_and_an_orderly_end_are_no_loss(together: Callable[[str], Together]) -> None:
    lines = f"""
until = time.monotonic() + {2.5 * LIMIT_S}
if rank == 0:
    with activity.doing("tokenising"):
        while time.monotonic() < until:
            sum(range(1000))
if rank == 1:
    with activity.doing("waiting", pace="waits"):
        time.sleep({2.5 * LIMIT_S})
if rank == 2:
    waits = compile("time.sleep({2.5 * LIMIT_S})", "/x/torch/distributed/distributed_c10d.py", "exec")
    with activity.doing("student", pace="steps"):
        exec(waits)
"""
    found = together(lines)
    assert found.ended(2.5 * LIMIT_S + 8) == [0] * SIZE
    assert not (found.folder / "lost").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells of it in /proc")
def test_slow_storage_and_a_slow_network_are_no_hang(together: Callable[[str], Together]) -> None:
    lines = f"""
until = time.monotonic() + {2.5 * LIMIT_S}
if rank == 0:
    with activity.doing("downloading"), open("weights", "wb") as file:
        while time.monotonic() < until:
            file.write(bytes(1 << 18))
            time.sleep(.3)
if rank == 1:  # as for a file's flush, the kernel lets nothing interrupt the wait for such a child
    import ctypes, signal
    libc, stack, flags = ctypes.CDLL(None), ctypes.create_string_buffer(1 << 16), 0x4000 | signal.SIGCHLD
    top = ctypes.c_void_p(ctypes.addressof(stack) + (1 << 16) & ~15)
    with activity.doing("student", pace="steps"):
        sleep, seconds = ctypes.cast(libc.sleep, ctypes.c_void_p), ctypes.c_void_p({int(3 * LIMIT_S) + 1})
        assert libc.clone(sleep, top, flags, seconds) > 0
    assert time.monotonic() > until
if rank == 2:
    with activity.doing("waiting", pace="waits"):
        time.sleep({2.5 * LIMIT_S})
"""
    found = together(lines)
    assert found.ended(3 * LIMIT_S + 9) == [0] * SIZE
    assert not (found.folder / "lost").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere none is killed")
@pytest.mark.parametrize("numbering", ["pid:[1] a b", ""])
def test_a_stopped_process_whose_number_may_be_anothers_is_not_killed(
    together: Callable[[str], Together], monkeypatch: pytest.MonkeyPatch, numbering: str
) -> None:
    ranks = (2,) if numbering else (0, 1, 2)
    monkeypatch.setenv("FIRST", f"if rank in {ranks}: watchdog._numbering = lambda: {numbering!r}")
    found = together("train(10_000)")
    found.ready()
    found.processes[2].send_signal(signal.SIGSTOP)
    assert [found.processes[rank].wait(LIMIT_S + 5) for rank in (0, 1)] == [1, 1]
    assert found.lost().rank == 2
    time.sleep(0.5)
    assert found.processes[2].poll() is None


@pytest.mark.long
def test_processes_that_were_all_stopped_go_on_together(together: Callable[[str], Together]) -> None:
    found = together(f"train({int(30 * LIMIT_S)})")
    found.ready()
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for process in found.processes:
            process.send_signal(number)
        time.sleep(1.5 * LIMIT_S if number == signal.SIGSTOP else 0)
    assert found.ended(3 * LIMIT_S + 8) == [0] * SIZE
    assert not (found.folder / "lost").exists()


LAUNCHER = """
import sys
from stlm_kd.cli.launching import processes as launching
launching.PROGRAM = (sys.executable, "-c")
raise SystemExit(launching.launch([sys.argv[1]], int(sys.argv[2])))
"""
ADDS_UP = """
end = 0.0
for step in range(steps := {steps}):
    end = end * .9 + hash((rank, step)) % 1000 / 7
    step % 20 or train(20)
Path(f"end-{{rank}}").write_text(f"{{end!r}}")
"""


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Callable[[str, str], Together]]:
    """A launcher whose processes run the same lines in a folder."""
    launchers: list[subprocess.Popen[str]] = []

    def run(name: str, lines: str) -> Together:
        (tmp_path / name).mkdir()
        launchers.append(
            subprocess.Popen(
                [sys.executable, "-c", LAUNCHER, PROGRAM + lines, str(SIZE)],
                cwd=tmp_path / name,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return Together(tmp_path / name, launchers[-1:])

    yield run
    for launcher in launchers:
        launcher.kill()
        launcher.communicate()


@pytest.mark.parametrize("steps", [60, pytest.param(400, marks=pytest.mark.long)])
@pytest.mark.parametrize("is_late", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_launcher_that_is_stopped_and_goes_on_changes_no_end(
    launched: Callable[[str, str], Together], steps: int, is_late: bool
) -> None:
    """As by Ctrl-Z and fg: the processes are not stopped, and may have ended when it goes on."""
    alone, found = (launched(name, ADDS_UP.format(steps=steps)) for name in ("alone", "stopped"))
    found.ready()
    (launcher,) = found.processes
    launcher.send_signal(signal.SIGSTOP)
    if is_late:
        wait_for(lambda: len([*found.folder.glob("end-*")]) == SIZE)
    else:
        time.sleep(1.2 * LIMIT_S)
    assert launcher.poll() is None
    launcher.send_signal(signal.SIGCONT)
    assert found.ended(steps * 0.06 + 10) == alone.ended(steps * 0.06 + 10) == [0]
    ends = [[(one.folder / f"end-{rank}").read_text() for rank in range(SIZE)] for one in (alone, found)]
    assert ends[0] == ends[1] and len(set(ends[0])) == SIZE
    assert launcher.stderr is not None and "; the same command resumes" not in launcher.stderr.read()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells the processes of it")
@pytest.mark.parametrize("is_stopped", [False, pytest.param(True, marks=pytest.mark.long)])
def test_processes_whose_launcher_is_killed_end_within_seconds_the_deaf_one_too(
    launched: Callable[[str, str], Together], is_stopped: bool
) -> None:
    deaf = "import signal\nrank and signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    found = launched("killed", deaf + 'Path(f"pid-{rank}").write_text(str(os.getpid()))\ntrain(10_000)')
    found.ready()
    pids = [int((found.folder / f"pid-{rank}").read_text()) for rank in range(SIZE)]
    if is_stopped:
        found.processes[0].send_signal(signal.SIGSTOP)
    found.processes[0].kill()
    began = time.monotonic()
    wait_for(lambda: not any(map(lives, pids)))
    assert time.monotonic() - began < GRACE_S + 6


@pytest.mark.long
def test_without_a_launcher_one_process_says_it(together: Callable[[str], Together]) -> None:
    found = together("del os.environ['STLM_KD_LOST_PROCESS']; train(10_000)")
    found.ready()
    found.processes[2].kill()
    found.ended(GRACE_S + 4)
    said = [line for one in found.processes if one.stderr for line in one.stderr.read().splitlines()]
    assert len(said) == 1 and said[0].startswith(f"process 2 of {SIZE} {ENDED} (pid ")
    assert said[0].endswith("; the same command resumes from the last checkpoint")


def test_who_does_not_know_the_key_is_turned_away_and_nobody_is_lost() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    watch = Watchdog(0, 2, 600.0, listener=listener, key=f"{7:032x}")
    try:
        for words in (b"0" * 32, b"\xff" * 32, b"0", b"GET / HTTP/1.1\r\n\r\n" + b"x" * 10_000):
            with socket.create_connection(listener.getsockname(), timeout=10) as stranger:
                stranger.sendall(words)
                with suppress(ConnectionResetError):
                    assert stranger.recv(1) == b"", "closed without an answer"
        with socket.create_connection(listener.getsockname(), timeout=10) as peer:
            peer.sendall(f"{7:032x}".encode())
            assert Connection(peer.detach()).poll(10), "a connection with the key gets reports"
    finally:
        watch.leave()
    until = time.monotonic() + 20
    while listener.fileno() >= 0 and time.monotonic() < until:
        time.sleep(0.01)
    assert listener.fileno() < 0, "the port is free again"

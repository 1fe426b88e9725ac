"""The launcher: environment variables of the processes, forwarded signals, combined exit code."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from stlm_kd.cli.launching import processes as launching
from stlm_kd.cli.launching.processes import (
    Node,
    command_lines,
    exit_status,
    first_process_ends,
    launch,
    rank_env,
)
from stlm_kd.distributed import TIMEOUT, timeout_s
from stlm_kd.errors import UsageError
from stlm_kd.placement import Placement
from stlm_kd.watchdog import ENDED, LostProcess
from tests.support.processes import lives

PROGRAM = (sys.executable, "-S", "-E", "-c")
LAUNCHER = """
import sys
from stlm_kd.cli.launching import processes as launching
launching.PROGRAM = (sys.executable, "-S", "-E", "-c")
raise SystemExit(launching.launch([sys.argv[1]], 2))
"""
TELLS = "open(os.environ['RANK'], 'w').write(str(os.getpid())); "
STAYS = "import os, signal, time; "
SAVES = "[signal.signal(n, lambda n, _: os._exit({15: 75, 2: 130}[n])) for n in (2, 15)]; "
SLEEPS = "time.sleep(60)"


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], int]:
    """Two processes of bare Python in place of the command."""
    monkeypatch.setattr(launching, "PROGRAM", PROGRAM)
    monkeypatch.setattr(launching, "_POLL_S", 0.01)
    monkeypatch.chdir(tmp_path)
    return lambda code: launch([code], 2)


class Launcher:
    """A launcher in a separate process, whose two processes have written their process ids."""

    def __init__(self, folder: Path, code: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, code],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path(launching.__file__).parents[3])},
            stderr=subprocess.PIPE,
            text=True,
        )
        files = [folder / "0", folder / "1"]
        await_(lambda: all(file.is_file() and file.read_text() for file in files))
        self.pids = [int(file.read_text()) for file in files]

    def ended(self) -> tuple[int, list[str]]:
        """The exit code, and the lines on standard error after the printed commands."""
        _, stderr = self.process.communicate(timeout=20)
        return self.process.returncode, stderr.splitlines()[3:]


def await_(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


linux = pytest.mark.skipif(
    sys.platform != "linux", reason="looks into /proc; the kernel's word is Linux's own"
)


def test_each_process_is_told_its_place_and_only_the_first_ones_stdout_appears(
    launched: Callable[[str], int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    code = f"import os; said = ' '.join(os.environ[n] for n in {names}); print('heard', said); "
    assert launched(code + "open(os.environ['RANK'], 'w').write(said)") == 0
    told = [(tmp_path / rank).read_text().split() for rank in "01"]
    assert [places[:5] for places in told] == [[r, r, "2", "2", "127.0.0.1"] for r in "01"]
    assert told[0][5] == told[1][5]
    assert capfd.readouterr().out == f"heard {' '.join(told[0])}\n"


def test_the_lines_that_are_printed_do_the_same_when_they_are_typed(
    launched: Callable[[str], int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = [*rank_env(Placement(size=2, local_size=2))]
    code = f"import os; open(os.environ['RANK'], 'w').write(str([os.environ[n] for n in {names}]))"
    assert launched(code) == 0
    before = [(tmp_path / rank).read_text() for rank in "01"]
    lines = capfd.readouterr().err.splitlines()
    for line in lines[:2]:
        subprocess.run(line, shell=True, check=True)
    assert [(tmp_path / rank).read_text() for rank in "01"] == before
    same = shlex.split(lines[2].partition(": ")[2])
    assert same == ["torchrun", "--nproc-per-node", "2", "-m", "stlm_kd", code]


def test_words_with_spaces_are_quoted() -> None:
    line = command_lines(["distill", "teachers=[{name: a}]"], Node(port=29500).places(3)).splitlines()[2]
    assert line.endswith("-m stlm_kd distill 'teachers=[{name: a}]'")
    assert line.startswith("RANK=2 LOCAL_RANK=2 LOCAL_WORLD_SIZE=3 WORLD_SIZE=3 MASTER_ADDR=127.0.0.1 ")


def test_the_command_itself_is_what_is_run(capfd: pytest.CaptureFixture[str]) -> None:
    from stlm_kd import __version__

    assert launch(["--version"], 2) == 0
    found = capfd.readouterr()
    assert found.out == f"{__version__}\n" and len(found.err.splitlines()) == 3


@pytest.mark.parametrize("processes", [1, 2, 3, 1000])
def test_the_processes_share_the_cores(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads = int(rank_env(Placement(size=processes, local_size=processes))["OMP_NUM_THREADS"])
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    assert threads >= 1 and (threads == 1 or threads * processes <= cores < (threads + 1) * processes)


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert "OMP_NUM_THREADS" not in rank_env(Placement(size=2, local_size=2))


@pytest.mark.parametrize("code", [0, 1, 3, 5, 75])
def test_the_code_of_a_failure_is_kept(launched: Callable[[str], int], code: int) -> None:
    assert launched(f"raise SystemExit({code})") == code


@pytest.mark.parametrize(
    ("codes", "received", "code"),
    [
        ([0, 0], [], 0),
        ([130, 1], [signal.SIGINT], 130),
        ([1, 5, 1], [], 5),
        ([75, 75], [signal.SIGTERM], 75),
        ([75, -15], [signal.SIGTERM], 75),
    ],
)
def test_a_process_that_only_lost_the_others_does_not_decide(
    codes: list[int], received: list[int], code: int
) -> None:
    if -15 not in codes:
        assert exit_status(codes, received) == (code, "")
    assert exit_status(codes, received)[0] == exit_status(codes[::-1], received)[0] == code


@pytest.mark.parametrize(
    ("codes", "received", "code", "said"),
    [
        ([1, -9], [], 1, "process 1 of 2 was killed by SIGKILL, perhaps because memory ran out"),
        ([-11, None], [], 1, "process 0 of 2 was killed by SIGSEGV; the same"),
        ([75, -9], [signal.SIGTERM], 1, "process 1 of 2 was killed by SIGKILL"),
        ([-15, -15], [], 1, "process 0 of 2 was killed by SIGTERM;"),
        ([-15, -15], [signal.SIGTERM], 75, "stopped by SIGTERM"),
        ([-2, 1], [signal.SIGINT], 130, "stopped by SIGINT"),
        ([0, None], [], 1, "process 1 of 2 did not end"),
    ],
)
def test_a_process_that_was_killed_is_named_unless_all_were_told_to_stop(
    codes: list[int | None], received: list[int], code: int, said: str
) -> None:
    found, message = exit_status(codes, received)
    assert found == code and message.startswith(said) and "\n" not in message


def test_what_a_lost_process_last_told_is_in_the_message() -> None:
    killed = LostProcess(1, 2, ENDED, "pid 7 on a", "student, step 5")
    assert exit_status([1, -9], [], killed) == (
        1,
        "process 1 of 2 was killed by SIGKILL, perhaps because memory ran out (pid 7 on a; last at: student, "
        "step 5); the same command resumes from the last checkpoint",
    )
    stopped = replace(killed, fate="did not answer for 10m")
    assert exit_status([1, -9], [], stopped) == (1, str(stopped))
    assert exit_status([5, 5], [], replace(stopped, exit_code=5)) == (5, ""), "it says itself why"
    assert exit_status([75, -15], [signal.SIGTERM], killed) == exit_status([75, -15], [signal.SIGTERM])


@pytest.mark.parametrize("text", ["", "abc", "0", "-1", "nan", "inf", "1e9"])
def test_a_time_limit_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(TIMEOUT, text)
    if not text:
        assert timeout_s() == 600
        return
    with pytest.raises(UsageError, match=rf"{TIMEOUT}: '{text}' found, expected minutes above 0"):
        timeout_s()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_reaches_all_processes(tmp_path: Path, number: int, code: int) -> None:
    launcher = Launcher(tmp_path, STAYS + SAVES + TELLS + SLEEPS)
    launcher.process.send_signal(number)
    assert launcher.ended() == (code, [])


def test_processes_told_to_stop_before_they_listen_have_stopped_as_well(tmp_path: Path) -> None:
    launcher = Launcher(tmp_path, STAYS + TELLS + SLEEPS)
    launcher.process.terminate()
    assert launcher.ended() == (75, ["stopped by SIGTERM; the same command starts or resumes"])


@linux
def test_once_one_has_ended_the_others_are_ended_after_a_while(
    launched: Callable[[str], int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(launching, "GRACE_S", 0.2)
    deaf = STAYS + "signal.signal(signal.SIGTERM, signal.SIG_IGN); " + TELLS
    waits = "[time.sleep(0.01) for _ in iter(lambda: os.path.exists('1'), True)]; "
    assert launched(deaf + f"os.environ['RANK'] == '1' and {SLEEPS}; {waits}os._exit(5)") == 5
    assert not lives(int((tmp_path / "1").read_text()))
    assert len(capfd.readouterr().err.splitlines()) == 3


@linux
def test_a_first_process_that_is_stopped_after_the_others_left_is_ended(
    launched: Callable[[str], int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(TIMEOUT, "0.02")
    assert (
        launched("import os, signal; os.environ['RANK'] == '0' and os.kill(os.getpid(), signal.SIGSTOP)") == 1
    )
    assert capfd.readouterr().err.splitlines()[-1] == "process 0 of 2 did not end when the others did"


@linux
def test_a_launcher_that_is_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    launcher = Launcher(tmp_path, STAYS + SAVES + TELLS + SLEEPS)
    launcher.process.kill()
    launcher.process.communicate()
    await_(lambda: not any(lives(pid) for pid in launcher.pids))
    assert launcher.pids and not any(lives(pid) for pid in launcher.pids)


def test_a_launcher_within_a_launcher_is_refused(
    launched: Callable[[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"--processes: .*WORLD_SIZE=2.*leave --processes out"):
        launched("")


def test_the_end_of_the_first_process_is_seen_by_the_place_that_it_keeps_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not first_process_ends(0.1), "nobody said where the processes meet"
    code = (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); "
    )
    with subprocess.Popen([*PROGRAM, code + "input()"], stdin=-1, stdout=-1, text=True) as first:
        assert first.stdout is not None and first.stdin is not None
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", first.stdout.readline().strip())
        assert not first_process_ends(0.1), "it lives"
        timer = threading.Timer(0.2, first.kill)
        timer.start()
        assert first_process_ends(20), "it ends"
        timer.join()
    assert first_process_ends(20), "it has ended"

"""Jobs in parallel processes: their results, what they get from the command, and how they end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path

import pytest
import torch

from stlm_kd.errors import CheckpointError, NonFiniteError, Preempted, StlmKdError
from stlm_kd.pipeline.jobs import Job, run_jobs
from stlm_kd.pipeline.workers import PRELOADED, worker_context
from tests.support.job_functions import appear, divide, end, fail, outlast_a_failure, square, state, touch
from tests.support.processes import lives


@pytest.mark.parametrize("workers", [1, 2])
def test_jobs_give_their_results_in_order_and_pass_errors_on(workers: int) -> None:
    with ThreadPoolExecutor(1) as pool:  # not in the main thread, which alone may handle signals
        squares = pool.submit(run_jobs, [Job(square, (n,)) for n in range(4)], workers=workers)
    assert squares.result() == [0, 1, 4, 9]
    with pytest.raises(NonFiniteError, match="labels"):
        run_jobs([Job(square, (1,)), Job(fail, ("labels",))], workers=workers)


def test_workers_have_the_libraries_and_the_command_s_state_of_when_they_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    servers = set()
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        monkeypatch.setenv("STLM_KD_TEST_NAME", name)
        monkeypatch.setattr(sys, "argv", ["stlm-kd", name])
        for found in run_jobs([Job(state, (name,))] * 2, workers=2):
            assert found.folder == str(tmp_path / name)
            assert found.arguments == ["stlm-kd", name]
            assert found.environment == dict(os.environ)
            assert found.is_preloaded and found.threads == max(1, torch.get_num_threads() // 2)
            servers.add(found.parent)
        told = capfd.readouterr()
        assert (told.out, told.err) == (f"out {name}\n" * 2, f"err {name}\n" * 2)
        monkeypatch.delenv("STLM_KD_TEST_NAME")
    assert len(servers) == 1 and os.getpid() not in servers


def test_where_there_is_cuda_each_worker_is_a_new_interpreter(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert worker_context().get_start_method() == "forkserver"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert worker_context().get_start_method() == "spawn"
    for found in run_jobs([Job(state, ("new",))] * 2, workers=2):
        assert found.parent == os.getpid() and not found.is_preloaded
        assert found.environment == dict(os.environ)
    assert capfd.readouterr().err == "err new\n" * 2


@pytest.mark.long
def test_after_any_error_no_job_begins_and_those_that_run_end(tmp_path: Path) -> None:
    jobs = [Job(outlast_a_failure, (tmp_path,)), Job(divide, (tmp_path,))]
    jobs += [Job(touch, (tmp_path / f"waiting-{n}",)) for n in range(4)]
    with pytest.raises(ZeroDivisionError, match="by nothing"):
        run_jobs(jobs, workers=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ended", "failing", "running"]


def test_a_killed_worker_is_one_message_that_says_what_to_do() -> None:
    with pytest.raises(StlmKdError, match=r"killed, probably because memory ran out; use fewer --jobs"):
        run_jobs([Job(end, ()), Job(end, ())], workers=2)


@dataclass(frozen=True)
class Command:
    """A command whose two first jobs run, and wait for SIGTERM; its jobs write into a folder."""

    process: subprocess.Popen[str]
    folder: Path

    def others(self) -> list[int]:
        """The workers and their server."""
        return [int(pid) for name in "ab" for pid in (self.folder / name).read_text().split()]

    def end(self) -> tuple[int, str]:
        """Its exit code and its stderr."""
        _, told = self.process.communicate(timeout=60)
        return self.process.returncode, told


COMMAND = """
import os, sys, time
from pathlib import Path
from stlm_kd.errors import Preempted, StlmKdError
from stlm_kd.pipeline import workers
from stlm_kd.pipeline.jobs import Job, run_jobs
from stlm_kd.training.signals import StopSignals

HERE = Path(sys.argv[1])
workers.PRELOADED = sys.argv[2:]

def wait(name):
    with StopSignals() as stop:
        (HERE / "new").write_text(f"{os.getpid()} {os.getppid()}")
        (HERE / "new").rename(HERE / name)
        while not any(stop.flags):
            time.sleep(0.05)
        time.sleep(1)
        (HERE / f"{name} saved").touch()
        raise Preempted("saved")

if __name__ == "__main__":
    try:
        run_jobs([Job(wait, ("a",)), Job(wait, ("b",)), Job(wait, ("c",))], workers=2)
    except StlmKdError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
"""


@contextmanager
def command(folder: Path, *preloaded: str) -> Iterator[Command]:
    """A command in a session of its own, once both jobs run; nothing of it is left at the end."""
    (folder / "program.py").write_text(COMMAND)
    process = subprocess.Popen(
        [sys.executable, str(folder / "program.py"), str(folder), *preloaded],
        env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while not (folder / "a").exists() or not (folder / "b").exists():
            assert process.poll() is None
            time.sleep(0.05)
        yield Command(process, folder)
    finally:
        process.kill()
        process.communicate()


def threads_of(pid: int) -> list[str]:
    """The names of a process's threads."""
    return [path.read_text().strip() for path in Path(f"/proc/{pid}/task").glob("*/comm")]


@pytest.mark.parametrize(
    ("number", "to_all", "code"),
    [
        (signal.SIGINT, False, 130),
        (signal.SIGTERM, True, 75),  # as a scheduler sends it, also to the server
        (signal.SIGKILL, False, -signal.SIGKILL),
    ],
)
def test_jobs_save_and_all_processes_end_when_the_command_is_stopped_or_killed(
    number: int, to_all: bool, code: int, tmp_path: Path
) -> None:
    with command(tmp_path, "stlm_kd.pipeline.jobs") as running:
        others = running.others()
        assert len(set(others)) == 3 and running.process.pid not in others
        (os.killpg if to_all else os.kill)(running.process.pid, number)
        assert (ended := running.end())[0] == code
        assert number == signal.SIGKILL or "running trainings are saved" in ended[1]
        until = time.monotonic() + 30
        while any(map(lives, others)) and time.monotonic() < until:
            time.sleep(0.05)
        assert not [pid for pid in others if lives(pid)]
    assert {path.name for path in tmp_path.iterdir()} == {"program.py", "a", "b", "a saved", "b saved"}


def test_no_thread_of_the_libraries_runs_when_the_server_forks(tmp_path: Path) -> None:
    """Handlers of ``pthread_atfork`` end OpenBLAS's, and stop that of the allocator of pyarrow meanwhile."""
    with command(tmp_path, *PRELOADED) as running:
        threads = threads_of(running.others()[1])
    assert [name for name in threads if name != "jemalloc_bg_thd"] == ["python"]


def fail_when_told_to_stop(folder: Path) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # one that comes early is not lost
    touch(folder / "running")
    signal.sigwait({signal.SIGTERM})
    raise CheckpointError("the checkpoint could not be written")


def stop_when_told(folder: Path) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    appear(folder / "running")
    signal.raise_signal(signal.SIGINT)  # as a terminal sends it, to all processes
    command = parent_process()
    assert command is not None and command.pid is not None
    os.kill(command.pid, signal.SIGINT)
    signal.sigwait({signal.SIGTERM})
    raise Preempted("saved")


@pytest.mark.long
def test_what_a_signal_ends_otherwise_than_saved_is_told_as_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="could not be written"):
        run_jobs([Job(stop_when_told, (tmp_path,)), Job(fail_when_told_to_stop, (tmp_path,))], workers=2)

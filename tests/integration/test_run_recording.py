"""What a run's record says of its end, and what the other processes make of it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from stlm_kd.errors import DataError, Interrupted, Preempted, RemoteProcessError
from stlm_kd.pipeline.recording import recorded, recorded_once
from stlm_kd.watchdog import LostProcess
from tests.unit.artifacts.test_cli_run_folder import recipe


@pytest.fixture(autouse=True)
def heard_interrupts() -> Iterator[None]:
    """SIGINT as in a terminal: shells make the commands that they run in the background ignore it."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def fail() -> None:
    raise DataError("no text")


@pytest.mark.parametrize(
    ("act", "error", "status", "message"),
    [
        (lambda: None, None, "done", ""),
        (fail, DataError, "failed", "DataError: no text"),
        (lambda: signal.raise_signal(signal.SIGTERM), Preempted, "interrupted", "stopped by SIGTERM between"),
        (lambda: signal.raise_signal(signal.SIGINT), Interrupted, "interrupted", "stopped by Ctrl-C between"),
    ],
)
def test_the_record_says_how_a_run_ended(
    tmp_path: Path, act: Callable[[], None], error: type[Exception] | None, status: str, message: str
) -> None:
    def run() -> None:
        with recorded(recipe(), name="x", output_dir=tmp_path, command=""):
            act()

    if error is None:
        run()
    else:
        with pytest.raises(error):
            run()
    (found,) = tmp_path.glob("*/run.json")
    record = json.loads(found.read_text())
    assert record["status"] == status and record["message"].startswith(message)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_not_lost_in_code_that_tries_something_else_after_any_exception(
    tmp_path: Path, number: signal.Signals
) -> None:
    with (
        pytest.raises((Preempted, Interrupted)),
        recorded(recipe(), name="x", output_dir=tmp_path, command=""),
    ):
        try:
            signal.raise_signal(number)
        except Exception:
            pytest.fail("caught on the way")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_after_a_training_stopped_leaves_what_it_says(
    tmp_path: Path, number: signal.Signals
) -> None:
    with (
        pytest.raises(Interrupted, match=r"^after step 3; saved$"),
        recorded(recipe(), name="x", output_dir=tmp_path, command=""),
    ):
        try:
            raise Interrupted("after step 3; saved")
        finally:
            signal.raise_signal(number)
    (found,) = tmp_path.glob("*/run.json")
    record = json.loads(found.read_text())
    assert (record["status"], record["message"]) == ("interrupted", "after step 3; saved")


def test_handlers_are_put_back(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with recorded_once(recipe(), name="x", output_dir=tmp_path, command=""):
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


LOST = "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234"


@pytest.mark.parametrize(("told", "code"), [(None, 1), (0, 1), (5, 5)])
def test_a_lost_connection_among_several_processes_is_another_ones_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: int | None, code: int
) -> None:
    lost = None if told is None else LostProcess(1, 2, "ended", "pid 7 on a", "student", told)
    watchdog = SimpleNamespace(lost=lambda: lost, before_the_end=[])
    monkeypatch.setattr("stlm_kd.distributed._watchdog", watchdog)

    def lose() -> None:
        with recorded_once(recipe(), name="x", output_dir=tmp_path, command=""):
            monkeypatch.setenv("WORLD_SIZE", "2")
            raise RuntimeError(LOST)

    with pytest.raises(RemoteProcessError) as caught:
        lose()
    assert caught.value.exit_code == code


def test_a_lost_connection_of_one_process_and_other_errors_of_several_are_no_such_thing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        pytest.raises(RuntimeError, match="closed by peer"),
        recorded_once(recipe(), name="x", output_dir=tmp_path, command=""),
    ):
        raise RuntimeError(LOST)
    with (
        pytest.raises(RuntimeError, match="shapes"),
        recorded_once(recipe(), name="x", output_dir=tmp_path, command=""),
    ):
        monkeypatch.setenv("WORLD_SIZE", "2")
        raise RuntimeError("shapes differ")

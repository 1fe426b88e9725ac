"""What a process does: said when nothing else is, told to other processes, and free of cost for a step."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path
from types import FrameType

import pytest

from stlm_kd import activity
from stlm_kd.activity import doing, progress
from stlm_kd.tracking.console import PlainProgress
from stlm_kd.training import TrainingConfig
from tests.support.engine_pico import PicoBatches, PicoStep, pico_fit
from tests.unit.training.test_tracking import STEP


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "WORD_EVERY_S", 0.1)


def test_long_work_is_named_on_stderr_and_short_work_is_not(capfd: pytest.CaptureFixture[str]) -> None:
    with doing("hashing"):
        pass
    with doing("student", unit="step", total=2000) as training, doing("validating"):
        training.advance(1500)
        time.sleep(0.35)
    time.sleep(0.15)
    lines = capfd.readouterr().err.splitlines()
    assert {line.partition(" (")[0] for line in lines} == {"still student, step 1,500 of 2,000: validating"}


def test_a_line_of_progress_is_word_enough(capfd: pytest.CaptureFixture[str]) -> None:
    with doing("student"):
        before = time.monotonic()
        PlainProgress(sys.stderr).step(STEP)
        assert activity._state.spoken >= before
    assert [line[:4] for line in capfd.readouterr().err.splitlines()] == ["step"]


def test_only_the_main_process_speaks(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with doing("student"):
        time.sleep(0.25)
    assert capfd.readouterr().err == ""


def test_the_innermost_activity_says_how_life_shows_and_its_end_is_a_sign_of_it() -> None:
    with doing("student", pace="steps") as training:
        before, pace = progress()
        training.advance()
        assert (pace, progress()) == ("steps", (before + 1, "steps"))
        with doing("waiting", pace="waits"):
            assert progress()[1] == "waits"
        assert progress() == (before + 2, "steps")
    assert progress()[1] == "free" and activity.described() == "between two tasks"


def test_a_step_costs_one_count_for_itself_and_each_micro_batch(tmp_path: Path) -> None:
    def calls(steps: int) -> Counter[str]:
        found: Counter[str] = Counter()

        def count(frame: FrameType, event: str, _: object) -> None:
            if event == "call" and frame.f_code.co_filename == activity.__file__:
                found[frame.f_code.co_name] += 1

        settings = TrainingConfig(steps, 1e-2, log_every=100)
        sys.setprofile(count)
        try:
            pico_fit(PicoStep(), tmp_path / str(steps), settings, batches=PicoBatches(micro_batch=2))
        finally:
            sys.setprofile(None)
        return found

    more = calls(9)
    more.subtract(calls(4))
    micro_batches = sum(len(PicoBatches(micro_batch=2).step(index)) for index in range(4, 9))
    assert dict(+more) == {"advance": 5, "advanced": 5 + micro_batches} and micro_batches > 10


def test_the_time_left_is_told_from_what_was_done_since_the_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = activity.Activity("tokenising", "MB", total=900, began=0.0)
    monkeypatch.setattr(activity.time, "monotonic", lambda: 60.0)
    assert own.took() == "1m"
    own.begin_at(300)  # a command before this one did these
    assert own.took() == "1m"
    own.advance(150)
    assert own.took() == "1m, about 3m left"
    own.advance(1000)
    assert own.took() == "1m, about 0s left"

import io
import json
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from stlm_kd.errors import CheckpointError
from stlm_kd.tracking import StepMetrics, ValidationMetrics, open_tracker, read_metrics
from stlm_kd.tracking.console import LiveProgress, PlainProgress, open_progress
from stlm_kd.tracking.jsonl import JsonlTracker

STEP = StepMetrics(120, 2000, 3.4123, {"labels": 4.11, "kl": 2.981}, 1e-3, 0.5, 9000, 41_200.0, 60.0, 720.0)
VALIDATION = ValidationMetrics(120, 2000, {"labels": 4.2}, True)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_plain_lines() -> None:
    stream = io.StringIO()
    tracker = open_progress(stream)
    tracker.stage("student seed 1")
    tracker.rewind(0)
    tracker.step(STEP)
    tracker.validation(VALIDATION)
    tracker.note("a word")
    tracker.close()
    assert isinstance(tracker, PlainProgress)
    assert stream.getvalue().splitlines() == [
        "student seed 1",
        "step 120/2000  loss 3.412 nats/tok  labels 4.110  kl 2.981  41.2k tok/s  eta 12m",
        "step 120/2000  validation  labels 4.200 nats/tok  best so far",
        "a word",
    ]


def test_a_terminal_gets_a_live_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(open_progress(Terminal()), LiveProgress)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(open_progress(Terminal()), PlainProgress)


def test_the_live_table_shows_stage_step_losses_speed_and_time_left() -> None:
    stream = Terminal()
    tracker = LiveProgress(Console(file=stream, force_terminal=True, width=120))
    tracker.stage("student seed 1")
    tracker.rewind(100)
    tracker.step(STEP)
    tracker.validation(VALIDATION)
    tracker.note("a [word]")
    tracker.close()
    shown = stream.getvalue()
    for text in ("student seed 1", "120/2000", "kl 2.981", "41.2k tok/s", "12m", "best so far", "a [word]"):
        assert text in shown
    assert "resumed after step 100" in shown


def test_other_processes_say_and_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    tracker = open_tracker(tmp_path, backends=["tensorboard", "wandb"])
    tracker.stage("s")
    tracker.step(STEP)
    tracker.close()
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_progress_goes_to_stderr_and_metrics_to_their_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = open_tracker(tmp_path)
    tracker.stage("s")
    tracker.step(STEP)
    told = capfd.readouterr()
    assert told.out == ""
    assert told.err.startswith("s\nstep 120/2000")
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["kind"] == "step"
    assert line["stage"] == "s"
    assert line["losses"] == {"labels": 4.11, "kl": 2.981}
    assert line["tokens_per_second"] == 41_200.0


def test_rewinding_cuts_only_what_this_stage_said_later(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path)
    for stage in ("a", "b"):
        tracker.stage(stage)
        for step in (10, 20, 30):
            tracker.step(replace(STEP, step=step))
            tracker.validation(replace(VALIDATION, step=step))
    with path.open("a") as file:
        file.write('{"kind": "step", "stage": "b", "st')
    tracker.stage("b")
    tracker.rewind(20)
    kept = [(line["stage"], line["kind"], line["step"]) for line in read_metrics(path)]
    whole = [("a", kind, step) for step in (10, 20, 30) for kind in ("step", "validation")]
    # A resumed training logs the validation after step 20 again if the checkpoint includes it.
    assert kept == [*whole, ("b", "step", 10), ("b", "validation", 10), ("b", "step", 20)]
    assert path.read_text().endswith("\n")


def test_a_line_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    tracker = JsonlTracker(Path("/dev/full"))
    with pytest.raises(CheckpointError, match=r"cannot be written .*free some space"):
        tracker.step(STEP)


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    tracker = open_tracker(tmp_path, backends=["tensorboard"], stream=io.StringIO())
    tracker.stage("student seed/1")
    tracker.step(replace(STEP, measures={"diito.agreement/layer3": 0.25}))
    tracker.validation(VALIDATION)
    tracker.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard" / "student-seed-1"))
    events.Reload()
    assert events.Scalars("train/kl")[0].value == pytest.approx(2.981)
    assert events.Scalars("validation/labels")[0].step == 120
    assert events.Scalars("diito.agreement/layer3")[0].value == 0.25
    assert set(events.Tags()["scalars"]) >= {
        "train/loss",
        "optimizer/learning_rate",
        "speed/tokens_per_second",
    }


def test_wandb_gets_one_run_per_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, object]] = []

    class Run:
        def log(self, data: dict[str, float], step: int) -> None:
            told.append(("log", (step, data)))

        def finish(self) -> None:
            told.append(("finish", None))

    def init(**options: str) -> Run:
        told.append(("init", (options["project"], options["name"], options["group"])))
        return Run()

    module = types.ModuleType("wandb")
    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    tracker = open_tracker(tmp_path, backends=["wandb"], run_name="tiny-1a2b", stream=io.StringIO())
    for stage in ("a", "b"):
        tracker.stage(stage)
        tracker.validation(VALIDATION)
    tracker.close()
    logged = ("log", (120, {"validation/labels": 4.2}))
    expected = [[("init", ("stlm-kd", stage, "tiny-1a2b")), logged, ("finish", None)] for stage in "ab"]
    assert told == [*expected[0], *expected[1]]

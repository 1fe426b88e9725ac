"""Commands that are killed or interrupted as real processes, then run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.support.road import distilled, done, started, stlm_kd, student, weights

LONG = ("train.keep=last", "train.steps=240", "train.validate_every=60")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As in the processes that are started: sums in another order would not be bit-identical."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@contextmanager
def running(*words: str, until: Path, pattern: str) -> Iterator[subprocess.Popen[str]]:
    """The command, as soon as a file of this pattern is there."""
    process = started(*words)
    try:
        while not any(until.glob(pattern)):
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        yield process
    finally:
        process.kill()
        process.communicate()


def command(output_dir: Path, *changes: str) -> list[str]:
    return ["distill", "-r", "plain.yaml", *changes, "--output-dir", str(output_dir)]


def only_run(output_dir: Path) -> dict[str, str]:
    (run,) = done("runs", "list", "--output-dir", str(output_dir))
    assert isinstance(run, dict)
    return run


@pytest.mark.long
def test_a_killed_training_goes_on_and_ends_bit_for_bit_like_one_that_was_not(
    place: Path, tmp_path: Path
) -> None:
    files = "*/students/student/seed-1/checkpoints/step-*/checksums.json"
    killed = tmp_path / "killed"
    with running(*command(killed, *LONG), until=killed, pattern=files) as process:
        process.kill()
        assert process.wait(60) == -signal.SIGKILL
    left = [int(path.parent.name.removeprefix("step-")) for path in killed.glob(files)]
    assert left and max(left) < 240
    assert only_run(killed)["status"] == "killed"
    assert ": killed, started" in stlm_kd("runs", "show", only_run(killed)["path"]).stdout
    again = distilled("plain", *LONG, output_dir=killed)
    whole = distilled("plain", *LONG, output_dir=tmp_path / "whole")
    assert weights(again) == weights(whole)
    losses = [
        [
            (line["kind"], line["step"], line["losses"])
            for line in map(json.loads, (student(run) / "metrics.jsonl").read_text().splitlines())
        ]
        for run in (again, whole)
    ]
    assert losses[0] == losses[1]


def test_a_second_command_in_the_same_folder_is_refused_and_the_first_one_goes_on(
    place: Path, tmp_path: Path
) -> None:
    with running(*command(tmp_path, *LONG), until=tmp_path, pattern="*/students/*/*/metrics.jsonl") as first:
        before = only_run(tmp_path)
        second = stlm_kd(*command(tmp_path, *LONG))
        assert first.poll() is None
        assert {**only_run(tmp_path), "bytes": before["bytes"]} == before and before["status"] == "running"
        assert second.exit_code == 1
        (message,) = second.stderr.splitlines()
        assert message.startswith(f"{before['path']}: another process works in this run's folder")
        _, stderr = first.communicate(timeout=60)
    assert first.returncode == 0, stderr
    assert only_run(tmp_path)["status"] == "done"


def test_ctrl_c_saves_says_so_and_the_same_command_goes_on(place: Path, tmp_path: Path) -> None:
    pattern = "*/students/student/seed-1/metrics.jsonl"
    changes = ("train.steps=3000", "train.log_every=1")
    with running(*command(tmp_path, *changes), until=tmp_path, pattern=pattern) as process:
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert "stopped by Ctrl-C after step" in stderr.splitlines()[-1]
    run = only_run(tmp_path)
    assert run["status"] == "interrupted"
    assert list(student(Path(run["path"])).glob("checkpoints/step-*/checksums.json"))


@pytest.mark.parametrize(
    ("jobs", "said"),
    [
        (1, "stopped by Ctrl-C after step"),
        pytest.param(2, "trainings are saved", marks=pytest.mark.long),
    ],
)
def test_ctrl_c_twice_in_a_terminal_saves_what_is_trained(
    place: Path, tmp_path: Path, jobs: int, said: str
) -> None:
    folder = "*/students/student/seed-%s"
    changes = ("seeds=[1,2]", "train.steps=3000", "train.log_every=1", "--jobs", str(jobs), "--no-rehearsal")
    pattern = f"{folder % jobs}/metrics.jsonl"
    with running(*command(tmp_path, *changes), until=tmp_path, pattern=pattern) as process:
        while len([*tmp_path.glob(f"{folder % '*'}/metrics.jsonl")]) < jobs:
            time.sleep(0.005)
        for _ in range(2):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.03)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr and "KeyboardInterrupt" not in stderr
    last = stderr.splitlines()[-1]
    record = json.loads((Path(only_run(tmp_path)["path"]) / "run.json").read_text())
    assert said in last and (record["status"], record["message"]) == ("interrupted", last)
    saved = [*tmp_path.glob(f"{folder % '*'}/checkpoints/step-*/checksums.json")]
    assert len({path.parents[2] for path in saved}) == jobs


def test_an_adaptation_told_to_stop_goes_on_to_the_same_teacher(place: Path, tmp_path: Path) -> None:
    changes = ["g", "eval=[]", "teachers[0].adapt.tokens=40k", "teachers[0].adapt.patience=null"]
    words = ["adapt-teacher", "-r", "adapts.yaml", *changes, "--output-dir"]
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    pattern = "stages/adapted-*.partial/checkpoints/step-*/checksums.json"
    with running(*words, str(stopped), until=stopped, pattern=pattern) as process:
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75, stderr
    assert "stopped by SIGTERM" in stderr.splitlines()[-1]
    assert only_run(stopped)["status"] == "interrupted"
    found = [Path(done(*words, str(folder))["folder"]) for folder in (stopped, whole)]
    files = [(run / "teachers" / "g" / "model.safetensors").read_bytes() for run in found]
    assert files[0] == files[1]
    assert only_run(stopped)["status"] == "done"

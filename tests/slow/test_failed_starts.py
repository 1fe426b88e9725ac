"""Processes that fail before they have met the others, which then wait no longer for them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.processes import Ended, free_port

WAITS = ["-c", "from stlm_kd.distributed import wait_for_all; wait_for_all()"]
WRONG = ["-m", "stlm_kd", "distill", "-r", "no-such.yaml"]
SAID = "no-such.yaml: neither a file nor a built-in recipe"
LATE = ["-c", f"import time; time.sleep(15); {WAITS[1]}"]
LIMIT_S = 90
"""Below the ten minutes for which processes wait for each other."""

ONE_ELSEWHERE = """
import os
if os.environ.get("RANK") == "1" and "WORLD_SIZE" in os.environ:
    os.chdir("elsewhere")
"""
"""A sitecustomize.py, by which process 1 alone does not find the recipe."""


def run_side_by_side(commands: list[list[str]], folder: Path, environs: list[dict[str, str]]) -> list[Ended]:
    """``python COMMAND`` for each, at the same time, within the limit."""
    common = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env={**common, **own},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command, own in zip(commands, environs, strict=True)
    ]
    deadline = time.monotonic() + LIMIT_S
    try:
        said = [process.communicate(timeout=deadline - time.monotonic()) for process in running]
    finally:
        for process in running:
            process.kill()
    return [Ended(process.returncode, *texts) for process, texts in zip(running, said, strict=True)]


def two_ranks(commands: list[list[str]], folder: Path, *, nodes: int) -> list[Ended]:
    """The two commands as processes 0 and 1 on one node or two, as another launcher starts them."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    place["LOCAL_WORLD_SIZE"] = str(2 // nodes)
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank % (2 // nodes))} for rank in range(2)]
    return run_side_by_side(commands, folder, [{**place, **rank} for rank in ranks])


@pytest.mark.parametrize("failing", [1, pytest.param(0, marks=pytest.mark.long)])
def test_a_process_that_fails_before_it_comes_tells_the_other_node(failing: int, tmp_path: Path) -> None:
    commands = [WRONG if rank == failing else WAITS for rank in range(2)]
    ended = two_ranks(commands, tmp_path, nodes=2)
    failed, other = ended[failing], ended[1 - failing]
    assert failed.code == 5 and failed.stderr.startswith(SAID) and "process" not in failed.stderr
    told = f"AbsentProcessError: process {failing} of 2 on {socket.gethostname()} failed before it met the"
    assert f"{told} others: {SAID}" in other.stderr.splitlines()[-1]


@pytest.mark.long
@pytest.mark.parametrize("failing", [(1,), (0,), (0, 1)])
def test_on_one_node_the_reason_is_printed_once_and_all_have_its_exit_code(
    failing: tuple[int, ...], tmp_path: Path
) -> None:
    recipe = ["-m", "stlm_kd", "distill", "-r", "sample-two-teachers", "--output-dir", str(tmp_path)]
    commands = [WRONG if rank in failing else recipe for rank in range(2)]
    ended = two_ranks(commands, tmp_path, nodes=1)
    assert [one.code for one in ended] == [5, 5]
    assert "".join(one.stderr for one in ended).count(SAID) == 1
    assert SAID in ended[failing[0]].stderr


@pytest.mark.long
@pytest.mark.parametrize("failing", [1, 0])
def test_a_launcher_that_fails_before_its_processes_start_ends_the_other_nodes(
    failing: int, tmp_path: Path
) -> None:
    recipes = ["no-such.yaml" if rank == failing else "sample-two-teachers" for rank in range(2)]
    options = ["--nodes", "2", "--master", f"127.0.0.1:{free_port()}", "--output-dir", str(tmp_path)]
    commands = [
        ["-m", "stlm_kd", "distill", "-r", recipe, "--node-rank", str(rank), *options]
        for rank, recipe in enumerate(recipes)
    ]
    ended = run_side_by_side(commands, tmp_path, [{}, {}])
    assert [one.code for one in ended] == [5, 5]
    assert ended[failing].stderr.startswith(SAID)
    last = ended[1 - failing].stderr.splitlines()[-1]
    assert (
        last.startswith(f"process {failing} of 2 on ") and f"failed before it met the others: {SAID}" in last
    )


@pytest.mark.long
def test_a_late_process_0_does_not_count_as_absent(tmp_path: Path) -> None:
    late, failed = two_ranks([LATE, WRONG], tmp_path, nodes=1)
    assert failed.code == 5 and failed.stderr.startswith(SAID)
    assert "RemoteProcessError" in late.stderr.splitlines()[-1] and SAID not in late.stderr


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["own", "torchrun"])
def test_a_launched_process_that_fails_alone_ends_the_others(launcher: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "sitecustomize.py").write_text(ONE_ELSEWHERE)
    (tmp_path / "my.yaml").write_text("extends: sample-two-teachers\n")
    words = ["-m", "stlm_kd", "distill", "-r", "my.yaml"]
    command = [*words, "--processes", "2"]
    if launcher == "torchrun":
        command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
        command += [str(free_port()), *words]
    environ = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    [ended] = run_side_by_side([command], tmp_path, [environ])
    assert ended.code == (5 if launcher == "own" else 1), ended.stderr
    assert ended.stderr.count("my.yaml: neither a file nor a built-in recipe") == 1
    assert "still waiting" not in ended.stderr and not list(tmp_path.glob("runs/*/*/table.txt"))

"""A short training by every launcher, as a real command of two processes, against the same command of one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from stlm_kd.cli.launching.nodes import START as START_NODE
from tests.support.paths import ROOT
from tests.support.processes import free_port
from tests.support.trained import curves, largest_difference, same_curves

pytestmark = pytest.mark.long

PLAIN = ("-m", "stlm_kd")
LOCAL = '#!/bin/sh\nshift\nexec sh -c "$1"\n'
"""In place of ssh: runs the command line here, whatever the host."""
CHANGES = (
    "objectives=[{loss: labels}, {loss: forward_kl}]",
    "teachers=[{name: a, model: same}]",
    "train.effective_batch=6",
    "train.micro_batch=2",
    "train.log_every=1",
)


PORT = "PORT"
"""Stands for a port that is free when the commands begin."""


@dataclass(frozen=True)
class Start:
    """The commands that a user types: one, or one on each node, or one as each task of SLURM.

    Attributes:
        zero: The stage of DeepSpeed; None for DDP.
        before: What stands before ``distill``, after Python.
        each: By command, what follows ``distill``, and variables.
    """

    zero: int | None
    before: Sequence[str] = PLAIN
    each: Sequence[tuple[Sequence[str], Mapping[str, str]]] = (((), {}),)


STEP = {
    "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "no-such-host7",
    "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2",
}  # fmt: skip
NODES = ("--processes", "1", "--nodes", "2", "--master", f"127.0.0.1:{PORT}", "--node-rank")
ACCELERATE = ("-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", PORT)
DEEPSPEED = ("-m", "deepspeed.launcher.runner", "--no_local_rank", "--num_gpus", "2", "--master_port", PORT)
STARTS = {
    "torchrun": Start(2, ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *PLAIN)),
    "accelerate": Start(None, (*ACCELERATE, "--multi_gpu", *PLAIN)),
    "accelerate with deepspeed": Start(3, (*ACCELERATE, "--use_deepspeed", *PLAIN)),
    "deepspeed": Start(3, (*DEEPSPEED, "--module", "stlm_kd")),
    "processes": Start(3, each=[(["--processes", "2"], {})]),
    "nodes": Start(3, each=[([*NODES, rank], {}) for rank in "01"]),
    "hostfile": Start(3, each=[(["--hostfile", "hosts"], {})]),
    "slurm": Start(3, each=[((), {**STEP, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}) for rank in "01"]),
}


def trained(road: Path, name: str, start: Start) -> Path:
    """The folder of the runs of a started training, once all of its commands have ended well."""
    folder, port = road / f"launched {name}", str(free_port())
    changes = [*CHANGES] if start.zero is None else [*CHANGES, f"engine.deepspeed.zero={start.zero}"]
    words = ["-r", "plain.yaml", *changes, "--output-dir", str(folder)]
    shared = {
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": str(ROOT),
        START_NODE: str(road / "ssh"),
    }
    begun = [
        subprocess.Popen(
            [sys.executable]
            + [word.replace(PORT, port) for word in (*start.before, "distill", *options, *words)],
            cwd=road,
            env={**os.environ, **shared, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for options, variables in start.each
    ]
    try:
        said = [process.communicate(timeout=240) for process in begun]
    finally:
        for process in begun:
            process.kill()
    assert [process.returncode for process in begun] == [0] * len(begun), said
    assert sum(out.count("Table and results") for out, _ in said) == 1, "of all processes, one tells"
    return folder


@pytest.fixture(scope="module")
def alone(road: Path) -> Path:
    """What one process trains, by plain PyTorch."""
    (road / "ssh").write_text(LOCAL)
    (road / "ssh").chmod(0o755)
    (road / "hosts").write_text("127.0.0.1 slots=1\n127.0.0.2 slots=1\n")
    return trained(road, "alone", Start(None))


@pytest.mark.parametrize("name", STARTS)
def test_a_training_by_any_launcher_ends_as_one_process_does(alone: Path, road: Path, name: str) -> None:
    folder = trained(road, name, STARTS[name])
    assert same_curves(folder, alone)
    assert largest_difference(folder, alone) < 1e-2


def test_another_training_is_told_apart(alone: Path, road: Path) -> None:
    other = trained(road, "other", Start(None, each=[(["train.learning_rate=4e-3"], {})]))
    assert curves(other).keys() == curves(alone).keys() and not same_curves(other, alone)

"""Ranks of all launchers, from what they are documented to set, and what contradicts itself."""

from __future__ import annotations

import pytest

from stlm_kd.errors import UsageError
from stlm_kd.placement import Placement, expand_hosts, placement

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "n0",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "x",
}
SRUN = {
    "SLURM_JOB_ID": "100",
    "SLURM_STEP_ID": "3",
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "7",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_JOB_NODELIST": "n[00-09]",
    "SLURM_STEP_NODELIST": "n[01-02]",
    "SLURM_STEP_TASKS_PER_NODE": "4,3",
}
ONE_NODE = {**SRUN, "SLURM_STEP_NODELIST": "n07"}
SCRIPT = {name: value for name, value in SRUN.items() if not name.startswith("SLURM_STEP")}
"""Of ``sbatch``, which also sets the numbers of its only process."""


def without(known: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in known.items() if name not in names}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        pytest.param({}, Placement(), id="alone"),
        pytest.param({"RANK": "x", "MASTER_PORT": "tcp://a"}, Placement(), id="of another program"),
        pytest.param(TORCHRUN, Placement(5, 8, 1, 4, 2, "n0", 29500), id="torchrun"),
        pytest.param(
            {**without(TORCHRUN, "LOCAL_WORLD_SIZE"), "LOCAL_SIZE": "4", "CROSS_SIZE": "2"},
            Placement(5, 8, 1, 4, 2, "n0", 29500),
            id="deepspeed",
        ),
        pytest.param(SRUN, Placement(5, 7, 1, 3, 2, "n01", 16603), id="srun"),
        pytest.param(
            without(SRUN, "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE"),
            Placement(5, 7, 1, 1, 10, "n00", 16603),
            id="srun of old",
        ),
        pytest.param(ONE_NODE, Placement(5, 7, 1, 3, 1, "127.0.0.1", 16603), id="one node"),
        pytest.param(
            {**SRUN, "SLURM_GPUS_PER_TASK": "a100:1"}, Placement(5, 7, 0, 3, 2, "n01", 16603), id="own GPU"
        ),
        pytest.param(
            {**SRUN, "MASTER_ADDR": "h", "MASTER_PORT": "9"}, Placement(5, 7, 1, 3, 2, "h", 9), id="own place"
        ),
        pytest.param({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}, Placement(), id="step of one task"),
        pytest.param(SCRIPT, Placement(), id="script"),
        pytest.param({**SRUN, "SLURM_STEP_ID": str(0xFFFFFFFB)}, Placement(), id="script that is named"),
        pytest.param({**SRUN, "WORLD_SIZE": "1"}, Placement(), id="task that works alone"),
        pytest.param({**SRUN, **TORCHRUN}, Placement(5, 8, 1, 4, 2, "n0", 29500), id="torchrun in a task"),
        pytest.param(
            {**SRUN, "RANK": "5", "WORLD_SIZE": "7", "LOCAL_RANK": "1"}, Placement(5, 7, 1, 7), id="agreeing"
        ),
    ],
)
def test_the_place_is_that_of_the_innermost_launcher(environ: dict[str, str], expected: Placement) -> None:
    assert placement(environ) == expected


def test_what_is_set_for_the_libraries_says_the_same() -> None:
    assert placement(placement(SRUN).variables | SRUN).variables == placement(SRUN).variables


@pytest.mark.parametrize(
    ("environ", "part"),
    [
        ({**TORCHRUN, "RANK": "8"}, "RANK: 8 found; expected less than WORLD_SIZE, which is 8"),
        ({**SRUN, "SLURM_PROCID": "7"}, "SLURM_PROCID: 7 found; expected less than SLURM_STEP_NUM_TASKS"),
        ({**SRUN, "SLURM_STEP_NODELIST": "n[1-"}, r"SLURM_STEP_NODELIST: 'n\[1-' found; expected hosts"),
        ({**SRUN, "SLURM_STEP_NODELIST": "n[1-999999999]"}, "more than 100,000 hosts"),
        ({**SRUN, "RANK": "0", "WORLD_SIZE": "7"}, "process 0 of 7 found, but srun started it as 5 of 7"),
        ({**SRUN, "SLURM_JOB_ID": "x"}, "SLURM_JOB_ID: 'x' found"),
    ],
    ids=["rank", "task", "list", "many", "disagreement", "number"],
)
def test_contradictions_are_refused(environ: dict[str, str], part: str) -> None:
    with pytest.raises(UsageError, match=part):
        placement(environ)


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("a", ["a"]),
        ("a[1-3,7],b", ["a1", "a2", "a3", "a7", "b"]),
        ("n[08-11]", ["n08", "n09", "n10", "n11"]),
        ("r[1-2]n[3,5]", ["r1n3", "r1n5", "r2n3", "r2n5"]),
        ("login-1.x.org,c[001]-ib", ["login-1.x.org", "c001-ib"]),
    ],
)
def test_lists_of_hosts_are_those_that_scontrol_shows(text: str, hosts: list[str]) -> None:
    assert expand_hosts(text) == hosts


@pytest.mark.parametrize("text", ["", ",", "a,,b", "a[", "a[]", "a[1-]", "a[x]", "a b", "a[1-2"])
def test_what_is_no_list_of_hosts_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected hosts"):
        expand_hosts(text)

"""Teachers that two processes divide between them, with all that may run beside: as whole ones in one.

Steps have five rows, so that a micro-batch has a row without its pair, and a process needs more passes.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.slow.test_engine_objectives import EXACT, PARTITIONED, ROUNDED, apart, saved
from tests.support.engine_fleet import Run, launch, train
from tests.support.interchange_steps import KINDS as READS
from tests.support.processes import run_together

pytestmark = pytest.mark.long  # test_engine_objectives.py has a run of one

SOURCES = ("batch", "pool", "mixup-token")
INTERCHANGED = [f"interchange-{read}-{source}" for read in READS for source in SOURCES]
"""Of packed text, masked text and classifiers; positions that resume, a pool of rows, and noise."""
FP64 = {f"{name}-shard": f"{name}-replicate" for name in INTERCHANGED}
FP64["objectives-untied-sharded"] = "objectives-untied"
FP32 = {f"{name}-shard-fp32": f"{name}-replicate-fp32" for name in INTERCHANGED}
FP32["objectives-fp32-sharded"] = "objectives-fp32"
UNMOVED = "attention.self.key.bias"
"""Attention does not depend on it, so that its gradient is rounding alone."""
ONE = [*FP64.values(), *FP32.values()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of this process, in whole batches, and of two."""
    place = tmp_path_factory.mktemp("sharded")
    for name in ONE:
        told = train(place / "one", Run(name, step=name, micro_batch=6))
        assert told["error"] is None, (name, told)
    of_two = [Run(name, step=name) for name in FP64]
    of_two += [Run(name, zero=3, deepspeed=PARTITIONED, step=name) for name in FP32]
    for rank in launch(place, 2, of_two):
        assert [rank[run.name]["error"] for run in of_two] == [None] * len(of_two)
    return place


@pytest.mark.parametrize("name", FP64)
def test_divided_teachers_train_as_whole_ones_in_one_process(folder: Path, name: str) -> None:
    assert apart(folder / name, folder / "one" / FP64[name], without=UNMOVED) < EXACT


@pytest.mark.parametrize("name", FP32)
def test_they_do_so_beside_a_divided_student(folder: Path, name: str) -> None:
    assert apart(folder / name, folder / "one" / FP32[name], without=UNMOVED) < ROUNDED


@pytest.mark.parametrize("name", [*FP64, *FP32])
def test_what_is_left_out_of_the_comparison_is_rounding_around_zero(folder: Path, name: str) -> None:
    state = saved(folder / name, "optimizer").items()
    gradients = {key: mean for key, mean in state if UNMOVED in key and key.endswith("/exp_avg")}
    assert len(gradients) == (2 if "masked" in name or "examples" in name else 0)
    assert all(float(mean.abs().max()) < 1e-8 for mean in gradients.values())


@pytest.mark.parametrize(
    "run",
    [
        Run("teacher", step="interchange-unequal-shard"),
        Run("student", zero=3, deepspeed=PARTITIONED, step="interchange-unequal-replicate"),
    ],
    ids=lambda run: run.name,
)
def test_processes_that_make_unequally_many_passes_fail_and_do_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """As those of this file would without ``equal_passes``: their gatherings do not match."""
    monkeypatch.setenv("STLM_KD_PROCESS_TIMEOUT", "0.1")
    arguments = (str(tmp_path), json.dumps([asdict(run)]))
    ended = run_together(2, "tests.support.engine_fleet", *arguments)
    assert 0 not in [process.code for process in ended]
    assert any("process 0 of 2" in process.stderr or "process 1 of 2" in process.stderr for process in ended)
    assert not [*tmp_path.glob("told-*")] and not [*tmp_path.glob("*/checkpoints/step-*")]

"""Trainings of processes that stop and go on: bit for bit in the same form, but for rounding in another."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from tests.slow.test_engine_objectives import PARTITIONED, ROUNDED, apart, saved
from tests.slow.test_engine_resume import untimed
from tests.slow.test_sharded_teachers import UNMOVED
from tests.support.engine_fleet import Run, Told, launch, train
from tests.support.interchange_steps import KINDS as READS
from tests.support.interchange_steps import stream

pytestmark = pytest.mark.long

SIGTERM = int(signal.SIGTERM)
FORMS: dict[str, tuple[int | None, Mapping[str, object]]] = {
    "ddp": (None, {}),
    "zero-0": (0, {}),
    "zero-1": (1, {}),
    "zero-3": (3, {}),
    "zero-3-divided": (3, {"settings": PARTITIONED["settings"]}),
    "optimizer-1": (1, {"offload": "optimizer"}),
    "optimizer-2": (2, {"offload": "optimizer"}),
    "optimizer-3": (3, {"offload": "optimizer"}),
    "parameters-3": (3, {"offload": "parameters"}),
    "parameters-3-divided": (3, PARTITIONED),
}
STEPS = ("pico", "interchange-packed-batch-shard-fp32")


def runs_of(form: str, step: str) -> list[Run]:
    zero, deepspeed = FORMS[form]

    def run(name: str, begins_as: str | None = None, **signals: list[int]) -> Run:
        of = f"{form}-{step}-"
        begins = None if begins_as is None else of + begins_as
        return Run(of + name, zero=zero, deepspeed=deepspeed, step=step, begins_as=begins, signals=signals)

    return [run("whole"), run("stopped", **{"2": [SIGTERM, 1]}), run("resumed", "stopped")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exactly")


@pytest.fixture(scope="module")
def two(folder: Path) -> Told:
    return launch(folder, 2, [run for form in FORMS for step in STEPS for run in runs_of(form, step)])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("step", STEPS)
def test_in_the_same_form_it_ends_bit_for_bit_as_without_a_stop(
    two: Told, folder: Path, form: str, step: str
) -> None:
    whole, stopped, resumed = (run.name for run in runs_of(form, step))
    for rank in two:
        name, code, text = rank[stopped]["error"]
        assert (name, code) == ("Preempted", 75) and "after step 3" in text
        assert rank[resumed]["error"] is None and rank[resumed]["digest"] == rank[whole]["digest"]
    for name in ("model", "optimizer"):
        found, expected = saved(folder / resumed, name), saved(folder / whole, name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert untimed(folder / resumed) == untimed(folder / whole)


@pytest.mark.parametrize("read", READS)
def test_interventions_beside_a_divided_teacher_go_on_in_two_one_and_four_processes(
    tmp_path: Path, read: str
) -> None:
    """By ZeRO 3, 0 and 2, each stopped within the first epoch."""
    step = f"interchange-{read}-batch-shard-fp32"
    first = Run("first", zero=3, deepspeed=PARTITIONED, step=step, signals={"1": [SIGTERM, 1]})
    second = Run("second", zero=0, step=step, begins_as="first", signals={"3": [SIGTERM, 0]})
    third = Run("third", zero=2, step=step, begins_as="second")
    for processes, run, after in ((2, first, 2), (1, second, 4), (4, third, None)):
        for rank in launch(tmp_path, processes, [run]):
            error = rank[run.name]["error"]
            assert error is None if after is None else f"after step {after}" in error[2]
    plain = step.replace("shard", "replicate")
    assert train(tmp_path, Run("plain", step=plain, micro_batch=6))["error"] is None
    assert stream(read, effective=5, micro=2).steps_per_epoch > 6  # type: ignore[arg-type]  # a literal
    assert apart(tmp_path / "third", tmp_path / "plain", without=UNMOVED) < ROUNDED

"""What trainings compute: by hand, against what a counter sees of real passes, and what it pays for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stlm_kd.data.dealing import share_run_again
from stlm_kd.distillation.step import DistillationStep
from stlm_kd.distillation.terms import Term
from stlm_kd.interventions import layer_at
from stlm_kd.interventions.spec import Intervention
from stlm_kd.models.outputs import OutputSpec
from stlm_kd.pipeline.builders.flops import StepShape, affordable_steps, pass_cost, training_flops
from stlm_kd.schedules import Steps
from stlm_kd.teachers.live import LiveTeacher
from stlm_kd.teachers.precomputed import PrecomputedTeacher
from stlm_kd.teachers.protocol import Teacher
from tests.support.interchange_case import supplies
from tests.support.interchange_steps import CONTEXT, stream
from tests.support.interchange_steps import step_of as step_with_interventions
from tests.support.pico import ALL_FAMILIES, MASKED, packed_batch, pico_model
from tests.support.road import distilled, student

LENGTH, VOCABULARY = 16, 61
READING = StepShape(rows=3, length=LENGTH, counted=1.0)
LABELS, KL = Term("labels", "labels"), Term("kl", "forward_kl", teacher="t", on="attended")


def step_of(*terms: Term, teacher: Teacher | None = None, family: str = "llama") -> DistillationStep:
    """A student of two layers and, where some term asks it, a teacher of four."""
    own = pico_model(family, attention="eager")
    other = teacher or LiveTeacher(pico_model(family, layers=4, width=24, attention="eager"), VOCABULARY)
    teachers = {"t": other} if any(term.teacher for term in terms) else {}
    return DistillationStep(own, terms, teachers=teachers, supplies=supplies(), vocabulary_loss="dense")


def test_a_pass_costs_what_is_counted_by_hand() -> None:
    width, inner, key_width = 16, 32, 8  # two heads of 8, one key and value head; tied embeddings
    projections = 2 * width * width + 2 * width * key_width + 3 * width * inner
    attention = 2 * LENGTH * width  # of each position: the products with all keys, and with all values
    found = pass_cost(pico_model("llama"), LENGTH)
    assert found.body == 2 * LENGTH * 2 * (projections + attention)
    assert found.head == 2 * LENGTH * width * VOCABULARY


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_pass_and_its_gradient_cost_what_a_counter_sees_of_real_ones(family: str) -> None:
    model = pico_model(family, attention="eager")
    found = pass_cost(model, LENGTH)
    with FlopCounterMode(display=False) as seen:
        model(input_ids=torch.zeros(1, LENGTH, dtype=torch.int64)).logits.sum().backward()
    assert seen.get_total_flops() == 3 * (found.body + found.head)
    model.config.pad_token_id = 3
    assert pass_cost(model, LENGTH) == found


@pytest.mark.parametrize("family", ["llama", *MASKED])
def test_a_step_with_a_teacher_costs_about_what_a_counter_sees_of_it(family: str) -> None:
    step = step_of(LABELS, KL, family=family)
    batch = packed_batch([[LENGTH]] * 3, length=LENGTH)
    with FlopCounterMode(display=False) as seen:
        step(batch, {"labels": 1.0, "kl": 1.0}).loss.backward()
    assert training_flops(step, READING, steps=1) == pytest.approx(seen.get_total_flops(), rel=0.03)


@pytest.mark.parametrize("source", ["other-example", "in-context-random", "input-tokens", "mixup"])
def test_an_intervention_costs_the_blocks_after_it_and_its_source_those_before(source: str) -> None:
    intervention = Intervention("diito", {"t": {0: (0, 1), 1: (2, 3)}}, "bottom-up", source=source)
    after = Term("diito", "forward_kl", teacher="t", on="attended", intervention=intervention)
    step = step_of(LABELS, after, family="bert")
    counted = 0
    for index in range(2):  # one step for each layer, as the schedule has it
        step.begin(index, 2)
        with FlopCounterMode(display=False) as seen:
            step(packed_batch([[8]] * 3, length=8), {"labels": 1.0, "diito": 1.0}).loss.backward()
        counted += int(seen.get_total_flops())
    found = training_flops(step, StepShape(3, 8, 1.0), steps=2)
    assert found == pytest.approx(counted, rel=0.06)


@pytest.mark.parametrize(("effective", "micro", "run_again"), [(4, 1, 1.0), (5, 2, 0.4)])
def test_a_source_in_another_micro_batch_costs_the_blocks_before_the_exchange_again(
    effective: int, micro: int, run_again: float
) -> None:
    """What it costs more than with all rows in one micro-batch."""
    step = step_with_interventions("masked")
    for model in (step.student, step.teachers["t"].model):  # type: ignore[attr-defined]
        model.set_attn_implementation("eager")  # whose products are counted
    step.begin(0, 8)

    def counted(micro: int) -> int:
        with FlopCounterMode(display=False) as seen:
            for index in range(3):
                for batch in stream("masked", effective=effective, micro=micro).step(index):
                    step(batch, dict.fromkeys(step.count(batch), 1.0)).loss.backward()
        return int(seen.get_total_flops())

    (intervention,) = {t.intervention.name: t.intervention for t in step.terms if t.intervention}.values()
    layer = layer_at(intervention, 0, index=0, steps=8)
    fixed = replace(intervention, layers={"t": {layer: intervention.layers["t"][layer]}})
    step._all = [replace(term, intervention=term.intervention and fixed) for term in step._all]
    whole, again = (
        training_flops(step, StepShape(effective, CONTEXT, 1.0, share), steps=3) for share in (0.0, run_again)
    )
    assert whole is not None and again is not None
    more = counted(micro) - counted(effective)
    assert again - whole == pytest.approx(more, rel=0.1) and more > 0.02 * whole
    assert run_again == share_run_again(effective, micro_batch=micro)


def test_a_teacher_that_is_known_by_heart_computes_its_body_once_and_its_head_in_each_step() -> None:
    live = LiveTeacher(pico_model("llama", layers=4, width=24), VOCABULARY)
    known = PrecomputedTeacher(
        live, [packed_batch([[LENGTH]] * 5, length=LENGTH)], rows=5, needs=OutputSpec(head_input=True)
    )
    own, other = pass_cost(pico_model("llama"), LENGTH), pass_cost(live.model, LENGTH)
    each = 3 * (own.body + own.head) + other.head
    assert training_flops(step_of(LABELS, KL, teacher=known), READING, steps=7) == (
        7 * 3 * each + 5 * other.body
    )
    assert training_flops(step_of(LABELS, KL, teacher=live), READING, steps=7) == (
        7 * 3 * (each + other.body)
    )


def test_a_teacher_costs_nothing_while_no_term_asks_it() -> None:
    resting = Term("kl", "forward_kl", teacher="t", weight=Steps(((0.0, 1.0), (0.4, 0.0))))
    alone, both = (training_flops(step_of(*terms), READING, steps=1) for terms in ((LABELS,), (LABELS, KL)))
    assert training_flops(step_of(LABELS, resting), READING, steps=10) == 4 * both + 6 * alone


def test_a_frozen_body_has_no_gradients_of_its_own() -> None:
    cost = pass_cost(pico_model("llama"), LENGTH)
    found = training_flops(step_of(LABELS), READING, steps=1, frozen_body=True)
    assert found == 3 * (2 * cost.body + 3 * cost.head)


@pytest.mark.parametrize("spare", [0, 1, -1])
def test_steps_are_paid_for_whole(spare: int) -> None:
    control = step_of(LABELS)
    price = training_flops(control, READING, steps=1)
    assert affordable_steps(control, READING, flops=12 * price + spare) == (11 if spare < 0 else 12)
    assert affordable_steps(control, READING, flops=1) == 1


def test_the_control_of_equal_compute_trains_as_long_as_the_teachers_computing_pays_for(
    place: Path, tmp_path: Path
) -> None:
    change = ("controls=[no-teacher, equal-compute]", "train.log_every=1", "eval=[perplexity]")
    run = distilled("taught", *change, output_dir=tmp_path)
    names = ("student", "no-teacher", "equal-compute")
    reports = {name: json.loads((student(run, name) / "report.json").read_text()) for name in names}
    price = reports["no-teacher"]["flops"] / 6
    steps = reports["equal-compute"]["steps"]
    assert steps == reports["student"]["flops"] // price > 6
    assert reports["equal-compute"]["flops"] == steps * price <= reports["student"]["flops"]
    lines = map(json.loads, (student(run, "equal-compute") / "metrics.jsonl").read_text().splitlines())
    rates = [line["learning_rate"] for line in lines if line["kind"] == "step"]
    assert len(rates) == steps and rates[5] > 0.5 * max(rates) > 5 * rates[-1]  # at rest at its own end
    rows = {row["name"]: row for row in json.loads((run / "results.json").read_text())["rows"]}
    assert (rows["equal-compute"]["steps"], rows["equal-compute"]["flops"]) == (
        steps, reports["equal-compute"]["flops"]
    )  # fmt: skip
    table = (run / "table.txt").read_text()
    assert f"{reports['student']['flops']:.2e}" in table and "distilled student - equal-compute" in table

"""Whole steps with several teachers: splits, who is run, what a training draws."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from stlm_kd.data.batch import Batch
from stlm_kd.distillation.step import DistillationStep
from stlm_kd.distillation.terms import Term
from stlm_kd.interventions.spec import Intervention
from stlm_kd.models.outputs import OutputSpec
from stlm_kd.teachers import COMBINED
from stlm_kd.teachers.combination import Domains
from stlm_kd.teachers.combination.mixture import Combination
from stlm_kd.teachers.live import LiveTeacher
from stlm_kd.teachers.precomputed import PrecomputedTeacher
from stlm_kd.teachers.protocol import TeacherOutput
from tests.support.interchange_case import supplies
from tests.support.pico import packed_batch, part, pico_model
from tests.support.six_passes import counterfactual
from tests.unit.teachers.test_combine import TABLE, Options

BATCH = replace(
    packed_batch([[5, 7], [12], [3, 3, 4], [2, 6]], length=12), example_ids=torch.tensor([3, 0, 4, 1])
)
KL = Term("kl", "forward_kl", teacher=COMBINED, options={"temperature": 2.0})
WAYS: list[tuple[str, Options, float]] = [
    ("domains", {"weights": TABLE}, 0.0),
    ("confidence", {"sharpness": 2.0}, 0.0),
    ("label-likelihood", {}, 0.4),
    ("random", {"per": "sequence"}, 0.3),
    ("random", {"per": "batch"}, 0.0),
]


class Counting(LiveTeacher):
    """Notes how many batches it was asked for."""

    asked = 0

    def __call__(self, batch: Batch, needs: OutputSpec) -> TeacherOutput:
        self.asked += 1
        return super().__call__(batch, needs)


def teachers() -> dict[str, Counting]:
    widths = {"a": 24, "b": 16, "c": 8}
    return {
        name: Counting(pico_model("gpt2", width=width, seed=seed).double(), 61, name=name)
        for seed, (name, width) in enumerate(widths.items(), start=5)
    }


def step_of(
    how: str, options: Options, dropout: float = 0.0, terms: list[Term] | None = None
) -> DistillationStep:
    return DistillationStep(
        pico_model("llama").double(),
        terms or [KL],
        teachers=teachers(),
        combination=Combination(how, options, dropout, seed=3),
        domains=Domains(("news", "prose", "news"), (2, 2, 4)),
    )


def gradient(step: DistillationStep, batches: list[Batch]) -> list[torch.Tensor]:
    step.zero_grad()
    counts = [step.count(batch) for batch in batches]
    whole = {name: float(sum(count[name] for count in counts)) for name in counts[0]}
    for batch in batches:
        step(batch, whole).loss.backward()
    return [weight.grad.clone() for weight in step.student.parameters() if weight.grad is not None]


@pytest.mark.parametrize(("how", "options", "dropout"), WAYS)
def test_any_split_into_micro_batches_gives_the_same_gradient(
    how: str, options: Options, dropout: float
) -> None:
    step = step_of(how, options, dropout)
    for index in (0, 5):
        step.begin(index, 10)
        expected = gradient(step, [BATCH])
        found = gradient(step, [part(BATCH, slice(*ends)) for ends in pairwise((0, 1, 3, 4))])
        assert all(torch.allclose(*pair, rtol=0, atol=1e-7) for pair in zip(found, expected, strict=True))
        assert max(float(slope.abs().max()) for slope in expected) > 1e-3


def test_a_step_does_not_depend_on_the_steps_before_it() -> None:
    """So that a resumed run draws what an uninterrupted one draws."""
    for how, options, dropout in WAYS[2:]:
        one, other = step_of(how, options, dropout), step_of(how, options, dropout)
        for index in range(7):
            one.begin(index, 10)
            one(BATCH, one.count(BATCH))
        one.begin(7, 10)
        other.begin(7, 10)
        pairs = zip(gradient(one, [BATCH]), gradient(other, [BATCH]), strict=True)
        assert one.mixed == other.mixed
        assert all(torch.equal(*pair) for pair in pairs)


def test_one_teacher_for_a_batch_runs_no_other() -> None:
    step = step_of("random", {"per": "batch"})
    runs = []
    for index in range(12):
        step.begin(index, 12)
        before = [teacher.asked for teacher in step.teachers.values()]
        step(BATCH, step.count(BATCH))
        runs.append([t.asked - asked for t, asked in zip(step.teachers.values(), before, strict=True)])
    assert all(sorted(each) == [0, 0, 1] for each in runs)
    assert all(any(each[place] for each in runs) for place in range(3))


def test_a_teacher_left_out_of_the_mixture_still_answers_a_loss_that_names_it() -> None:
    named = Term("rkl", "reverse_kl", teacher="b")
    step = step_of("random", {"per": "batch"}, terms=[KL, named])
    alone = step_of("random", {"per": "batch"}, terms=[named])
    index = next(i for i in range(20) if step.begin(i, 20) is None and "b" not in step.mixed)
    alone.begin(index, 20)
    found, expected = step(BATCH, step.count(BATCH)).sums, alone(BATCH, alone.count(BATCH)).sums
    assert torch.allclose(found["rkl"], expected["rkl"], rtol=1e-6)


def test_teachers_that_know_their_answers_by_heart_are_combined_alike() -> None:
    for how, options, dropout in WAYS:
        live, remembering = step_of(how, options, dropout), step_of(how, options, dropout)
        remembering.teachers = {
            name: PrecomputedTeacher(teacher, [BATCH], rows=8, needs=OutputSpec(head_input=True))
            for name, teacher in remembering.teachers.items()
        }
        live.begin(4, 10)
        remembering.begin(4, 10)
        one, other = (step(BATCH, step.count(BATCH)).sums["kl"] for step in (live, remembering))
        assert torch.allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_counterfactual_distributions_get_the_weights_of_the_base(family: str) -> None:
    intervention = Intervention("diito", {name: {0: (0,)} for name in "abc"})
    term = Term("diito", "forward_kl", on="attended", teacher=COMBINED, intervention=intervention)
    models = {n: pico_model(family, width=w, seed=w).double() for n, w in (("a", 24), ("b", 16), ("c", 8))}
    step = DistillationStep(
        pico_model(family).double(),
        [term],
        teachers={name: LiveTeacher(model, 61, name=name) for name, model in models.items()},
        combination=Combination("entropy", {"sharpness": 3.0}),
        supplies=supplies(),
    ).train()
    plan = step.drawn(BATCH)["diito"]
    found = step(BATCH, {name: float(count) for name, count in step.count(BATCH).items()}).sums["diito"]
    with torch.no_grad():
        base = [
            teacher(BATCH, OutputSpec(head_input=True)).distribution for teacher in step.teachers.values()
        ]
        rows = BATCH.attention_mask
        before = [one.rows(rows).logits(slice(0, None), 61).softmax(-1) for one in base]
        raw = torch.stack([(3.0 * one.xlogy(one).sum(-1)).exp() for one in before], -1)
        weights = raw / raw.sum(-1, keepdim=True)
        said = [counterfactual(m, BATCH, plan, (0,)).logits[rows].softmax(-1) for m in models.values()]
        mixture = sum(w[:, None] * one for w, one in zip(weights.unbind(-1), said, strict=True))
        own = counterfactual(step.student, BATCH, plan, (0,)).logits[rows].log_softmax(-1)
    expected = (mixture * (mixture.log() - own)).sum()
    assert float(found) == pytest.approx(float(expected), rel=1e-6)

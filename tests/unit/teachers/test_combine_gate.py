"""A learned gate between teachers: what moves it, and what it does not move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stlm_kd.data.batch import IGNORED, Batch
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.distillation.step import DistillationStep
from stlm_kd.distillation.terms import Term
from stlm_kd.models.forward import last_hidden
from stlm_kd.models.outputs import ModelOutputs, OutputSpec
from stlm_kd.teachers import COMBINED
from stlm_kd.teachers.combination.gate import GATE, Gate
from stlm_kd.teachers.combination.mixture import Combination
from stlm_kd.teachers.protocol import TeacherOutput
from stlm_kd.teachers.targets import Logits
from tests.support.pico import packed_batch, pico_model

BATCH = packed_batch([[5, 7], [12], [3, 3, 4], [2, 6]], length=12)
LABELLED = BATCH.labels != IGNORED
V = 61
KL = Term("kl", "forward_kl", on="attended", teacher=COMBINED, options={"temperature": 2.0})


class Saying:
    """A teacher with given outputs for each row."""

    def __init__(self, logits_BTV: Tensor) -> None:
        self.logits = logits_BTV

    def __call__(self, batch: AnyBatch, needs: OutputSpec) -> TeacherOutput:
        return TeacherOutput(Logits(self.logits[batch.example_ids]), ModelOutputs())


def random_logits(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(4, 12, V, generator=generator, dtype=torch.float64)


def step_of(
    teachers: Sequence[Tensor], terms: Sequence[Term] = (KL,), weight: float = 1.0, **options: str
) -> DistillationStep:
    gate = Gate(16, "abc"[: len(teachers)])
    torch.nn.init.normal_(gate.scores.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    return DistillationStep(
        pico_model("gpt2").double(),
        terms,
        teachers={name: Saying(one) for name, one in zip("abc", teachers, strict=False)},
        combination=Combination("learned", {"weight": weight}),
        gate=gate.double(),
        **options,
    )


def gradients(step: DistillationStep, batch: Batch = BATCH) -> dict[str, Tensor]:
    step.zero_grad()
    output = step(batch, {name: float(count) for name, count in step.count(batch).items()})
    output.loss.backward()
    return {name: weight.grad.clone() for name, weight in step.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("method", ["chunked", "dense"])
def test_the_gates_gradient_is_that_of_the_labels_likelihood_alone(method: str) -> None:
    told = [random_logits(seed) for seed in range(3)]
    step = step_of(told, vocabulary_loss=method)
    found = gradients(step)
    hidden = last_hidden(step.student, BATCH).detach()[LABELLED]
    leaf = step.gate.scores.weight.detach().clone().requires_grad_()
    weights = (hidden @ leaf.T + step.gate.scores.bias.detach()).softmax(-1)
    probs = torch.stack([(one[LABELLED] / 2).softmax(-1) for one in told], 1)  # as the objective softens them
    mixed = (weights[:, :, None] * probs).sum(1)
    loss = -mixed.gather(1, BATCH.labels[LABELLED][:, None]).log().mean()
    loss.backward()
    assert torch.allclose(found["gate.scores.weight"], leaf.grad, atol=1e-10)
    output = step(BATCH, {name: float(count) for name, count in step.count(BATCH).items()})
    assert float(output.sums[GATE]) == pytest.approx(loss.item() * int(LABELLED.sum()), rel=1e-9)


@pytest.mark.parametrize("method", ["chunked", "dense"])
def test_the_loss_that_is_told_is_the_students_alone(method: str) -> None:
    step = step_of([random_logits(seed) for seed in range(3)], weight=7.0, vocabulary_loss=method)
    counts = step.count(BATCH)
    output = step(BATCH, {name: float(count) for name, count in counts.items()})
    own = sum(
        term.factor * float(output.sums[term.name]) / counts[term.name]
        for term in step.terms
        if term.name != GATE
    )
    assert output.loss.item() == pytest.approx(own, rel=1e-9)
    assert float(output.sums[GATE]) > 1.0


def test_the_divergence_does_not_reach_the_gate_nor_the_gates_loss_the_student() -> None:
    told = [random_logits(seed) for seed in range(2)]
    heavier = replace(KL, weight=50.0)
    plain, pulled, stronger = (
        gradients(step) for step in (step_of(told), step_of(told, [heavier]), step_of(told, weight=30.0))
    )
    assert torch.equal(plain["gate.scores.weight"], pulled["gate.scores.weight"])
    assert plain["gate.scores.weight"].abs().max() > 1e-3
    for name, slope in plain.items():
        if name.startswith("student."):
            assert torch.equal(slope, stronger[name]), name
            assert torch.allclose(50 * slope, pulled[name], rtol=1e-9, atol=1e-12), name


def test_the_gate_prefers_the_right_teacher_and_not_the_one_like_the_student() -> None:
    """One teacher has the student's logits, which the divergence prefers; the other predicts the labels."""
    step = step_of([random_logits(0)] * 2)
    with torch.no_grad():
        alike = step.student.get_output_embeddings()(last_hidden(step.student, BATCH))
    right = 6.0 * torch.nn.functional.one_hot(BATCH.labels.clamp(min=0), V).double()
    step.teachers = {"a": Saying(alike), "b": Saying(right)}
    optimizer = torch.optim.Adam(step.gate.parameters(), lr=0.05)
    for _ in range(40):
        gradients(step)
        optimizer.step()
    scores = step.gate(last_hidden(step.student, BATCH)[LABELLED], ("a", "b"))
    assert scores.softmax(-1)[:, 1].min() > 0.9


def test_the_gate_tells_tokens_apart_where_each_teacher_knows_half() -> None:
    """A half that shows in the student's state."""
    right = 8.0 * torch.nn.functional.one_hot(BATCH.labels.clamp(min=0), V).double()
    step = step_of([right, right])
    hidden = last_hidden(step.student, BATCH).detach()
    half = hidden[..., 0] > 0
    step.teachers = {"a": Saying(right * half[..., None]), "b": Saying(right * ~half[..., None])}
    optimizer = torch.optim.Adam(step.gate.parameters(), lr=0.1)
    for _ in range(60):
        gradients(step)
        optimizer.step()
    first = step.gate(hidden[LABELLED], ("a", "b")).softmax(-1)[:, 0]
    assert 0.2 < half[LABELLED].float().mean() < 0.8
    assert ((first > 0.5) == half[LABELLED]).float().mean() > 0.9


def test_at_first_the_gate_is_the_mean_and_weights_of_some_are_those_of_all_scaled() -> None:
    gate, hidden = Gate(8, "abc"), torch.randn(5, 8)
    assert torch.equal(gate(hidden, "abc").softmax(-1), torch.full((5, 3), 1 / 3))
    torch.nn.init.normal_(gate.scores.weight)
    every, some = gate(hidden, "abc").softmax(-1), gate(hidden, "ca").softmax(-1)
    assert torch.allclose(some, every[:, [2, 0]] / every[:, [2, 0]].sum(-1, keepdim=True), atol=1e-6)


@pytest.mark.parametrize("terms", [[KL], [Term("labels", "labels")]])
def test_a_gate_that_rests_or_has_no_label_gets_a_gradient_of_nothing(terms: list[Term]) -> None:
    step = step_of([random_logits(0), random_logits(1)], terms)
    nothing = replace(BATCH, labels=torch.full_like(BATCH.labels, IGNORED))
    found = gradients(step, nothing if terms == [KL] else BATCH)
    assert not found["gate.scores.weight"].any() and not found["gate.scores.bias"].any()

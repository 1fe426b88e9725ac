from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from stlm_kd.data.batch import IGNORED, TENSORS, Batch
from stlm_kd.distillation.hidden_terms import Projections
from stlm_kd.distillation.objective import ForwardOutputs, reduce_terms
from stlm_kd.distillation.step import DistillationStep
from stlm_kd.distillation.terms import Term
from stlm_kd.losses import chunked, forward_kl
from stlm_kd.models.forward import Head, head_of, last_hidden
from stlm_kd.models.outputs import ModelOutputs, OutputSpec
from stlm_kd.teachers import COMBINED
from stlm_kd.teachers.combination import TeacherMixture
from stlm_kd.teachers.combination.mixture import Combination
from stlm_kd.teachers.live import LiveTeacher
from stlm_kd.teachers.precomputed import PrecomputedTeacher
from stlm_kd.teachers.protocol import Teacher, TeacherOutput
from stlm_kd.teachers.targets import Dense
from tests.support.pico import packed_batch, part, pico_model

BATCH = packed_batch([[5, 7], [12], [3, 3, 4], [2]], length=12)
TERMS = [
    Term("labels", "labels", weight=0.3),
    Term("kl", "forward_kl", weight=0.7, teacher=COMBINED, options={"temperature": 2.0}),
    Term("rkl", "reverse_kl", weight=0.2, on="attended", teacher="b", options={"temperature": 1.5}),
]


def teachers(seed: int = 5) -> dict[str, LiveTeacher]:
    return {
        "a": LiveTeacher(pico_model("gpt2", width=24, seed=seed).double(), 61),
        "b": LiveTeacher(pico_model("llama", width=8, tied=False, seed=seed + 1).double(), 61),
    }


HEAD = OutputSpec(head_input=True)


def dense_of(teacher: Teacher, batch: Batch) -> Dense:
    """The teacher's distribution, not yet projected."""
    found = teacher(batch, HEAD).distribution
    assert isinstance(found, Dense)
    return found


NO_TEACHERS = TeacherMixture(Combination(), ())


def alone(batch: Batch, hidden: torch.Tensor, head: Head) -> ForwardOutputs:
    """A student without teachers."""
    return ForwardOutputs(batch, NO_TEACHERS, ModelOutputs(hidden), head, {}, Projections())


def teachers_in_float32() -> dict[str, LiveTeacher]:
    return {name: LiveTeacher(teacher.model.float(), 61) for name, teacher in teachers().items()}


def dense_total(student, taught, batch) -> torch.Tensor:
    """The same total with whole logits and plain formulas."""
    logits = student(
        input_ids=batch.input_ids, attention_mask=mask_4d(batch), position_ids=batch.position_ids
    ).logits
    labelled = batch.labels != IGNORED
    attended = batch.attention_mask
    told = {
        name: teacher.model(
            input_ids=batch.input_ids, attention_mask=mask_4d(batch), position_ids=batch.position_ids
        ).logits.detach()
        for name, teacher in taught.items()
    }
    cross = functional.cross_entropy(logits[labelled], batch.labels[labelled])
    mixed = (told["a"] / 2).softmax(-1) / 2 + (told["b"] / 2).softmax(-1) / 2
    student_log = (logits / 2).log_softmax(-1)
    kl = 4 * (mixed * (mixed.log() - student_log)).sum(-1)[labelled].mean()
    q = (logits / 1.5).log_softmax(-1)
    rkl = 1.5**2 * (q.exp() * (q - (told["b"] / 1.5).log_softmax(-1))).sum(-1)[attended].mean()
    return 0.3 * cross + 0.7 * kl + 0.2 * rkl


def mask_4d(batch) -> torch.Tensor:
    """Block-diagonal causal mask by a plain loop."""
    size, length = batch.input_ids.shape
    mask = torch.zeros(size, 1, length, length, dtype=torch.bool)
    for b in range(size):
        for q in range(length):
            for k in range(q + 1):
                mask[b, 0, q, k] = batch.document_ids[b, q] == batch.document_ids[b, k]
    return mask


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("elements", [61 * 16, 2**22])
def test_chunks_equal_whole_logits_in_value_and_gradient(
    family: str, tied: bool, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", elements)
    student = pico_model(family, tied=tied).double()
    taught = teachers()
    step = DistillationStep(student, TERMS, teachers=taught, combination=Combination("mean"))
    output = step(BATCH, {name: float(count) for name, count in step.count(BATCH).items()})
    output.loss.backward()
    found = gradients(student)
    student.zero_grad()
    expected = dense_total(student, taught, BATCH)
    expected.backward()
    assert torch.allclose(output.loss, expected.detach(), rtol=0, atol=1e-12)
    # rotary tables and norms run in float32 whatever the model's type
    for name, slope in gradients(student).items():
        assert torch.allclose(found[name], slope, rtol=0, atol=1e-12 if family == "gpt2" else 1e-6), name


@given(cuts=st.sets(st.integers(1, 3)))
@settings(deadline=None, max_examples=8)
def test_any_split_into_micro_batches_gives_the_same_gradient(cuts: set[int]) -> None:
    student = pico_model("gpt2").double()
    step = DistillationStep(student, TERMS, teachers=teachers())
    whole = {name: float(count) for name, count in step.count(BATCH).items()}
    step(BATCH, whole).loss.backward()
    expected = gradients(student)
    student.zero_grad()
    edges = [0, *sorted(cuts), 4]
    total = 0.0
    for start, stop in pairwise(edges):
        output = step(part(BATCH, slice(start, stop)), whole)
        output.loss.backward()
        total += output.loss.item()
    for name, slope in gradients(student).items():
        assert torch.allclose(slope, expected[name], rtol=0, atol=1e-12), name


def test_a_mean_of_micro_batch_means_would_be_noticed() -> None:
    """The control of the test above: the wrong normalisation does differ on this batch."""
    step = DistillationStep(pico_model("gpt2").double(), TERMS[:1])
    halves = [part(BATCH, slice(0, 2)), part(BATCH, slice(2, 4))]
    means = [step(half, {k: float(v) for k, v in step.count(half).items()}).loss.item() for half in halves]
    whole = step(BATCH, {k: float(v) for k, v in step.count(BATCH).items()}).loss.item()
    assert abs(sum(means) / 2 - whole) > 1e-3


@pytest.mark.parametrize("offset", [0, 1, -1])
def test_labels_one_position_off_would_be_noticed(offset: int) -> None:
    """The control of the comparison with whole logits: it holds for the labels as they are, and no others."""
    student, taught = pico_model("gpt2").double(), teachers()
    labelled = BATCH.labels != IGNORED
    moved = BATCH.labels.roll(offset, dims=1).clamp(min=0).masked_fill(~labelled, IGNORED)
    step = DistillationStep(student, TERMS, teachers=taught, combination=Combination("mean"))
    shifted = dataclasses.replace(BATCH, labels=moved)
    found = step(shifted, {name: float(count) for name, count in step.count(shifted).items()}).loss
    gap = abs(found.item() - dense_total(student, taught, BATCH).item())
    assert gap < 1e-12 if offset == 0 else gap > 1e-2


def test_padding_has_no_influence_on_value_or_gradient() -> None:
    student = pico_model("llama").double()
    step = DistillationStep(student, TERMS, teachers=teachers())
    narrow = packed_batch([[5, 7], [4]], length=12)
    changed = narrow.input_ids.masked_fill(~narrow.attention_mask, 17)
    other = dataclasses.replace(narrow, input_ids=changed)
    slopes, values = [], []
    for batch in (narrow, other):
        student.zero_grad()
        output = step(batch, {name: float(count) for name, count in step.count(batch).items()})
        output.loss.backward()
        values.append(output.loss)
        slopes.append(gradients(student))
    assert torch.equal(values[0], values[1])
    assert all(torch.equal(slopes[0][name], slopes[1][name]) for name in slopes[0])


def test_a_batch_in_which_nothing_counts_gives_zero_and_not_nan() -> None:
    empty = packed_batch([[], []], length=4)
    student = pico_model("llama")
    step = DistillationStep(student, TERMS[:2], teachers={"a": LiveTeacher(pico_model("gpt2"), 61)})
    output = step(empty, step.count(empty))
    output.loss.backward()
    assert output.loss.item() == 0
    assert all(slope.abs().sum() == 0 for slope in gradients(student).values())


def test_documents_do_not_see_each_other() -> None:
    batch = packed_batch([[6, 6]], length=12)
    changed = batch.input_ids.clone()
    changed[0, :6] = (changed[0, :6] + 1) % 61
    other = dataclasses.replace(batch, input_ids=changed)
    for family in ("gpt2", "llama", "qwen2"):
        for attention in ("sdpa", "eager"):
            model = pico_model(family, attention=attention).eval()
            first, second = last_hidden(model, batch), last_hidden(model, other)
            assert torch.equal(first[0, 6:], second[0, 6:])
            assert not torch.equal(first[0, :6], second[0, :6])


def test_a_packed_document_gets_the_states_that_it_gets_alone() -> None:
    batch = packed_batch([[4, 7]], length=12)
    for family in ("gpt2", "llama", "qwen2"):
        model = pico_model(family).eval()
        alone = model.base_model(input_ids=batch.input_ids[:, 4:11]).last_hidden_state
        assert torch.allclose(last_hidden(model, batch)[:, 4:11], alone, atol=1e-5)


def test_padded_rows_of_a_teachers_head_take_no_probability() -> None:
    teacher = pico_model("llama", vocabulary=64)
    batch = packed_batch([[5, 7]], length=12)
    answer = dense_of(LiveTeacher(teacher, 61), batch).rows(batch.attention_mask)
    logits = answer.logits(slice(0, 12), outcomes=66)
    whole = teacher(input_ids=batch.input_ids[:, :5]).logits[0]
    assert logits.shape == (12, 66)
    assert logits[:, 61:].isneginf().all()
    assert torch.allclose(logits[:5, :61], whole[:, :61], atol=1e-5)


def test_a_remembering_teacher_answers_as_the_live_one_in_any_order() -> None:
    live = LiveTeacher(pico_model("llama"), 61)
    remembering = PrecomputedTeacher(
        live, [part(BATCH, slice(2, 4)), part(BATCH, slice(0, 2))], rows=4, needs=HEAD
    )
    shuffled = type(BATCH)(*(getattr(BATCH, n)[[3, 0, 2, 1]] for n in TENSORS))
    found = dense_of(remembering, shuffled).hidden[shuffled.attention_mask]
    expected = dense_of(live, shuffled).hidden[shuffled.attention_mask]
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_remembering_teacher_holds_its_states_once_while_it_learns_them() -> None:
    live = LiveTeacher(pico_model("llama"), 61)
    answers: list[weakref.ref[torch.Tensor]] = []

    def noted(batch: Batch, needs: OutputSpec) -> TeacherOutput:
        answer = live(batch, needs)
        answers.append(weakref.ref(answer.observed.head_input))
        return answer

    def batches() -> Iterator[Batch]:
        for row in range(4):
            gc.collect()
            assert sum(answer() is not None for answer in answers) <= 1
            yield part(BATCH, slice(row, row + 1))

    PrecomputedTeacher(noted, batches(), rows=4, needs=HEAD)  # type: ignore[arg-type]  # answers as a teacher does
    assert len(answers) == 4


@pytest.mark.parametrize(("dtype", "expected"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_a_teachers_head_runs_in_the_type_of_the_students(
    dtype: str, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    projected: list[torch.dtype] = []
    linear = functional.linear

    def noted(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if weight.shape[0] == 61:
            projected.append(weight.dtype)
        return linear(hidden, weight, bias)

    step = DistillationStep(pico_model("llama"), TERMS, teachers=teachers_in_float32())
    monkeypatch.setattr(functional, "linear", noted)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bf16"):
        output = step(BATCH, {name: float(count) for name, count in step.count(BATCH).items()})
    assert len(projected) == 4  # the student, a, and b at two temperatures
    assert set(projected) == {expected}
    exact = DistillationStep(pico_model("llama").double(), TERMS, teachers=teachers())
    whole = exact(BATCH, {name: float(count) for name, count in exact.count(BATCH).items()})
    assert torch.allclose(output.loss.double(), whole.loss, rtol=0.02 if dtype == "bf16" else 1e-5)


def test_a_gradient_of_the_gradient_fails_instead_of_being_left_out() -> None:
    hidden = torch.randn(1, 12, 16, requires_grad=True)
    head = Head(torch.randn(61, 16, requires_grad=True), None)
    terms = [Term("labels", "labels")]
    batch = packed_batch([[12]], length=12)
    loss, _ = reduce_terms(terms, alone(batch, hidden, head), {"labels": 1.0})
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(loss, hidden, create_graph=True)


def test_a_term_of_weight_zero_is_measured_and_has_no_gradient() -> None:
    student = pico_model("llama").double()
    taught = teachers()
    hidden = last_hidden(student, BATCH).detach().requires_grad_()
    answers = {name: teacher(BATCH, HEAD) for name, teacher in taught.items()}
    terms = [Term("kl", "forward_kl", weight=0.0, teacher="a")]
    outputs = ForwardOutputs(
        BATCH, NO_TEACHERS, ModelOutputs(hidden), head_of(student), answers, Projections()
    )
    loss, sums = reduce_terms(terms, outputs, {"kl": 1.0})
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad.abs().sum() == 0
    labelled = BATCH.labels != IGNORED
    logits = functional.linear(hidden, student.get_output_embeddings().weight)[labelled]
    expected = forward_kl(logits, answers["a"].distribution.rows(labelled).logits(slice(0, None), 61)).sum()
    assert torch.allclose(sums["kl"], expected, atol=1e-10)


def test_bf16_autocast_sums_the_heads_gradient_in_float32() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(200, 16, requires_grad=True)
    weight = torch.randn(61, 16, requires_grad=True)
    labels = torch.randint(0, 61, (1, 200))
    batch = packed_batch([[200]], length=200)
    batch = type(batch)(labels, batch.attention_mask, labels, *(getattr(batch, n) for n in
                        ("document_ids", "position_ids", "example_ids")))  # fmt: skip
    term = [Term("labels", "labels")]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = reduce_terms(term, alone(batch, hidden[None], Head(weight, None)), {"labels": 200.0})
    loss.backward()
    exact = weight.detach().double().requires_grad_()
    functional.cross_entropy(hidden.detach().double() @ exact.T, labels[0]).backward()
    assert weight.grad.dtype == torch.float32
    assert (weight.grad - exact.grad).norm() / exact.grad.norm() < 0.02


def test_a_second_backward_fails_instead_of_scaling_twice() -> None:
    hidden = torch.randn(1, 12, 16, requires_grad=True)
    head = Head(torch.randn(61, 16, requires_grad=True), None)
    batch = packed_batch([[12]], length=12)
    terms = [Term("labels", "labels")]
    loss, _ = reduce_terms(terms, alone(batch, hidden, head), {"labels": 1.0})
    loss.backward(retain_graph=True)
    with pytest.raises(TypeError):
        loss.backward()


def test_a_teachers_states_are_no_part_of_the_module() -> None:
    step = DistillationStep(pico_model(), TERMS, teachers=teachers())
    assert all(name.startswith("student.") for name in step.state_dict())
    assert isinstance(dense_of(step.teachers["a"], BATCH), Dense)


def test_in_evaluation_only_the_labels_are_measured_and_no_teacher_is_asked() -> None:
    taught = teachers()
    step = DistillationStep(pico_model("llama"), TERMS[1:], teachers=taught)
    assert list(step.count(BATCH)) == ["kl", "rkl", "labels"]
    for teacher in taught.values():
        teacher.model = None  # type: ignore[assignment]  # taken away on purpose
    step.eval()
    output = step(BATCH, step.count(BATCH))
    assert list(output.sums) == list(step.count(BATCH)) == ["labels"]
    assert torch.allclose(output.loss.double(), output.sums["labels"] / step.count(BATCH)["labels"])

"""Metrics of several teachers (weights, losses, agreement) in logged steps, against plain formulas."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from stlm_kd.data.batch import IGNORED
from stlm_kd.distillation.step import DistillationStep
from stlm_kd.distillation.terms import Term
from stlm_kd.models.forward import last_hidden
from stlm_kd.teachers import COMBINED
from tests.support.pico import part
from tests.unit.teachers.test_combine_gate import BATCH, random_logits, step_of

KL = Term("kl", "forward_kl", on="attended", teacher=COMBINED, options={"temperature": 2.0})
NAMES = "abc"


def measured(step: DistillationStep, *pieces: slice) -> dict[str, float]:
    """Over micro-batches, as the engine adds them up."""
    step.begin(0, 10, is_logged=True)
    found = []
    for piece in pieces:
        batch = part(BATCH, piece)
        found.append(step(batch, dict.fromkeys(step.count(batch), 1.0)).measures)
    assert all(set(one) == set(step.measures) for one in found)
    return {
        name: float(sum(one[name].total for one in found)) / float(sum(one[name].number for one in found))
        for name in step.measures
    }


def test_weights_losses_and_agreement_are_those_of_plain_formulas() -> None:
    told = [random_logits(seed) for seed in range(3)]
    told[1][:, ::2] = told[0][:, ::2] + 0.1  # so that some agree
    step = step_of(told, [KL])
    found = measured(step, slice(0, 4))
    rows, labels = BATCH.attention_mask, BATCH.labels[BATCH.attention_mask]
    probs = [(one[rows] / 2).softmax(-1) for one in told]
    hidden = last_hidden(step.student, BATCH).detach()[rows]
    own = (step.student.get_output_embeddings()(hidden) / 2).log_softmax(-1).detach()
    weights = step.gate(hidden, NAMES).softmax(-1)
    expected: dict[str, Tensor] = {}
    for i, name in enumerate(NAMES):
        expected[f"teacher_weight/{name}"] = weights[:, i].mean()
        expected[f"teacher_kl/{name}"] = functional.kl_div(own, probs[i], reduction="batchmean")
        right = probs[i][labels != IGNORED].gather(-1, labels[labels != IGNORED][:, None])
        expected[f"teacher_label_loss/{name}"] = -right.log().mean()
    pairs = list(combinations(probs, 2))
    same = [(one.argmax(-1) == other.argmax(-1)).double().mean() for one, other in pairs]
    apart = [
        (functional.kl_div((p + q).div(2).log(), p, reduction="batchmean")
         + functional.kl_div((p + q).div(2).log(), q, reduction="batchmean")) / 2
        for p, q in pairs
    ]  # fmt: skip
    expected["teachers_agree/top-1"] = torch.stack(same).mean()
    expected["teachers_differ/jensen_shannon"] = torch.stack(apart).mean()
    assert found == pytest.approx({name: value.item() for name, value in expected.items()}, rel=1e-5)
    assert 0.1 < found["teachers_agree/top-1"] < 0.9


def test_any_split_into_micro_batches_measures_the_same() -> None:
    step = step_of([random_logits(seed) for seed in range(2)], [KL])
    whole, parts = measured(step, slice(0, 4)), measured(step, slice(0, 1), slice(1, 3), slice(3, 4))
    assert parts == pytest.approx(whole, rel=1e-6)


def test_nothing_is_measured_in_steps_that_are_not_logged_nor_without_a_mixture() -> None:
    told = [random_logits(seed) for seed in range(2)]
    step = step_of(told, [KL])
    step.begin(0, 10)
    assert step.measures == [] and not step(BATCH, dict.fromkeys(step.count(BATCH), 1.0)).measures
    for other in (step_of(told[:1], [KL]), step_of(told, [Term("kl", "forward_kl", teacher="a")])):
        other.begin(0, 10, is_logged=True)
        assert other.measures == [] and not other(BATCH, dict.fromkeys(other.count(BATCH), 1.0)).measures

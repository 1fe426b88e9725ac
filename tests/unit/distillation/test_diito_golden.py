"""Interchange interventions against the authors' own code, in thirteen cases, through a training step.

The numbers are of the reference implementation of causal distillation, see ``tests/golden/README.md``.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from stlm_kd.data.batch import Batch
from stlm_kd.distillation.objective import ForwardOutputs
from stlm_kd.distillation.step import DistillationStep
from stlm_kd.models import forward
from stlm_kd.training.protocols import StepOutput
from tests.support.golden_diito import Case, case_names, sampled

EVERYTHING = dict.fromkeys(
    ("alpha_mlm", "alpha_ce", "alpha_mse", "alpha_cos", "alpha_causal_ce", "alpha_causal_cos"), 1.0
)
CELLS = list(product(case_names(), ["eager", "sdpa"]))
SCALARS = {
    "mlm": "loss_mlm", "ce": "loss_ce", "cos": "loss_cos", "causal_ce": "causal_loss_ce",
    "causal_cos": "causal_loss_cos",
}  # fmt: skip
APART = [name for name in case_names() if not Case.named(name).facts["positions_on_padding"]["source"]]


@pytest.fixture
def _padding_sees_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the reference: some of its source positions lie on padding, whose states must be its own."""

    def mask_of_keys(batch: Batch, model: PreTrainedModel) -> Tensor:
        length = batch.input_ids.shape[1]
        allowed = batch.attention_mask[:, None, None].expand(-1, -1, length, -1)
        if model.config._attn_implementation != "eager":
            return allowed
        zeros = torch.zeros(allowed.shape, dtype=model.dtype)
        return zeros.masked_fill(~allowed, torch.finfo(model.dtype).min)

    monkeypatch.setattr(forward, "attention_mask", mask_of_keys)


def run(step: DistillationStep, case: Case) -> StepOutput:
    batch = case.base()
    counts = {name: float(count) for name, count in step.count(batch).items()}
    return step(batch, counts, {"diito": case.plan()})


def said(step: DistillationStep, sides: ForwardOutputs) -> dict[str, Tensor]:
    """Logits and last states by the names that the reference values have."""
    head, after = sides.head, sides.after["diito"]
    assert head is not None
    found: dict[str, Tensor] = {}
    for name, student, teachers in (
        ("base", sides.student, sides.teachers),
        ("cf", after.student, after.teachers),
    ):
        assert student.head_input is not None
        found[f"student_{name}_logits"] = functional.linear(student.head_input, head.weight, head.bias)
        distribution = teachers["t"].distribution
        assert distribution is not None
        own = distribution.rows(torch.ones_like(student.head_input[..., 0], dtype=torch.bool))
        logits_NV = own.logits(slice(None), head.size)
        found[f"teacher_{name}_logits"] = logits_NV.view_as(found[f"student_{name}_logits"])
    found["student_cf_last_hidden"] = after.student.states["last"]
    found["teacher_cf_last_hidden"] = after.teachers["t"].observed.states["last"]
    return found


@pytest.mark.usefixtures("_padding_sees_text")
@pytest.mark.parametrize(("name", "attention"), CELLS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)], ids=["float64", "float32"]
)
def test_logits_and_states_are_the_references(
    name: str, attention: str, dtype: torch.dtype, tolerance: float
) -> None:
    case = Case.named(name)
    step = case.step(EVERYTHING, attention=attention, dtype=dtype)
    for key, value in said(step, step.ask(case.base(), {"diito": case.plan()})).items():
        expected = case.tensors[key].to(dtype)
        torch.testing.assert_close(sampled(value, key), expected, rtol=0, atol=tolerance, msg=key)


@pytest.mark.usefixtures("_padding_sees_text")
@pytest.mark.parametrize(("name", "attention"), CELLS)
@pytest.mark.parametrize(
    ("dtype", "key", "tolerance"),
    [(torch.float64, "scalars_fp64", 1e-10), (torch.float32, "scalars_fp32", 1e-5)],
    ids=["float64", "float32"],
)
def test_losses_are_the_references(
    name: str, attention: str, dtype: torch.dtype, key: str, tolerance: float
) -> None:
    case = Case.named(name)
    step = case.step(EVERYTHING, attention=attention, dtype=dtype)
    counts, found = step.count(case.base()), run(step, case).sums
    for term, scalar in SCALARS.items():
        expected = case.facts[key][scalar]
        assert abs(float(found[term]) / counts[term] - expected) < tolerance * max(1, abs(expected)), term
    total = case.step(case.facts["alphas"], attention=attention, dtype=dtype)
    expected = case.facts[key]["total_loss"]
    assert abs(run(total, case).loss.item() - expected) < tolerance * max(1, abs(expected))


@pytest.mark.usefixtures("_padding_sees_text")
@pytest.mark.parametrize(("name", "attention"), CELLS)
@pytest.mark.parametrize("loss", ["total", "causal_ce"])
def test_gradients_are_the_references(name: str, attention: str, loss: str) -> None:
    case = Case.named(name)
    step = case.step(
        case.facts["alphas"] if loss == "total" else {"alpha_causal_ce": 1.0}, attention=attention
    )
    run(step, case).loss.backward()
    found = {key: p.grad for key, p in step.student.named_parameters() if p.grad is not None}
    expected = {
        key.removeprefix(f"grad_{loss}."): value
        for key, value in case.tensors.items()
        if key.startswith(f"grad_{loss}.")
    }
    assert expected
    for key, value in expected.items():
        torch.testing.assert_close(sampled(found[key], "grad"), value, rtol=0, atol=1e-10, msg=key)
    if loss == "total":
        for key, norm in case.facts["grad_l2_norms_fp64"].items():
            assert abs(float(found[key].norm()) - norm) < 1e-9 * max(1, norm), key


@pytest.mark.parametrize("name", APART)
def test_losses_are_the_references_where_padding_is_a_document_of_its_own(name: str) -> None:
    case = Case.named(name)
    step = case.step(EVERYTHING)
    counts, found = step.count(case.base()), run(step, case).sums
    for term, scalar in SCALARS.items():
        assert abs(float(found[term]) / counts[term] - case.facts["scalars_fp64"][scalar]) < 1e-10, term


def test_most_cases_need_no_state_of_padding() -> None:
    assert len(APART) == 8

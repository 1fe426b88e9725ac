from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy.special import log_softmax

from stlm_kd.losses import LABELS, LOSSES, cross_entropy, forward_kl, reverse_kl

DIVERGENCES = [name for name in LOSSES if name != LABELS]
GOLDEN = load_file(Path(__file__).parent / "golden" / "response_losses.safetensors")
TEMPERATURES = sorted(float(name.split(".T")[1]) for name in GOLDEN if name.startswith("fwd_kl"))


def logits(seed: int, shape: tuple[int, int] = (5, 11), scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("loss", "key"), [(forward_kl, "fwd"), (reverse_kl, "rev")])
def test_values_and_gradients_are_the_reference_values(loss, key: str, temperature: float) -> None:
    suffix = f"T{temperature:g}"
    mask = GOLDEN["mask"].bool()
    student = GOLDEN["student_logits"].clone().requires_grad_()
    values = loss(student.flatten(0, 1), GOLDEN["teacher_logits"].flatten(0, 1), temperature=temperature)
    per_token = GOLDEN[f"{key}_kl_per_token.{suffix}"].flatten() * temperature**2
    assert torch.allclose(values, per_token, rtol=0, atol=1e-10)
    (values * mask.flatten()).sum().div(mask.sum()).backward()
    name = {"fwd": "grad_forward_kl", "rev": "grad_reverse_kl"}[key]
    assert torch.allclose(student.grad, GOLDEN[f"{name}.{suffix}"], rtol=0, atol=1e-10)


def test_forward_kl_weighs_by_the_teacher_and_reverse_kl_by_the_student() -> None:
    student, teacher = logits(0), logits(1)
    p, q = log_softmax(teacher.numpy(), axis=1), log_softmax(student.numpy(), axis=1)
    np.testing.assert_allclose(forward_kl(student, teacher).numpy(), (np.exp(p) * (p - q)).sum(1), atol=1e-12)
    np.testing.assert_allclose(reverse_kl(student, teacher).numpy(), (np.exp(q) * (q - p)).sum(1), atol=1e-12)


def test_cross_entropy_is_the_negative_log_probability_of_the_label() -> None:
    student, labels = logits(0), torch.tensor([0, 3, 10, 5, 5])
    expected = -log_softmax(student.numpy(), axis=1)[np.arange(5), labels.numpy()]
    np.testing.assert_allclose(cross_entropy(student, labels).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("name", DIVERGENCES)
@given(seed=st.integers(0, 1000), constant=st.floats(-50, 50), temperature=st.floats(0.2, 20))
@settings(deadline=None, max_examples=20)
def test_adding_a_constant_to_the_logits_changes_nothing(
    name: str, seed: int, constant: float, temperature: float
) -> None:
    student, teacher = logits(seed), logits(seed + 1)
    before = LOSSES[name](student, teacher, temperature=temperature)
    after = LOSSES[name](student + constant, teacher - constant, temperature=temperature)
    assert torch.allclose(before, after, atol=1e-9)
    assert (before >= 0).all()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_divergence_is_zero_between_equals_and_not_reduced(name: str) -> None:
    student = logits(0)
    values = LOSSES[name](student, student.clone(), temperature=2.0)
    assert values.shape == (5,)
    assert torch.allclose(values, torch.zeros_like(values), atol=1e-12)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
def test_gradient_is_finite_where_the_teacher_rules_an_outcome_out(name: str, temperature: float) -> None:
    student, teacher = logits(0).requires_grad_(), logits(1)
    teacher[:, 7:] = float("-inf")
    values = LOSSES[name](student, teacher, temperature=temperature)
    values.sum().backward()
    assert values.isfinite().all()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_analytic_and_the_numeric_gradient_agree(name: str) -> None:
    student, teacher = logits(0, (3, 5)).requires_grad_(), logits(1, (3, 5))
    assert torch.autograd.gradcheck(lambda s: LOSSES[name](s, teacher, temperature=2.0), (student,))


def test_forward_kl_takes_mass_away_from_what_the_teacher_rules_out() -> None:
    student, teacher = logits(0).requires_grad_(), logits(1)
    teacher[:, 7:] = float("-inf")
    forward_kl(student, teacher).sum().backward()
    assert (student.grad[:, 7:] > 0).all()


def test_reverse_kl_cannot_be_lowered_by_moving_mass_to_what_the_teacher_rules_out() -> None:
    student, teacher = logits(0), logits(1)
    teacher[:, 7:] = float("-inf")
    before = reverse_kl(student, teacher)
    student[:, 7:] += 10
    assert torch.allclose(before, reverse_kl(student, teacher), atol=1e-12)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradients_from_bf16_logits_are_within_one_percent_of_float64(name: str) -> None:
    student = logits(0, (64, 1000)).bfloat16()
    teacher = (student.double() + 0.05 * logits(1, (64, 1000))).bfloat16()

    def slope(dtype: torch.dtype) -> torch.Tensor:
        leaf = student.detach().to(dtype).requires_grad_()
        LOSSES[name](leaf, teacher.to(dtype)).sum().backward()
        return leaf.grad.double()

    exact = slope(torch.float64)
    assert (slope(torch.bfloat16) - exact).norm() / exact.norm() < 0.01

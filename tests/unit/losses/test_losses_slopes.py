from __future__ import annotations

import pytest
import torch

from stlm_kd.losses import GRADIENTS, LABELS, LOSSES, SPARSE_LOSSES, SPARSE_SLOPES, TemperedLogits
from tests.support.loss_checks import SLOPED, assert_bf16, assert_slope, case_name, logits, target_of

sloped = pytest.mark.parametrize(("name", "options"), SLOPED, ids=case_name)
taught = pytest.mark.parametrize(
    ("name", "options"), [case for case in SLOPED if case[0] != LABELS], ids=case_name
)
SOFTENED = [name for name in GRADIENTS if "temperature" in GRADIENTS.options(name)]


@pytest.mark.parametrize("name", list(GRADIENTS))
def test_an_analytic_gradient_has_the_options_of_its_loss(name: str) -> None:
    assert GRADIENTS.options(name) == LOSSES.options(name)


@pytest.mark.parametrize("name", list(SPARSE_LOSSES))
def test_a_loss_on_sparse_targets_has_the_options_of_the_loss(name: str) -> None:
    assert SPARSE_LOSSES.options(name) == LOSSES.options(name) == SPARSE_SLOPES.options(name)


@sloped
def test_the_analytic_gradient_is_that_of_autograd(name: str, options: dict[str, object]) -> None:
    assert_slope(LOSSES[name], GRADIENTS[name], options, name)


@taught
@pytest.mark.parametrize("allowed", [7, 1])
def test_so_it_is_where_the_teacher_rules_outcomes_out(
    name: str, options: dict[str, object], allowed: int
) -> None:
    teacher = logits(1, (6, 13))
    teacher[:, allowed:] = float("-inf")
    assert_slope(LOSSES[name], GRADIENTS[name], options, name, teacher)


@pytest.mark.parametrize("name", SOFTENED)
@pytest.mark.parametrize("temperature", [0.05, 20.0])
@pytest.mark.parametrize("allowed", [11, 7, 1])
def test_the_analytic_gradient_is_finite_at_extreme_temperatures(
    name: str, temperature: float, allowed: int
) -> None:
    student, teacher = (10 * logits(seed).float() for seed in (0, 1))
    teacher[:, allowed:] = float("-inf")
    values, slope = GRADIENTS[name](TemperedLogits(student), TemperedLogits(teacher), temperature=temperature)
    assert values.isfinite().all()
    assert slope.isfinite().all()


@sloped
def test_what_terms_share_is_not_written_to(name: str, options: dict[str, object]) -> None:
    student, target = TemperedLogits(logits(0)), target_of(name, 1)
    teacher = target if name == LABELS else TemperedLogits(target)
    temperature = options.get("temperature", 1.0)
    shared = [student.logits, student.log_probs(1.0), student.log_probs(temperature)]
    if isinstance(teacher, TemperedLogits):
        shared += [teacher.logits, teacher.log_probs(temperature)]
    before = [tensor.clone() for tensor in shared]
    _, slope = GRADIENTS[name](student, teacher, **options)
    slope.zero_()
    assert all(torch.equal(*pair) for pair in zip(shared, before, strict=True))


@taught
@pytest.mark.parametrize("noise", [0.5, 0.05, 0.005])
def test_analytic_gradients_from_bf16_logits_are_within_one_percent_of_float64(
    name: str, options: dict[str, object], noise: float
) -> None:
    assert_bf16(LOSSES[name], options, GRADIENTS[name], noise)

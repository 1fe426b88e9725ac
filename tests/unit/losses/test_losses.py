from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from stlm_kd.losses import (
    LABELS,
    LOSSES,
    cross_entropy,
    forward_kl,
    jensen_shannon,
    logit_mse,
    reverse_kl,
    skew_forward_kl,
)
from tests.support.loss_checks import (
    CASES,
    DIVERGENCE_CASES,
    FORMULAS,
    GOLDEN,
    TEMPERATURES,
    assert_bf16,
    assert_blind_to_constants,
    assert_formula,
    assert_reference,
    assert_ruled_out,
    assert_size_of_gradient,
    assert_zero_between_equals,
    case_name,
    logits,
    slope_of,
    target_of,
)

SOFTENED = [name for name in LOSSES if "temperature" in LOSSES.options(name)]
BLIND = [(name, options) for name, options in DIVERGENCE_CASES if name in SOFTENED or options.get("centred")]
cases = pytest.mark.parametrize(("name", "options"), CASES, ids=case_name)
divergence_cases = pytest.mark.parametrize(("name", "options"), DIVERGENCE_CASES, ids=case_name)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("loss", "key"), [(forward_kl, "fwd"), (reverse_kl, "rev")])
def test_values_and_gradients_are_the_reference_values(loss, key: str, temperature: float) -> None:
    assert_reference(loss, key, temperature)


def test_logit_mse_is_the_reference_value_over_the_number_of_outcomes() -> None:
    values = logit_mse(GOLDEN["student_logits"].flatten(0, 1), GOLDEN["teacher_logits"].flatten(0, 1))
    found = 23 * values[GOLDEN["mask"].flatten().bool()].mean()
    assert torch.allclose(found, GOLDEN["logit_mse.sum_vocab_mean_tokens"], rtol=0, atol=1e-10)


def test_cross_entropy_is_the_reference_value() -> None:
    labels = GOLDEN["labels"].flatten()
    counted = labels >= 0
    values = cross_entropy(GOLDEN["student_logits"].flatten(0, 1)[counted], labels[counted])
    expected = GOLDEN["cross_entropy.mean_over_labels_ge_0"]
    assert torch.allclose(values.mean(), expected, rtol=0, atol=1e-10)


def test_cross_entropy_is_the_negative_log_probability_of_the_label() -> None:
    student, labels = logits(0), torch.tensor([0, 3, 10, 5, 5])
    expected = torch.from_numpy(-log_softmax(student.numpy(), axis=1))[range(5), labels]
    assert torch.allclose(cross_entropy(student, labels), expected, rtol=0, atol=1e-12)


def test_labels_that_are_numbers_are_missed_by_the_square_of_the_difference() -> None:
    student, labels = torch.tensor([[1.5], [-2.0], [0.25]]), torch.tensor([1.0, 1.0, 0.25])
    assert LOSSES[LABELS](student, labels).tolist() == [0.25, 9.0, 0.0]
    assert torch.equal(LOSSES[LABELS](student.bfloat16(), labels), LOSSES[LABELS](student, labels))
    classes = torch.tensor([1, 0, 1])
    assert torch.equal(
        LOSSES[LABELS](student.repeat(1, 2), classes), cross_entropy(student.repeat(1, 2), classes)
    )


@pytest.mark.parametrize("name", list(FORMULAS))
@given(seed=st.integers(0, 1000), temperature=st.floats(0.3, 20))
@settings(deadline=None, max_examples=20)
def test_values_are_those_of_the_formula_on_probabilities(name: str, seed: int, temperature: float) -> None:
    assert_formula(name, LOSSES[name], seed, temperature)


def test_every_softened_loss_has_a_formula_to_be_compared_with() -> None:
    assert set(SOFTENED) == set(FORMULAS)


@pytest.mark.parametrize(("beta", "end"), [(0.0, forward_kl), (1.0, reverse_kl)])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_jensen_shannon_ends_in_the_two_kl_divergences(beta: float, end, temperature: float) -> None:
    student, teacher = logits(0), logits(1)
    options = {"temperature": temperature}
    expected = end(student, teacher, **options)
    assert torch.equal(jensen_shannon(student, teacher, beta=beta, **options), expected)
    near = abs(beta - 1e-8)
    towards = jensen_shannon(student, teacher, beta=near, **options) / 1e-8
    assert torch.allclose(towards, expected, rtol=1e-3)


@given(seed=st.integers(0, 1000), beta=st.floats(0.01, 0.99))
@settings(deadline=None, max_examples=20)
def test_jensen_shannon_is_symmetric_when_the_sides_and_their_shares_change_places(
    seed: int, beta: float
) -> None:
    student, teacher = logits(seed), logits(seed + 1)
    one, other = jensen_shannon(student, teacher, beta=beta), jensen_shannon(teacher, student, beta=1 - beta)
    assert torch.allclose(one, other, rtol=0, atol=1e-11)
    entropy = -(beta * torch.tensor(beta).log() + (1 - beta) * torch.tensor(1 - beta).log())
    assert (one <= entropy + 1e-6).all()


@given(seed=st.integers(0, 1000), alpha=st.floats(0, 0.99))
@settings(deadline=None, max_examples=20)
def test_a_teachers_share_of_the_mixture_lowers_the_skewed_divergence(seed: int, alpha: float) -> None:
    student, teacher = logits(seed), logits(seed + 1)
    values = skew_forward_kl(student, teacher, alpha=alpha)
    assert (values <= (1 - alpha) * forward_kl(student, teacher) + 1e-10).all()
    assert (values <= -torch.tensor(alpha, dtype=torch.float64).log() + 1e-10).all()
    plain = forward_kl(student, teacher)
    assert torch.allclose(skew_forward_kl(student, teacher, alpha=0.0), plain, atol=1e-12)


def test_a_centred_logit_mse_is_twice_the_limit_of_kl_at_high_temperature() -> None:
    student, teacher = logits(0), logits(1)
    for kl in (forward_kl, reverse_kl):
        limit = kl(student, teacher, temperature=1e4)
        assert torch.allclose(logit_mse(student, teacher, centred=True), 2 * limit, rtol=1e-2)


def test_a_constant_added_to_the_student_counts_in_a_logit_mse_that_is_not_centred() -> None:
    teacher = logits(1)
    assert torch.allclose(logit_mse(teacher + 2, teacher), torch.full((5,), 4.0, dtype=torch.float64))


@pytest.mark.parametrize("name", SOFTENED)
def test_without_scaling_a_loss_is_divided_by_the_temperature_squared(name: str) -> None:
    student, teacher = logits(0), logits(1)
    scaled = LOSSES[name](student, teacher, temperature=3.0)
    plain = LOSSES[name](student, teacher, temperature=3.0, temperature_scaling="none")
    assert torch.allclose(scaled, 9 * plain, rtol=1e-12)


@pytest.mark.parametrize("name", SOFTENED)
def test_the_gradients_size_does_not_depend_on_high_temperatures(name: str) -> None:
    assert_size_of_gradient(LOSSES[name])


@pytest.mark.parametrize(("name", "options"), BLIND, ids=case_name)
def test_adding_a_constant_to_the_logits_changes_nothing(name: str, options: dict[str, object]) -> None:
    assert_blind_to_constants(LOSSES[name], options)


@divergence_cases
def test_a_divergence_is_zero_between_equals_and_not_reduced(name: str, options: dict[str, object]) -> None:
    assert_zero_between_equals(LOSSES[name], options)


@cases
def test_the_gradient_is_the_numeric_one(name: str, options: dict[str, object]) -> None:
    student, target = logits(0, (3, 5)).requires_grad_(), target_of(name, 1, (3, 5))
    assert torch.autograd.gradcheck(lambda s: LOSSES[name](s, target, **options), (student,))


@cases
def test_losses_in_half_precision_are_float32(name: str, options: dict[str, object]) -> None:
    target = target_of(name, 1)
    target = target if name == LABELS else target.bfloat16()
    assert LOSSES[name](logits(0).bfloat16(), target, **options).dtype == torch.float32


@divergence_cases
def test_a_ruled_out_outcome_is_next_to_impossible_or_no_outcome(
    name: str, options: dict[str, object]
) -> None:
    assert_ruled_out(LOSSES[name], options)


@pytest.mark.parametrize("name", SOFTENED)
@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("allowed", [11, 7, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_finite_where_the_teacher_rules_outcomes_out(
    name: str, temperature: float, allowed: int, dtype: torch.dtype
) -> None:
    student, teacher = (10 * logits(seed).to(dtype) for seed in (0, 1))
    teacher[:, allowed:] = float("-inf")
    options = {"temperature": temperature}
    assert LOSSES[name](student, teacher, **options).isfinite().all()
    assert slope_of(LOSSES[name], student, teacher, options).isfinite().all()


@pytest.mark.parametrize("loss", [forward_kl, jensen_shannon, skew_forward_kl])
def test_mass_is_taken_away_from_what_the_teacher_rules_out(loss) -> None:
    student, teacher = logits(0), logits(1)
    teacher[:, 7:] = float("-inf")
    assert (slope_of(loss, student, teacher, {})[:, 7:] > 0).all()


@pytest.mark.parametrize("loss", [reverse_kl, logit_mse])
def test_what_the_teacher_rules_out_does_not_count(loss) -> None:
    student, teacher = logits(0), logits(1)
    teacher[:, 7:] = float("-inf")
    before = loss(student, teacher)
    student[:, 7:] += 10
    assert torch.allclose(before, loss(student, teacher), atol=1e-12)


@divergence_cases
@pytest.mark.parametrize("noise", [0.5, 0.05, 0.005])
def test_gradients_from_bf16_logits_are_within_one_percent_of_float64(
    name: str, options: dict[str, object], noise: float
) -> None:
    assert_bf16(LOSSES[name], options, None, noise)

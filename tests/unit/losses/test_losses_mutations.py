"""The checks of the losses, called with losses that are wrong in ways that others were: each must fail."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from stlm_kd.losses import GRADIENTS, TemperedLogits, forward_kl, jensen_shannon, reverse_kl, skew_forward_kl
from tests.support.loss_checks import (
    assert_blind_to_constants,
    assert_formula,
    assert_reference,
    assert_ruled_out,
    assert_size_of_gradient,
    assert_slope,
    assert_zero_between_equals,
)


def unscaled(student: Tensor, teacher: Tensor, /, *, temperature: float = 1.0) -> Tensor:
    """The factor temperature squared was dropped."""
    return forward_kl(student, teacher, temperature=temperature, temperature_scaling="none")


def scaled_once(student: Tensor, teacher: Tensor, /, *, temperature: float = 1.0) -> Tensor:
    return unscaled(student, teacher, temperature=temperature) * temperature


def logit_of_zero(student: Tensor, teacher: Tensor, /, *, temperature: float = 1.0) -> Tensor:
    """Padded entries take probability."""
    return forward_kl(student, teacher.masked_fill(teacher.isneginf(), 0.0), temperature=temperature)


def not_guarded(student: Tensor, teacher: Tensor, /, *, temperature: float = 1.0) -> Tensor:
    """0 · log 0 is NaN."""
    p, q = (functional.log_softmax(x / temperature, -1) for x in (teacher, student))
    return temperature**2 * (p.exp() * (p - q)).sum(-1)


def softened_on_one_side(student: Tensor, teacher: Tensor, /, *, temperature: float = 1.0) -> Tensor:
    return forward_kl(student * temperature, teacher, temperature=temperature)


def cross_entropy_of_teacher(student: Tensor, teacher: Tensor, /, *, temperature: float = 1.0) -> Tensor:
    """The teacher's entropy was left in."""
    p, q = (functional.log_softmax(x / temperature, -1) for x in (teacher, student))
    return temperature**2 * -(p.exp() * q).sum(-1)


def swapped_shares(student: Tensor, teacher: Tensor, /, *, temperature: float = 1.0) -> Tensor:
    """The teacher's share of the mixture was taken for the student's."""
    return skew_forward_kl(student, teacher, alpha=0.9, temperature=temperature)


def without_normaliser(student: Tensor, teacher: Tensor, /, *, temperature: float = 1.0) -> Tensor:
    return reverse_kl(student, teacher, temperature=temperature) + student.sum(-1) ** 2


def other_end(student: Tensor, teacher: Tensor, /, *, temperature: float = 1.0) -> Tensor:
    return jensen_shannon(student, teacher, beta=1.0, temperature=temperature)


MUTANTS: dict[str, Callable[[], None]] = {
    "forward KL turned round": lambda: assert_reference(reverse_kl, "fwd", 1.0),
    "reverse KL turned round": lambda: assert_reference(forward_kl, "rev", 2.0),
    "forward KL turned round, by formula": lambda: assert_formula("forward_kl", reverse_kl, 0, 1.0),
    "no temperature squared": lambda: assert_reference(unscaled, "fwd", 2.0),
    "no temperature squared, by size": lambda: assert_size_of_gradient(unscaled),
    "temperature once": lambda: assert_size_of_gradient(scaled_once),
    "one side softened": lambda: assert_reference(softened_on_one_side, "fwd", 2.0),
    "beta at the other end": lambda: assert_reference(other_end, "fwd", 1.0),
    "beta swapped": lambda: assert_formula("jensen_shannon", partial(jensen_shannon, beta=0.4), 0, 1.0),
    "alpha swapped": lambda: assert_formula("skew_forward_kl", swapped_shares, 0, 1.0),
    "padding at logit 0": lambda: assert_ruled_out(logit_of_zero, {}),
    "padding gives NaN": lambda: assert_ruled_out(not_guarded, {}),
    "entropy left in": lambda: assert_zero_between_equals(cross_entropy_of_teacher, {}),
    "not blind to constants": lambda: assert_blind_to_constants(without_normaliser, {}),
}


@pytest.mark.parametrize("mutant", list(MUTANTS))
def test_a_wrong_loss_is_noticed(mutant: str) -> None:
    with pytest.raises(AssertionError):
        MUTANTS[mutant]()


@pytest.mark.parametrize("name", [name for name in GRADIENTS if "temperature" in GRADIENTS.options(name)])
def test_a_wrong_analytic_gradient_is_noticed(name: str) -> None:
    loss = {
        "forward_kl": forward_kl,
        "reverse_kl": reverse_kl,
        "jensen_shannon": jensen_shannon,
        "skew_forward_kl": skew_forward_kl,
    }[name]

    def forgets_the_temperature(
        student: TemperedLogits, teacher: TemperedLogits, /, *, temperature: float
    ) -> tuple[Tensor, Tensor]:
        values, slope = GRADIENTS[name](student, teacher, temperature=temperature)
        return values, slope * temperature

    def points_away(
        student: TemperedLogits, teacher: TemperedLogits, /, *, temperature: float
    ) -> tuple[Tensor, Tensor]:
        values, slope = GRADIENTS[name](student, teacher, temperature=temperature)
        return values, -slope

    options = {"temperature": 2.0}
    assert_slope(loss, GRADIENTS[name], options, name)
    for wrong in (forgets_the_temperature, points_away):
        with pytest.raises(AssertionError):
            assert_slope(loss, wrong, options, name)


def test_the_checks_pass_the_right_losses() -> None:
    assert_reference(forward_kl, "fwd", 2.0)
    assert_reference(reverse_kl, "rev", 2.0)
    assert_ruled_out(forward_kl, {})
    assert_size_of_gradient(forward_kl)
    assert_zero_between_equals(forward_kl, {})
    assert_blind_to_constants(forward_kl, {})
    assert torch.is_tensor(unscaled(torch.zeros(1, 2), torch.zeros(1, 2)))

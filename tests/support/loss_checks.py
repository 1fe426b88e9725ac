"""Checks of response losses as functions of the loss, so that they can be called with wrong ones too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args, get_origin

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from safetensors.torch import load_file
from scipy.special import log_softmax
from torch import Tensor

from stlm_kd.losses import GRADIENTS, LABELS, LOSSES, Loss, LossGradient, TemperedLogits, TopKTail
from tests.support.paths import GOLDEN_FOLDER

GOLDEN = load_file(GOLDEN_FOLDER / "responses.safetensors")
TEMPERATURES = sorted(float(name.split(".T")[1]) for name in GOLDEN if name.startswith("fwd_kl"))
DIVERGENCES = [name for name in LOSSES if name != LABELS]
Options = Mapping[str, Any]


def estimate(target: TopKTail, outcomes: int) -> Tensor:
    """The probabilities that a sparse target's entries stand for, summed by outcome, (N, outcomes)."""
    masses = target.masses()
    return masses.new_zeros(len(masses), outcomes).scatter_add_(-1, target.ids, masses)


def variants(name: str) -> list[Options]:
    """Options of a loss in the table: its defaults, then each option at other values, ends of bounds too."""
    options = LOSSES.options(name)
    found: list[Options] = [{}]
    for option, (annotation, _) in options.items():
        found += [{option: value} for value in _values(annotation)]
    if "temperature_scaling" in options:
        found.append({"temperature": 3.0, "temperature_scaling": "none"})
    return found


def _values(annotation: Any) -> Iterable[Any]:
    if annotation is bool:
        return (False, True)
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    bounds = getattr(annotation, "__metadata__", ())
    ends = [bound.ge for bound in bounds if isinstance(bound, Ge)]
    ends += [bound.le for bound in bounds if isinstance(bound, Le)]
    return [*ends, *([0.5, 3.0] if any(isinstance(bound, Gt) for bound in bounds) else [0.3])]


CASES = [(name, options) for name in LOSSES for options in variants(name)]
DIVERGENCE_CASES = [(name, options) for name, options in CASES if name != LABELS]


def case_name(value: object) -> str:
    return ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def logits(seed: int, shape: tuple[int, int] = (5, 11), scale: float = 3.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def target_of(name: str, seed: int, shape: tuple[int, int] = (5, 11)) -> Tensor:
    """Teacher's logits, or for the loss on labels these."""
    if name != LABELS:
        return logits(seed, shape)
    return torch.randint(0, shape[1], shape[:1], generator=torch.Generator().manual_seed(seed))


def slope_of(loss: Loss, student: Tensor, target: Tensor, options: Options) -> Tensor:
    leaf = student.detach().clone().requires_grad_()
    loss(leaf, target, **options).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def assert_reference(loss: Loss, key: Literal["fwd", "rev"], temperature: float) -> None:
    """Values per token, their mean and its gradient are the reference's."""
    suffix, mask = f"T{temperature:g}", GOLDEN["mask"].bool()
    student = GOLDEN["student_logits"].clone().requires_grad_()
    values = loss(student.flatten(0, 1), GOLDEN["teacher_logits"].flatten(0, 1), temperature=temperature)
    per_token = GOLDEN[f"{key}_kl_per_token.{suffix}"].flatten() * temperature**2
    assert torch.allclose(values, per_token, rtol=0, atol=1e-10)
    mean = (values * mask.flatten()).sum().div(mask.sum())
    name = {"fwd": "forward_kl", "rev": "reverse_kl"}[key]
    expected = GOLDEN[f"{name}.{suffix}.mean_over_masked_tokens_times_T2"]
    assert torch.allclose(mean, expected, rtol=0, atol=1e-10)
    mean.backward()
    assert student.grad is not None
    assert torch.allclose(student.grad, GOLDEN[f"grad_{name}.{suffix}"], rtol=0, atol=1e-10)


def assert_formula(name: str, loss: Loss, seed: int, temperature: float) -> None:
    """Values are those of plain NumPy, which knows probabilities only."""
    student, teacher = logits(seed), logits(seed + 1)
    q = np.exp(log_softmax(student.numpy() / temperature, axis=1))
    p = np.exp(log_softmax(teacher.numpy() / temperature, axis=1))
    values = loss(student, teacher, temperature=temperature).numpy()
    np.testing.assert_allclose(values, temperature**2 * FORMULAS[name](p, q), rtol=1e-9, atol=1e-10)


def _kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * np.log(p / q)).sum(1)


FORMULAS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "forward_kl": _kl,
    "reverse_kl": lambda p, q: _kl(q, p),
    "jensen_shannon": lambda p, q: (_kl(p, (p + q) / 2) + _kl(q, (p + q) / 2)) / 2,
    "skew_forward_kl": lambda p, q: _kl(p, 0.1 * p + 0.9 * q),
}
"""At the defaults, of the teacher's and the student's probabilities."""


def assert_size_of_gradient(loss: Loss) -> None:
    """At high temperatures the gradient's size no longer depends on the temperature."""
    student, teacher = logits(0), logits(1)
    low, high = (slope_of(loss, student, teacher, {"temperature": t}).norm() for t in (50.0, 200.0))
    assert 0.9 < float(high / low) < 1.1


def assert_blind_to_constants(loss: Loss, options: Options) -> None:
    """Adding a constant to all logits of a side changes neither value nor gradient."""
    student, teacher = logits(0), logits(1)
    for own, other in ((13.0, 0.0), (0.0, -40.0)):
        shifted = loss(student + own, teacher + other, **options)
        assert torch.allclose(shifted, loss(student, teacher, **options), rtol=0, atol=1e-9)
        slopes = [
            slope_of(loss, s, t, options) for s, t in ((student, teacher), (student + own, teacher + other))
        ]
        assert torch.allclose(*slopes, rtol=0, atol=1e-9)


def assert_zero_between_equals(loss: Loss, options: Options) -> None:
    """Equals are at the minimum: value and gradient are 0, and elsewhere the value is not below."""
    student = logits(0)
    values = loss(student, student.clone(), **options)
    assert values.shape == (5,)
    assert torch.allclose(values, torch.zeros_like(values), atol=1e-12)
    assert slope_of(loss, student, student.clone(), options).abs().max() < 1e-12
    assert (loss(student, logits(1), **options) >= 0).all()


def assert_ruled_out(loss: Loss, options: Options) -> None:
    """Ruled out is the limit of next to impossible, or as if there were no such outcome; and finite."""
    student, teacher = logits(0), logits(1)
    teacher[:, 7:] = float("-inf")
    unlikely = teacher.masked_fill(teacher.isneginf(), -1e4)
    values = loss(student, teacher, **options)
    assert values.isfinite().all()
    assert slope_of(loss, student, teacher, options).isfinite().all()
    either = (loss(student, unlikely, **options), loss(student[:, :7], teacher[:, :7], **options))
    assert any(torch.allclose(values, one, rtol=0, atol=1e-10) for one in either)


def assert_slope(
    loss: Loss, slope: LossGradient, options: Options, name: str, teacher: Tensor | None = None
) -> None:
    """The analytic gradient and its values are autograd's on the plain loss."""
    student, target = logits(0, (6, 13)), target_of(name, 1, (6, 13)) if teacher is None else teacher
    softened = target if name == LABELS else TemperedLogits(target.clone())
    values, found = slope(TemperedLogits(student.clone()), softened, **options)
    assert torch.allclose(values, loss(student, target, **options), rtol=0, atol=1e-10)
    assert torch.allclose(found, slope_of(loss, student, target, options), rtol=0, atol=1e-10)


def assert_bf16(loss: Loss, options: Options, slope: LossGradient | None, noise: float) -> None:
    """From the same bf16 logits, the gradient is within 1 % of float64's."""
    student = logits(0, (64, 1000)).bfloat16()
    teacher = (student.double() + noise * logits(1, (64, 1000))).bfloat16()
    exact = slope_of(loss, student.double(), teacher.double(), options)
    if slope is None:
        found = slope_of(loss, student, teacher, options)
    else:
        found = slope(TemperedLogits(student.float()), TemperedLogits(teacher.float()), **options)[1]
    assert (found.double() - exact).norm() / exact.norm() < 0.01


SLOPED = [(name, options) for name, options in CASES if name in GRADIENTS]

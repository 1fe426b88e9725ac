"""Registries of losses and of their analytic gradients, and the types of their common options."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar

from annotated_types import Gt

from stlm_kd.errors import ExtensionError, listed
from stlm_kd.lazy import torch
from stlm_kd.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


F = TypeVar("F", bound=Callable[..., Any])

Temperature = Annotated[float, Gt(0)]
"""The type of an option: a number above 0 by which logits are divided before the softmax."""

TemperatureScaling = Literal["t2", "none"]
"""``t2`` multiplies a loss by the squared temperature, ``none`` does not scale it."""

Loss: TypeAlias = "Callable[..., Tensor]"
"""``loss(student_NC, target, /, **options)`` → one value per token (N,), not reduced.

The target is the teacher's logits (N, C), or for ``labels`` the label of each token (N,).
"""

LossGradient: TypeAlias = "Callable[..., tuple[Tensor, Tensor]]"
"""``slope(student, target, /, **options)`` → the loss's values (N,) and their gradient (N, C).

The gradient is with respect to the student's logits. Student and teacher are ``TemperedLogits``, labels a
plain tensor; options and defaults are the loss's. The caller may overwrite the gradient. A loss without an
analytic gradient is differentiated by autograd.
"""


def _fault(found: Any, arguments: tuple[Any, ...]) -> str | None:
    """What is wrong with the values of a loss."""
    student, expected = arguments[0], tuple(arguments[0].shape[:-1])
    if not isinstance(found, torch.Tensor) or found.shape != expected:
        shape = f"shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
        return f"{shape} found; expected one value per token, shape {expected}"
    if student.requires_grad and torch.is_grad_enabled() and not found.requires_grad:
        return "its values have no gradient; compute them from the student's tensor without detach or numpy"
    return None


_KEYS = ("loss", "weight", "teacher", "on", "sites", "projection")

LOSSES: Registry[Loss] = Registry("loss", 2, reserved=_KEYS, fault=_fault)

STATE_LOSSES: Registry[Loss] = Registry(
    "loss of hidden states", 2, shares=LOSSES, reserved=_KEYS, fault=_fault
)
"""``loss(student_ND, teacher_ND, /, **options)`` → one value per token (N,)."""

MAP_LOSSES: Registry[Loss] = Registry(
    "loss of attention maps", 2, shares=LOSSES, reserved=_KEYS, fault=_fault
)
"""``loss(student_NK, teacher_NK, /, **options)`` of log-probabilities → one value per query (N,)."""

GRADIENTS: Registry[LossGradient] = Registry("analytic gradient", 2)

SPARSE_LOSSES: Registry[Loss] = Registry("loss on sparse targets", 2)
"""Losses that are linear in the teacher's probabilities, for which a sampled target is unbiased. The target
is a ``TopKTail`` or ``TargetMixture`` instead of logits; names and options are those in ``LOSSES``."""

SPARSE_SLOPES: Registry[LossGradient] = Registry("analytic gradient on sparse targets", 2)

LABELS = "labels"
"""The loss whose target is the data's labels instead of a teacher."""


_TABLES = {"logits": LOSSES, "hidden states": STATE_LOSSES, "attention maps": MAP_LOSSES}


def register_loss(
    name: str, *, compares: Literal["logits", "hidden states", "attention maps"] = "logits"
) -> Callable[[F], F]:
    """Register a function as a loss per token, which recipes name in ``objectives``.

    The function is ``loss(student_NC, teacher_NC, /, **options)`` → one value per token, shape (N,), neither
    masked nor reduced; it must be differentiable by autograd with respect to its first argument. Its
    keyword-only arguments are its options; each needs a type. By ``compares``, the two tensors are

    - logits, (N, C) over C tokens or classes, in float32 or better. The teacher's are -inf for a class that
      it rules out. With an option ``temperature``, several teachers are combined at that temperature.
    - hidden states, (N, D), the student's projected to the teacher's width.
    - attention maps, (N, K) log-probabilities over keys, -inf at masked keys.

    Args:
        name: Its name in recipes, a new one.
        compares: The outputs of student and teacher that it compares.

    Raises:
        ExtensionError: The name is taken, or the function has another signature.

    >>> @register_loss("total_variation")
    ... def total_variation(student_NC, teacher_NC, /, *, temperature: Temperature = 1.0):
    ...     student_NC, teacher_NC = ((x / temperature).softmax(-1) for x in (student_NC, teacher_NC))
    ...     return (student_NC - teacher_NC).abs().sum(-1) / 2
    >>> import torch
    >>> LOSSES["total_variation"](torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, -torch.inf]]))
    tensor([0.5000])
    """
    if compares not in _TABLES:
        raise ExtensionError(f"loss {name}: compares={compares!r} found; expected {listed(_TABLES)}")
    return _TABLES[compares].register(name)  # type: ignore[return-value]  # any function is a Loss


def temperature_factor(temperature: float, scaling: TemperatureScaling) -> float:
    """Factor of a loss at a temperature."""
    return temperature**2 if scaling == "t2" else 1.0

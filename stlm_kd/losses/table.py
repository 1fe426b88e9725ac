"""Registries of losses and of their analytic gradients, and the types of their common options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from annotated_types import Gt
from torch import Tensor

from stlm_kd.registry import Registry

Temperature = Annotated[float, Gt(0)]

TemperatureScaling = Literal["t2", "none"]
"""``t2`` multiplies a loss by the squared temperature, ``none`` does not scale it."""

Loss = Callable[..., Tensor]
"""``loss(student_NC, target, /, **options)`` → one value per token (N,), not reduced.

The target is the teacher's logits (N, C), or for ``labels`` the label of each token (N,).
"""

LossGradient = Callable[..., tuple[Tensor, Tensor]]
"""``slope(student, target, /, **options)`` → the loss's values (N,) and their gradient (N, C).

The gradient is with respect to the student's logits. Student and teacher are ``TemperedLogits``, labels a
plain tensor; options and defaults are the loss's. The caller may overwrite the gradient. A loss without an
analytic gradient is differentiated by autograd.
"""

LOSSES: Registry[Loss] = Registry("loss")

GRADIENTS: Registry[LossGradient] = Registry("analytic gradient")

SPARSE_LOSSES: Registry[Loss] = Registry("loss on sparse targets")
"""Losses that are linear in the teacher's probabilities, for which a sampled target is unbiased. The target
is a ``TopKTail`` or ``TargetMixture`` instead of logits; names and options are those in ``LOSSES``."""

SPARSE_SLOPES: Registry[LossGradient] = Registry("analytic gradient on sparse targets")

LABELS = "labels"
"""The loss whose target is the data's labels instead of a teacher."""


def temperature_factor(temperature: float, scaling: TemperatureScaling) -> float:
    """Factor of a loss at a temperature."""
    return temperature**2 if scaling == "t2" else 1.0

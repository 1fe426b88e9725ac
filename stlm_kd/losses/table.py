"""The tables of losses and of their analytic gradients, and the types of their common options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from annotated_types import Gt
from torch import Tensor

from stlm_kd.registry import Registry

Temperature = Annotated[float, Gt(0)]

TemperatureScaling = Literal["t2", "none"]
"""``t2`` multiplies a loss by its temperature squared, ``none`` leaves it as it is."""

Loss = Callable[..., Tensor]
"""``loss(student_NC, target, /, **options)`` → one value per token (N,), not reduced.

The target is a teacher's logits (N, C), or for ``labels`` the label of each token (N,).
"""

LossGradient = Callable[..., tuple[Tensor, Tensor]]
"""``slope(student, target, /, **options)`` → the loss's values (N,) and their derivative (N, C).

The derivative is by the student's logits. Student and teacher come as ``TemperedLogits``, labels as they are;
the options and their defaults are the loss's. The derivative is the caller's to write to. A loss without one
is differentiated by autograd.
"""

LOSSES: Registry[Loss] = Registry("loss")

GRADIENTS: Registry[LossGradient] = Registry("analytic gradient")

SPARSE_LOSSES: Registry[Loss] = Registry("loss on sparse targets")
"""Losses linear in the teacher's probabilities, so that a sampled target estimates them without bias. The
target is a ``Sparse`` in place of logits; names and options are those in ``LOSSES``."""

SPARSE_SLOPES: Registry[LossGradient] = Registry("analytic gradient on sparse targets")

LABELS = "labels"
"""The one loss whose target is the data's labels and not a teacher."""


def temperature_factor(temperature: float, scaling: TemperatureScaling) -> float:
    """What a loss at the temperature is multiplied by."""
    return temperature**2 if scaling == "t2" else 1.0

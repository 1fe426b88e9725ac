"""Divergences between the teacher's and the student's distribution at each token.

All are in nats and use a temperature. With ``temperature_scaling`` ``t2`` they are multiplied by its square,
which keeps the gradient's size independent of the temperature (Hinton et al., "Distilling the Knowledge in a
Neural Network", 2015, section 2). A teacher's logit of -inf marks a class that it rules out, such as a padded
vocabulary entry.

Shapes: N tokens, C classes. Every function returns one value per token, (N,), not reduced.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Le, Lt

from stlm_kd.lazy import functional, torch
from stlm_kd.losses.precision import at_least_float32
from stlm_kd.losses.table import LOSSES, Temperature, TemperatureScaling, temperature_factor

if TYPE_CHECKING:
    from torch import Tensor


TeacherShare = Annotated[float, Ge(0), Le(1)]

Skew = Annotated[float, Ge(0), Lt(1)]


@LOSSES.register("forward_kl")
def forward_kl(
    student_NC: Tensor,
    teacher_NC: Tensor,
    /,
    *,
    temperature: Temperature = 1.0,
    temperature_scaling: TemperatureScaling = "t2",
) -> Tensor:
    """KL(teacher || student) at each token, in nats.

    Mode-covering: the student must cover all classes that the teacher considers possible. For the
    mode-seeking direction see ``reverse_kl``.

    Args:
        student_NC: Student logits, shape (N, C).
        teacher_NC: Teacher logits over the same classes, shape (N, C). A class at -inf has probability 0; the
            loss reduces the student's probability of it.
        temperature: Temperature of both distributions.
        temperature_scaling: ``t2`` multiplies by the temperature squared.
    """
    student_log_NC, teacher_log_NC = _softened(student_NC, temperature), _softened(teacher_NC, temperature)
    return temperature_factor(temperature, temperature_scaling) * _kl(teacher_log_NC, student_log_NC)


@LOSSES.register("reverse_kl")
def reverse_kl(
    student_NC: Tensor,
    teacher_NC: Tensor,
    /,
    *,
    temperature: Temperature = 1.0,
    temperature_scaling: TemperatureScaling = "t2",
) -> Tensor:
    """KL(student || teacher) at each token, in nats.

    Mode-seeking: the student stays within the classes that the teacher considers likely (Gu et al.,
    "MiniLLM", 2024). Classes that the teacher rules out would make the divergence infinite. The student's
    distribution is therefore conditioned on the remaining classes; the loss does not affect the probability
    of the others.

    Args:
        student_NC: Student logits, shape (N, C).
        teacher_NC: Teacher logits over the same classes, shape (N, C); -inf marks a class that is ruled out.
        temperature: Temperature of both distributions.
        temperature_scaling: ``t2`` multiplies by the temperature squared.
    """
    teacher_log_NC = _softened(teacher_NC, temperature)
    allowed_NC = student_NC.masked_fill(teacher_log_NC.isneginf(), -torch.inf)
    student_log_NC = _softened(allowed_NC, temperature)
    return temperature_factor(temperature, temperature_scaling) * _kl(student_log_NC, teacher_log_NC)


@LOSSES.register("jensen_shannon")
def jensen_shannon(
    student_NC: Tensor,
    teacher_NC: Tensor,
    /,
    *,
    beta: TeacherShare = 0.5,
    temperature: Temperature = 1.0,
    temperature_scaling: TemperatureScaling = "t2",
) -> Tensor:
    """Generalised Jensen-Shannon divergence at each token, in nats.

    beta · KL(teacher || m) + (1 - beta) · KL(student || m) with the mixture m = beta · teacher + (1 - beta) ·
    student (GKD, Agarwal et al., "On-Policy Distillation of Language Models", 2024, equation 1). It is
    bounded, unlike the KL divergences. The equation vanishes at beta 0 and 1; as in TRL, these are replaced
    by the limits of the divergence divided by beta (forward KL, at 0) or by 1 - beta (reverse KL, at 1).
    Values near and at these ends therefore differ in scale.

    Args:
        student_NC: Student logits, shape (N, C).
        teacher_NC: Teacher logits over the same classes, shape (N, C). The loss reduces the student's
            probability of a class at -inf; at beta 1 it ignores the class, as ``reverse_kl`` does.
        beta: The teacher's weight in the mixture; 0 is ``forward_kl``, 1 is ``reverse_kl``.
        temperature: Temperature of both distributions.
        temperature_scaling: ``t2`` multiplies by the temperature squared.
    """
    if beta in (0, 1):
        end = reverse_kl if beta else forward_kl
        return end(student_NC, teacher_NC, temperature=temperature, temperature_scaling=temperature_scaling)
    student_log_NC, teacher_log_NC = _softened(student_NC, temperature), _softened(teacher_NC, temperature)
    mixed_log_NC = torch.logaddexp(teacher_log_NC + math.log(beta), student_log_NC + math.log1p(-beta))
    divergence_N = beta * _kl(teacher_log_NC, mixed_log_NC) + (1 - beta) * _kl(student_log_NC, mixed_log_NC)
    return temperature_factor(temperature, temperature_scaling) * divergence_N


@LOSSES.register("skew_forward_kl")
def skew_forward_kl(
    student_NC: Tensor,
    teacher_NC: Tensor,
    /,
    *,
    alpha: Skew = 0.1,
    temperature: Temperature = 1.0,
    temperature_scaling: TemperatureScaling = "t2",
) -> Tensor:
    """KL(teacher || alpha · teacher + (1 - alpha) · student) at each token, in nats.

    The teacher's weight bounds the gradient where the student's probability is almost 0 (Ko et al.,
    "DistiLLM", 2024, section 3.1).

    Args:
        student_NC: Student logits, shape (N, C).
        teacher_NC: Teacher logits over the same classes, shape (N, C). A class at -inf has probability 0; the
            loss reduces the student's probability of it.
        alpha: The teacher's weight in the mixture; at 0 this is ``forward_kl``.
        temperature: Temperature of both distributions.
        temperature_scaling: ``t2`` multiplies by the temperature squared.
    """
    student_log_NC, teacher_log_NC = _softened(student_NC, temperature), _softened(teacher_NC, temperature)
    log_alpha = math.log(alpha) if alpha else -math.inf
    mixed_log_NC = torch.logaddexp(teacher_log_NC + log_alpha, student_log_NC + math.log1p(-alpha))
    return temperature_factor(temperature, temperature_scaling) * _kl(teacher_log_NC, mixed_log_NC)


def _softened(logits_NC: Tensor, temperature: float) -> Tensor:
    return functional.log_softmax(at_least_float32(logits_NC) / temperature, dim=-1)


def _kl(log_NC: Tensor, other_log_NC: Tensor) -> Tensor:
    """Σ p (log p - log q), with 0 for classes of p = 0."""
    ratio_NC = (log_NC - other_log_NC).masked_fill(log_NC.isneginf(), 0.0)
    return (log_NC.exp() * ratio_NC).sum(-1)

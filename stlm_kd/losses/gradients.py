"""Analytic gradients of losses with respect to the student's logits, for large vocabularies.

With p the teacher's and q the student's probabilities at temperature T, and the unscaled loss f, the
derivative by a logit is 1/T · q_j (f'_j - Σ q f'), where f'_j is the derivative by q_j.

Shapes: N tokens, C classes. Tensors of (N, C) are large, so they are few and overwritten after use.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from stlm_kd.lazy import functional, torch
from stlm_kd.losses.divergences import Skew, TeacherShare
from stlm_kd.losses.logit_mse import logit_gap
from stlm_kd.losses.table import GRADIENTS, LABELS, LOSSES, LossGradient, temperature_factor
from stlm_kd.losses.tempered import TemperedLogits

if TYPE_CHECKING:
    from torch import Tensor


_LEAST = -1e30
"""Replaces -inf, whose product with a probability of 0 is NaN."""


@GRADIENTS.register(LABELS)
def cross_entropy_slope(student: TemperedLogits, label_N: Tensor, /) -> tuple[Tensor, Tensor]:
    """Values and gradient of ``cross_entropy``: q, minus one at the label."""
    log_NC, label_N1 = student.log_probs(1.0), label_N[:, None]
    slope_NC = log_NC.exp()
    slope_NC.scatter_add_(-1, label_N1, slope_NC.new_full(label_N1.shape, -1.0))
    return -log_NC.gather(-1, label_N1).squeeze(-1), slope_NC


def _of_log_probs(name: str) -> Callable[[LossGradient], LossGradient]:
    """Register values and gradient that are computed from log-probabilities, at temperature 1.

    The registered function takes ``TemperedLogits`` and has the options of the loss, with their defaults.
    """
    defaults = {option: default for option, (_, default) in LOSSES.options(name).items()}

    def register(gradient: LossGradient) -> LossGradient:
        @wraps(LOSSES[name])
        def at_temperature(
            student: TemperedLogits, teacher: TemperedLogits, /, **options: Any
        ) -> tuple[Tensor, Tensor]:
            own = defaults | options
            temperature, scaling = own.pop("temperature"), own.pop("temperature_scaling")
            student_log_NC, teacher_log_NC = student.log_probs(temperature), teacher.log_probs(temperature)
            values_N, slope_NC = gradient(student_log_NC, teacher_log_NC, **own)
            factor = temperature_factor(temperature, scaling)
            values_N = values_N * factor
            return values_N, slope_NC if factor == temperature else slope_NC.mul_(factor / temperature)

        GRADIENTS.register(name)(at_temperature)
        return gradient

    return register


@_of_log_probs("forward_kl")
def forward_kl_slope(student_log_NC: Tensor, teacher_log_NC: Tensor, /) -> tuple[Tensor, Tensor]:
    """Values and gradient of ``forward_kl``: q - p."""
    gap_NC = (teacher_log_NC - student_log_NC).clamp_(min=_LEAST)
    teacher_NC = teacher_log_NC.exp()
    values_N = gap_NC.mul_(teacher_NC).sum(-1)
    slope_NC = torch.exp(student_log_NC, out=gap_NC).sub_(teacher_NC)
    return values_N, slope_NC


@_of_log_probs("reverse_kl")
def reverse_kl_slope(student_log_NC: Tensor, teacher_log_NC: Tensor, /) -> tuple[Tensor, Tensor]:
    """Values and gradient of ``reverse_kl``: q (log q/p - KL), with q over the teacher's possible classes."""
    ruled_out_NC = teacher_log_NC.isneginf()
    if bool(ruled_out_NC.any()):
        allowed_NC = student_log_NC.masked_fill(ruled_out_NC, -torch.inf)
        student_log_NC = functional.log_softmax(allowed_NC, dim=-1)
        gap_NC = (student_log_NC - teacher_log_NC).masked_fill_(ruled_out_NC, 0.0)
    else:
        gap_NC = student_log_NC - teacher_log_NC
    student_NC = student_log_NC.exp()
    values_N = torch.linalg.vecdot(student_NC, gap_NC)
    slope_NC = gap_NC.sub_(values_N[:, None]).mul_(student_NC)
    return values_N, slope_NC


@_of_log_probs("jensen_shannon")
def jensen_shannon_slope(
    student_log_NC: Tensor, teacher_log_NC: Tensor, /, *, beta: TeacherShare
) -> tuple[Tensor, Tensor]:
    """Values and gradient of ``jensen_shannon``: (1 - beta) q (log q/m - KL(student || m))."""
    if beta in (0, 1):
        end = reverse_kl_slope if beta else forward_kl_slope
        return end(student_log_NC, teacher_log_NC)
    student_NC, teacher_NC = student_log_NC.exp(), teacher_log_NC.exp()
    # where the clamp applies, p and q are 0, so the logarithm has no effect
    mixed_log_NC = torch.lerp(student_NC, teacher_NC, beta)
    mixed_log_NC.clamp_(min=torch.finfo(mixed_log_NC.dtype).tiny).log_()
    gap_NC = (teacher_log_NC - mixed_log_NC).clamp_(min=_LEAST)
    from_teacher_N = gap_NC.mul_(teacher_NC).sum(-1)
    gap_NC = torch.sub(student_log_NC, mixed_log_NC, out=gap_NC)
    from_student_N = torch.linalg.vecdot(student_NC, gap_NC)
    slope_NC = gap_NC.sub_(from_student_N[:, None]).mul_(student_NC.mul_(1 - beta))
    values_N = beta * from_teacher_N + (1 - beta) * from_student_N
    return values_N, slope_NC


@_of_log_probs("skew_forward_kl")
def skew_forward_kl_slope(
    student_log_NC: Tensor, teacher_log_NC: Tensor, /, *, alpha: Skew
) -> tuple[Tensor, Tensor]:
    """Values and gradient of ``skew_forward_kl``: (1 - alpha) (q Σ p q/m - p q/m)."""
    log_alpha = math.log(alpha) if alpha else -math.inf
    mixed_log_NC = torch.logaddexp(teacher_log_NC + log_alpha, student_log_NC + math.log1p(-alpha))
    teacher_NC = teacher_log_NC.exp()
    values_N = (teacher_log_NC - mixed_log_NC).clamp_(min=_LEAST).mul_(teacher_NC).sum(-1)
    pull_NC = torch.sub(student_log_NC, mixed_log_NC, out=mixed_log_NC).exp_().mul_(teacher_NC)
    student_NC = torch.exp(student_log_NC, out=teacher_NC)
    slope_NC = student_NC.mul_(pull_NC.sum(-1, keepdim=True)).sub_(pull_NC).mul_(1 - alpha)
    return values_N, slope_NC


@GRADIENTS.register("logit_mse")
def logit_mse_slope(
    student: TemperedLogits, teacher: TemperedLogits, /, *, centred: bool = False
) -> tuple[Tensor, Tensor]:
    """Values and gradient of ``logit_mse``: twice the difference divided by the number of classes."""
    gap_NC, counted_N1 = logit_gap(student.logits, teacher.logits, centred=centred)
    values_N = torch.linalg.vecdot(gap_NC, gap_NC) / counted_N1.squeeze(-1)
    return values_N, gap_NC.mul_(2).div_(counted_N1)

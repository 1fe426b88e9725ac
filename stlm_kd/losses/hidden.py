"""Losses between hidden states of the student and the teacher, of one width, at each token.

A new one is one function decorated with ``STATE_LOSSES.register``; its keyword-only arguments become its
options in recipes. The student's states come projected to the teacher's width where the widths differ.

Shapes: N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stlm_kd.losses.precision import at_least_float32
from stlm_kd.registry import Registry

StateLoss = Callable[..., Tensor]
"""``loss(student_ND, teacher_ND, /, **options)`` → one value per token (N,), not reduced."""

STATE_LOSSES: Registry[StateLoss] = Registry("loss of hidden states")


@STATE_LOSSES.register("hint")
def hint(student_ND: Tensor, teacher_ND: Tensor, /) -> Tensor:
    """The mean squared difference of two states over their width.

    Hints guide a student through a teacher's inner states (Romero et al., "FitNets: Hints for Thin Deep
    Nets", 2015, equation 3, which sums and halves instead).
    """
    difference_ND = at_least_float32(student_ND) - at_least_float32(teacher_ND)
    return difference_ND.square().mean(-1)


@STATE_LOSSES.register("cosine")
def cosine(student_ND: Tensor, teacher_ND: Tensor, /) -> Tensor:
    """1 minus the cosine of the angle between two states, in [0, 2].

    It aligns directions and leaves lengths free (Sanh et al., "DistilBERT, a distilled version of BERT",
    2019, section 3). A state of length 0 has no direction: its value is 1, without a gradient.
    """
    return 1.0 - (_unit(student_ND) * _unit(teacher_ND)).sum(-1)


@STATE_LOSSES.register("normalised_mse")
def normalised_mse(student_ND: Tensor, teacher_ND: Tensor, /) -> Tensor:
    """The squared distance of two states scaled to length 1, summed over the width, in [0, 4].

    From patient distillation (Sun et al., "Patient Knowledge Distillation for BERT Model Compression", 2019,
    equation 7), summed as there. It is twice ``cosine``; rounding leaves it at least 0, and more exact where
    the states are nearly parallel. A state of length 0 counts as the origin, without a gradient.
    """
    return (_unit(student_ND) - _unit(teacher_ND)).square().sum(-1)


def _unit(state_ND: Tensor) -> Tensor:
    """The states at length 1; those of length 0 stay there and get no gradient, which would be infinite."""
    state_ND = at_least_float32(state_ND)
    length_N1 = torch.linalg.vector_norm(state_ND, dim=-1, keepdim=True)
    without_N1 = length_N1 == 0
    unit_ND: Tensor = state_ND / length_N1.masked_fill(without_N1, 1.0)
    return unit_ND.masked_fill(without_N1, 0.0)

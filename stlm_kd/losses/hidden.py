"""Losses between hidden states of equal width, per token. Shapes: N tokens, D width.

If the widths differ, the student's states are projected first. For a new loss see ``register_loss``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stlm_kd.lazy import torch
from stlm_kd.losses.precision import at_least_float32
from stlm_kd.losses.table import STATE_LOSSES

if TYPE_CHECKING:
    from torch import Tensor


@STATE_LOSSES.register("hint")
def hint(student_ND: Tensor, teacher_ND: Tensor, /) -> Tensor:
    """Mean squared difference of two hidden states over their width.

    From Romero et al., "FitNets: Hints for Thin Deep Nets", 2015, equation 3, which uses half the sum
    instead of the mean.
    """
    difference_ND = at_least_float32(student_ND) - at_least_float32(teacher_ND)
    return difference_ND.square().mean(-1)


@STATE_LOSSES.register("cosine")
def cosine(student_ND: Tensor, teacher_ND: Tensor, /) -> Tensor:
    """Cosine distance of two hidden states: 1 minus their cosine similarity, in [0, 2].

    It aligns directions, not norms (Sanh et al., "DistilBERT, a distilled version of BERT", 2019, section 3).
    For a hidden state of norm 0 the value is 1, without a gradient.
    """
    return 1.0 - (_unit(student_ND) * _unit(teacher_ND)).sum(-1)


@STATE_LOSSES.register("normalised_mse")
def normalised_mse(student_ND: Tensor, teacher_ND: Tensor, /) -> Tensor:
    """Squared distance of two hidden states normalised to length 1, summed over the width, in [0, 4].

    From patient distillation (Sun et al., "Patient Knowledge Distillation for BERT Model Compression", 2019,
    equation 7), summed as there. It equals twice ``cosine``, but is never below 0 and more accurate for
    nearly parallel states. A hidden state of norm 0 counts as the origin, without a gradient.
    """
    return (_unit(student_ND) - _unit(teacher_ND)).square().sum(-1)


def _unit(state_ND: Tensor) -> Tensor:
    """Normalise hidden states to length 1; those of norm 0 stay 0, without the infinite gradient."""
    state_ND = at_least_float32(state_ND)
    length_N1 = torch.linalg.vector_norm(state_ND, dim=-1, keepdim=True)
    without_N1 = length_N1 == 0
    unit_ND: Tensor = state_ND / length_N1.masked_fill(without_N1, 1.0)
    return unit_ND.masked_fill(without_N1, 0.0)

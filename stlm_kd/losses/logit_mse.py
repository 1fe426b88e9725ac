"""Mean squared error of logits, without a softmax. Shapes: N tokens, C classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stlm_kd.losses.precision import at_least_float32
from stlm_kd.losses.table import LOSSES

if TYPE_CHECKING:
    from torch import Tensor


@LOSSES.register("logit_mse")
def logit_mse(student_NC: Tensor, teacher_NC: Tensor, /, *, centred: bool = False) -> Tensor:
    """Squared difference of the logits at each token, averaged over the classes.

    Ba and Caruana ("Do Deep Nets Really Need to be Deep?", 2014, section 2.2) and Kim et al. ("Comparing
    Kullback-Leibler Divergence and Mean Squared Error Loss in Knowledge Distillation", 2021, section 3) match
    the logits themselves, so a constant offset matters, and sum over the classes: C times this value. The
    mean makes the weight independent of the vocabulary's size.

    Centred, it is twice the limit of KL times temperature squared at high temperature (Hinton et al., 2015,
    section 2.1). Only this form suits targets known up to a constant: combined or sparse teachers.

    Args:
        student_NC: Student logits, shape (N, C).
        teacher_NC: Teacher logits over the same classes, shape (N, C). Classes at -inf are ignored.
        centred: Subtract each side's mean over the classes first.

    Returns:
        One value per token, shape (N,), not reduced.
    """
    gap_NC, counted_N1 = logit_gap(
        at_least_float32(student_NC), at_least_float32(teacher_NC), centred=centred
    )
    return gap_NC.square().sum(-1) / counted_N1.squeeze(-1)


def logit_gap(student_NC: Tensor, teacher_NC: Tensor, *, centred: bool) -> tuple[Tensor, Tensor]:
    """Student minus teacher logits, (N, C), 0 for ruled-out classes; and number of other classes, (N, 1)."""
    ruled_out_NC = teacher_NC.isneginf()
    gap_NC = (student_NC - teacher_NC).masked_fill(ruled_out_NC, 0.0)
    counted_N1 = (~ruled_out_NC).sum(-1, keepdim=True).clamp(min=1)
    if centred:
        gap_NC = (gap_NC - gap_NC.sum(-1, keepdim=True) / counted_N1).masked_fill(ruled_out_NC, 0.0)
    return gap_NC, counted_N1

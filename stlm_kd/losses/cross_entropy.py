"""The loss on labels: cross-entropy for classes, squared error for regression targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stlm_kd.lazy import functional
from stlm_kd.losses.precision import at_least_float32
from stlm_kd.losses.table import LABELS, LOSSES

if TYPE_CHECKING:
    from torch import Tensor


@LOSSES.register(LABELS)
def label_loss(student_NC: Tensor, label_N: Tensor, /) -> Tensor:
    """``cross_entropy`` for integer labels, ``squared_error`` for floating-point labels."""
    loss = squared_error if label_N.is_floating_point() else cross_entropy
    return loss(student_NC, label_N)


def cross_entropy(student_NC: Tensor, label_N: Tensor, /) -> Tensor:
    """Negative log-likelihood of each label, in nats.

    Args:
        student_NC: Student logits, shape (N, C).
        label_N: Label of each token, shape (N,), each in [0, C).

    Returns:
        One value per token, shape (N,), not reduced.
    """
    return functional.cross_entropy(at_least_float32(student_NC), label_N, reduction="none")


def squared_error(student_N1: Tensor, label_N: Tensor, /) -> Tensor:
    """Squared error of the model's only output, (N, 1), for each example's target: (N,), not reduced."""
    return (at_least_float32(student_N1).squeeze(1) - label_N).square()

"""The loss on the labels of the data: cross-entropy of classes, squared error of numbers."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from stlm_kd.losses.precision import at_least_float32
from stlm_kd.losses.table import LABELS, LOSSES


@LOSSES.register(LABELS)
def label_loss(student_NC: Tensor, label_N: Tensor, /) -> Tensor:
    """``cross_entropy`` where labels are outcomes, ``squared_error`` where they are numbers."""
    loss = squared_error if label_N.is_floating_point() else cross_entropy
    return loss(student_NC, label_N)


def cross_entropy(student_NC: Tensor, label_N: Tensor, /) -> Tensor:
    """Negative log-likelihood of each label, in nats.

    Args:
        student_NC: Student logits, shape (N, C).
        label_N: The right outcome of each token, shape (N,), each in [0, C).

    Returns:
        One value per token, shape (N,), not reduced.
    """
    return functional.cross_entropy(at_least_float32(student_NC), label_N, reduction="none")


def squared_error(student_N1: Tensor, label_N: Tensor, /) -> Tensor:
    """The square of the difference of each number and the model's.

    Args:
        student_N1: The model's only output, shape (N, 1).
        label_N: The right number of each example, shape (N,).

    Returns:
        One value per example, shape (N,), not reduced.
    """
    return (at_least_float32(student_N1).squeeze(1) - label_N).square()

"""Cross-entropy on the labels of the data."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from stlm_kd.losses.precision import at_least_float32
from stlm_kd.losses.table import LABELS, LOSSES


@LOSSES.register(LABELS)
def cross_entropy(student_NC: Tensor, label_N: Tensor, /) -> Tensor:
    """Negative log-likelihood of each label, in nats.

    Args:
        student_NC: Student logits, shape (N, C).
        label_N: The right outcome of each token, shape (N,), each in [0, C).

    Returns:
        One value per token, shape (N,), not reduced.
    """
    return functional.cross_entropy(at_least_float32(student_NC), label_N, reduction="none")

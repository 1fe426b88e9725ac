"""The table of losses and the types of their common options."""

from __future__ import annotations

from typing import Annotated, Protocol

from annotated_types import Gt
from torch import Tensor

from stlm_kd.registry import Registry

Temperature = Annotated[float, Gt(0)]


class Loss(Protocol):
    """One value per token from logits (N, C) and a target: logits (N, C), or for ``labels`` ids (N,)."""

    def __call__(self, student_NC: Tensor, target: Tensor, /) -> Tensor:
        """One value per token, shape (N,), in nats, not reduced."""
        ...


LOSSES: Registry[Loss] = Registry("loss")

LABELS = "labels"
"""The one loss whose target is the data's labels and not a teacher."""

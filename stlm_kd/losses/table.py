"""The table of losses and the types of their common options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from annotated_types import Gt
from torch import Tensor

from stlm_kd.registry import Registry

Temperature = Annotated[float, Gt(0)]


Loss = Callable[..., Tensor]
"""``loss(student_NC, target, /, **options)`` → one value per token (N,), not reduced.

The target is a teacher's logits (N, C), or for ``labels`` the label of each token (N,).
"""

LOSSES: Registry[Loss] = Registry("loss")

LABELS = "labels"
"""The one loss whose target is the data's labels and not a teacher."""

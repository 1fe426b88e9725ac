"""What an intervention does to what a teacher and a student say, position by position.

A student that has learnt the teacher's causal structure says what the teacher says after the same
intervention ("interchange intervention accuracy": Geiger et al., "Causal Abstractions of Neural Networks",
2021; as the aim of distillation: Wu et al., "Causal Distillation for Language Models", 2022).

Shapes: n positions or examples, V outcomes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

RATIOS = {
    "agreement": ("same", "positions"),
    "interchange_accuracy": ("same_of_changed", "changed"),
    "base_agreement": ("base_same", "positions"),
    "teacher_changes": ("changed", "positions"),
    "teacher_effect": ("teacher_nats", "positions"),
    "student_effect": ("student_nats", "positions"),
}
"""Each metric is the sum of the first by that of the second over all positions: the share of positions where
both models have one favourite after the intervention; the same where it changes the teacher's; the same
without intervention; where it changes the teacher's; and KL(after || before) of either model, in nats."""

SUMS = ("positions", "same", "base_same", "changed", "same_of_changed", "teacher_nats", "student_nats")
"""What is added up for them."""


class DistributionPair(NamedTuple):
    """Log-probabilities (n, V) of both at the same positions."""

    teacher: Tensor
    student: Tensor


def effects(before: DistributionPair, after: DistributionPair) -> dict[str, Tensor]:
    """``SUMS`` at each position, (n,), of what both said before an intervention and after it."""
    (theirs_n, own_n), (theirs_after_n, own_after_n) = (
        (said.teacher.argmax(-1), said.student.argmax(-1)) for said in (before, after)
    )
    same_n, changed_n = theirs_after_n == own_after_n, theirs_after_n != theirs_n
    return {
        "positions": torch.ones_like(theirs_n),
        "same": same_n,
        "base_same": theirs_n == own_n,
        "changed": changed_n,
        "same_of_changed": same_n & changed_n,
        "teacher_nats": _divergence(after.teacher, before.teacher),
        "student_nats": _divergence(after.student, before.student),
    }


def _divergence(after_nV: Tensor, before_nV: Tensor) -> Tensor:
    """KL(after || before), in nats, (n,); what is ruled out after counts for nothing."""
    parts_nV = after_nV.exp() * (after_nV - before_nV)
    return parts_nV.masked_fill(after_nV.isneginf(), 0.0).sum(-1)

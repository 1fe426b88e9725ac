"""Metrics of the effect of an intervention on the predictions of teacher and student, per position.

A student that has learnt the teacher's causal structure makes the teacher's predictions after the same
intervention ("interchange intervention accuracy": Geiger et al., "Causal Abstractions of Neural Networks",
2021; as a distillation objective: Wu et al., "Causal Distillation for Language Models", 2022). Shapes: n
positions or examples, V tokens or classes.
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
"""Numerator and denominator of each metric, summed over all positions: agreement of both models' top-1
predictions after the intervention; the same where it changes the teacher's; the same without intervention;
the rate at which it changes the teacher's; and KL(after || before) of either model, in nats."""

SUMS = ("positions", "same", "base_same", "changed", "same_of_changed", "teacher_nats", "student_nats")
"""The sums that these metrics need."""


class DistributionPair(NamedTuple):
    """Log-probabilities (n, V) of teacher and student at the same positions."""

    teacher: Tensor
    student: Tensor


def effects(before: DistributionPair, after: DistributionPair) -> dict[str, Tensor]:
    """``SUMS`` at each position, (n,), from the distributions before and after an intervention."""
    (theirs_n, own_n), (theirs_after_n, own_after_n) = (
        (one.teacher.argmax(-1), one.student.argmax(-1)) for one in (before, after)
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
    """KL(after || before) in nats, (n,); classes with probability 0 afterwards contribute 0."""
    parts_nV = after_nV.exp() * (after_nV - before_nV)
    return parts_nV.masked_fill(after_nV.isneginf(), 0.0).sum(-1)

"""The objectives of a recipe on one micro-batch: the only place that masks, weighs and reduces.

Shapes: B rows, T positions, N tokens or examples that some term needs, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stlm_kd.data.batch import IGNORED, Batch
from stlm_kd.data.examples import AnyBatch
from stlm_kd.features import Projections, map_term_sum, state_term_sum
from stlm_kd.losses import LOSSES
from stlm_kd.losses.states import STATE_LOSSES
from stlm_kd.models.forward import Head
from stlm_kd.models.observing import Observed
from stlm_kd.responses import Rows, direct_losses, projected_losses
from stlm_kd.teachers import TeacherOutput
from stlm_kd.terms import Combination, Term


def term_mask(term: Term, batch: AnyBatch) -> Tensor:
    """The positions that a term counts, (B, T) bool; of examples, outcomes are counted by the row, (B,)."""
    if isinstance(batch, Batch):
        return batch.labels != IGNORED if term.on == "labels" else batch.attention_mask
    is_example_B = batch.example_ids >= 0
    return batch.attention_mask & is_example_B[:, None] if term.pairs else is_example_B


@dataclass(frozen=True, slots=True)
class Sides:
    """What both sides said of a batch.

    Attributes:
        student: With the state that meets its head, or a classifier's logits.
        head: The student's; None of a classifier.
        teachers: By name; those that some term asks.
        projections: From the student's widths to the teachers'.
    """

    student: Observed
    head: Head | None
    teachers: Mapping[str, TeacherOutput]
    projections: Projections


@dataclass(frozen=True, slots=True)
class Reduced:
    """``loss``: scalar, Σ weight · sum / denominator. ``sums``: each term's sum over its tokens, float64."""

    loss: Tensor
    sums: dict[str, Tensor]


def reduce_terms(
    terms: Sequence[Term],
    combination: Combination,
    batch: AnyBatch,
    sides: Sides,
    denominators: Mapping[str, float],
    *,
    method: Literal["chunked", "dense"] = "chunked",
) -> Reduced:
    """Every term's sum over the batch, and the weighted total with its gradient.

    Args:
        terms: What to compute, with plain numbers; one of weight 0 is measured and does not enter the total.
        combination: For the terms whose teacher is ``COMBINED``.
        batch: Labels and masks.
        sides: What student and teachers said.
        denominators: By term, the tokens that it counts in the whole optimizer step.
        method: Whether logits exist for a chunk of tokens at a time, or for all at once.

    Returns:
        The total, differentiable with respect to what the student said, its head and the projections; and
        the sums in the order of the terms.
    """
    scales = {term.name: term.factor / max(denominators[term.name], 1.0) for term in terms}
    responses = [term for term in terms if term.loss in LOSSES]
    loss, found = _responses(responses, combination, batch, sides, scales, method)
    for term in terms:
        if term.loss not in LOSSES:
            value = _feature(term, batch, sides)
            found[term.name] = value.detach().double()
            loss = loss + scales[term.name] * value
    return Reduced(loss=loss, sums={term.name: found[term.name] for term in terms})


def _responses(
    terms: Sequence[Term],
    combination: Combination,
    batch: AnyBatch,
    sides: Sides,
    scales: Mapping[str, float],
    method: Literal["chunked", "dense"],
) -> tuple[Tensor, dict[str, Tensor]]:
    masks = [term_mask(term, batch) for term in terms]
    needed = torch.stack(masks).any(0)
    said = {name: output.distribution for name, output in sides.teachers.items()}
    student = sides.student.logits if sides.head is None else sides.student.head_input
    assert student is not None
    rows = Rows(
        terms=terms,
        combination=combination,
        labels=batch.labels[needed],
        masks=[mask[needed] for mask in masks],
        teachers={name: found.rows(needed) for name, found in said.items() if found is not None},
        outcomes=student.shape[-1] if sides.head is None else sides.head.size,
    )
    weights = [scales[term.name] for term in terms]
    if sides.head is None:
        loss, sums = direct_losses(rows, student[needed], weights)
    else:
        loss, sums = projected_losses(rows, student[needed], sides.head, weights, method=method)
    return loss, {term.name: sums[i] for i, term in enumerate(terms)}


def _feature(term: Term, batch: AnyBatch, sides: Sides) -> Tensor:
    """The sum of a term on states or maps over the positions that it counts."""
    assert term.teacher is not None
    teacher = sides.teachers[term.teacher].observed
    mask_BT = term_mask(term, batch)
    if term.loss in STATE_LOSSES:
        return state_term_sum(
            term.loss,
            term.pairs,
            sides.student,
            teacher,
            mask_BT,
            sides.projections.of(term.name),
            term.options,
        )
    layers = [(own, other) for own, other in term.pairs if isinstance(own, int) and isinstance(other, int)]
    return map_term_sum(term.loss, layers, sides.student, teacher, mask_BT, term.options)

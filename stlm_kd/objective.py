"""The objectives of a recipe on one micro-batch: the only place that masks, weighs and reduces.

Shapes: B rows, T positions, N tokens that some term needs, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stlm_kd.data.batch import IGNORED, Batch
from stlm_kd.models.forward import Head
from stlm_kd.responses import Rows, projected_losses
from stlm_kd.teachers import Dense
from stlm_kd.terms import Combination, Term


def term_mask(term: Term, batch: Batch) -> Tensor:
    """The positions that a term counts, (B, T) bool."""
    return batch.labels != IGNORED if term.on == "labels" else batch.attention_mask


@dataclass(frozen=True, slots=True)
class Reduced:
    """``loss``: scalar, Σ weight · sum / denominator. ``sums``: each term's sum over its tokens, float64."""

    loss: Tensor
    sums: dict[str, Tensor]


def reduce_terms(
    terms: Sequence[Term],
    combination: Combination,
    batch: Batch,
    hidden_BTD: Tensor,
    head: Head,
    teachers: Mapping[str, Dense],
    denominators: Mapping[str, float],
) -> Reduced:
    """Every term's sum over the batch, and the weighted total with its gradient.

    Args:
        terms: What to compute; a term of weight 0 is measured and does not enter the total.
        combination: For the terms whose teacher is ``COMBINED``.
        batch: Labels and masks.
        hidden_BTD: The student's last hidden states.
        head: The student's head.
        teachers: Each teacher's hidden states (B, T, D') and head.
        denominators: By term, the tokens that it counts in the whole optimizer step.

    Returns:
        The total (differentiable with respect to ``hidden_BTD`` and the head) and the sums.
    """
    masks = [term_mask(term, batch) for term in terms]
    needed_BT = torch.stack(masks).any(0)
    rows = Rows(
        terms=terms,
        combination=combination,
        labels=batch.labels[needed_BT],
        masks=[mask[needed_BT] for mask in masks],
        teachers={name: dense.rows(needed_BT) for name, dense in teachers.items()},
        outcomes=head.size,
    )
    scales = [term.factor / max(denominators[term.name], 1.0) for term in terms]
    loss, sums = projected_losses(rows, hidden_BTD[needed_BT], head, scales)
    return Reduced(loss=loss, sums={term.name: sums[i] for i, term in enumerate(terms)})

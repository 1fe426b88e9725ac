"""The terms over outcomes, a vocabulary or classes: teachers combined, losses per token masked and added up.

Shapes: N tokens that some term needs, n tokens of one chunk, D width, V outcomes of the student's head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from stlm_kd.combine import COMBINERS
from stlm_kd.losses import LOSSES
from stlm_kd.losses.chunked import chunked_losses
from stlm_kd.models.forward import Head
from stlm_kd.teachers import Dense
from stlm_kd.terms import COMBINED, Combination, Term


@dataclass(frozen=True, slots=True)
class Rows:
    """What the terms of N tokens need besides the student's logits.

    Attributes:
        terms: What to compute, with plain numbers only.
        combination: For the terms whose teacher is ``COMBINED``.
        labels: The right outcome, (N,); ``IGNORED`` or anything where no term on labels counts it.
        masks: For each term, the tokens that it counts, (N,) bool.
        teachers: Each teacher's hidden states (N, D') and head.
        outcomes: Outcomes of the student's head, padded ones included.
    """

    terms: Sequence[Term]
    combination: Combination
    labels: Tensor
    masks: Sequence[Tensor]
    teachers: Mapping[str, Dense]
    outcomes: int

    def loss_sums(self, logits_nV: Tensor, chunk: slice) -> list[Tensor]:
        """Each term's sum over the chunk's tokens that it counts, with the graph to the logits."""
        targets: dict[tuple[str, float], Tensor] = {}
        return [
            self._term_sum(term, mask_N[chunk], logits_nV, chunk, targets)
            for term, mask_N in zip(self.terms, self.masks, strict=True)
        ]

    def _term_sum(
        self,
        term: Term,
        mask_n: Tensor,
        logits_nV: Tensor,
        chunk: slice,
        targets: dict[tuple[str, float], Tensor],
    ) -> Tensor:
        loss = LOSSES[term.loss]
        if term.teacher is None:
            label_n = self.labels[chunk].masked_fill(~mask_n, 0)
            values_n = loss(logits_nV, label_n, **term.options)
        else:
            key = (term.teacher, term.temperature)
            if key not in targets:
                targets[key] = self._target(term.teacher, term.temperature, chunk)
            values_n = loss(logits_nV, targets[key], **term.options)
        return values_n.masked_fill(~mask_n, 0.0).sum()

    @torch.no_grad()
    def _target(self, teacher: str, temperature: float, chunk: slice) -> Tensor:
        """Logits (n, V) whose softmax at the temperature is the target distribution."""
        if teacher != COMBINED or len(self.teachers) == 1:
            (name,) = [teacher] if teacher != COMBINED else self.teachers
            return self.teachers[name].logits(chunk, self.outcomes)
        softened = {
            name: functional.log_softmax(dense.logits(chunk, self.outcomes) / temperature, dim=-1)
            for name, dense in self.teachers.items()
        }
        combine = COMBINERS[self.combination.how]
        mixed_nV = combine(softened, self.labels[chunk], **self.combination.options)
        return mixed_nV * temperature


def projected_losses(
    rows: Rows, hidden_ND: Tensor, head: Head, scales: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Σ scales · sums, a scalar with its gradient; and each term's sum, detached, in float64, (terms,).

    The student's and the teachers' states are projected to the vocabulary chunk by chunk.

    Args:
        rows: What the terms need.
        hidden_ND: The student's states that meet its head.
        head: The student's.
        scales: A factor for each term; of factor 0 it is measured only.
    """
    return chunked_losses(hidden_ND, head.weight, head.bias, rows.loss_sums, scales)

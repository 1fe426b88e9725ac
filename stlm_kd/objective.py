"""The objectives of a recipe on one micro-batch: the only place that projects, masks, weighs and reduces.

Hidden states come in, the student's and every teacher's; both are projected to the vocabulary chunk by chunk.

Shapes: N tokens that some term needs, n tokens of one chunk, D width, V outcomes of the student's head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from stlm_kd.combine import COMBINERS
from stlm_kd.data.batch import IGNORED, Batch
from stlm_kd.losses import LOSSES
from stlm_kd.losses.chunked import chunked_losses
from stlm_kd.models.forward import Head
from stlm_kd.teachers import Dense

COMBINED = "combined"
"""The name of the teachers' mixture among the teachers."""

Option = float | int | bool | str | Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Term:
    """One weighted loss of the objective.

    Attributes:
        name: As it appears in metrics; unique.
        loss: Name in ``LOSSES``.
        weight: Factor in the total.
        on: The positions that count: those with a label, or all that are not padding.
        teacher: Whose distribution is the target: a teacher's name, ``COMBINED``, or None for the labels.
        options: Keyword arguments of the loss.
    """

    name: str
    loss: str
    weight: float = 1.0
    on: Literal["labels", "attended"] = "labels"
    teacher: str | None = None
    options: Mapping[str, Option] = field(default_factory=dict)

    @property
    def temperature(self) -> float:
        """What the target distribution is softened by before teachers are combined."""
        value = self.options.get("temperature", 1.0)
        assert isinstance(value, (int, float))
        return float(value)


@dataclass(frozen=True, slots=True)
class Combination:
    """How several teachers become one target: a name in ``COMBINERS`` and its options."""

    how: str = "mean"
    options: Mapping[str, Option] = field(default_factory=dict)


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
    rows = _Rows(
        terms=terms,
        combination=combination,
        labels=batch.labels[needed_BT],
        masks=[mask[needed_BT] for mask in masks],
        teachers={name: dense.rows(needed_BT) for name, dense in teachers.items()},
        outcomes=head.size,
    )
    scales = [term.weight / max(denominators[term.name], 1.0) for term in terms]
    loss, sums = chunked_losses(hidden_BTD[needed_BT], head.weight, head.bias, rows.loss_sums, scales)
    return Reduced(loss=loss, sums={term.name: sums[i] for i, term in enumerate(terms)})


@dataclass(frozen=True, slots=True)
class _Rows:
    """What the loss of a chunk of rows needs besides the student's logits."""

    terms: Sequence[Term]
    combination: Combination
    labels: Tensor  # (N,)
    masks: Sequence[Tensor]  # (N,) for each term
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

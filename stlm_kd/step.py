"""One optimizer step's work on one micro-batch: everything that is trained, behind a single ``forward``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from stlm_kd.data.batch import Batch
from stlm_kd.losses import LABELS
from stlm_kd.models.forward import head_of, last_hidden
from stlm_kd.objective import reduce_terms, term_mask
from stlm_kd.teachers import Teacher
from stlm_kd.terms import Combination, Term


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one micro-batch gives; nothing in it is reduced across ranks.

    Attributes:
        loss: Scalar to call ``backward`` on: Σ over terms of weight · sum / denominator.
        sums: By term, the sum over its tokens, in nats, detached, unweighted.
    """

    loss: Tensor
    sums: dict[str, Tensor]


class StepModule(nn.Module):
    """The student and its objectives. Engines wrap this module, so whatever it holds is trained together.

    ``labels`` is measured in every step, with weight 0 where the recipe does not ask for it: it is the number
    that runs are compared by, and costs one pass over logits that are there anyway. In evaluation mode it is
    the only term, and no teacher is asked.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        terms: Sequence[Term],
        *,
        teachers: Mapping[str, Teacher] | None = None,
        combination: Combination | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        measured = any(term.name == LABELS for term in terms)
        self._terms = [*terms] if measured else [*terms, Term(LABELS, LABELS, weight=0.0)]
        self.combination = combination or Combination()
        self._teachers: dict[str, Teacher] = dict(teachers or {})

    @property
    def terms(self) -> list[Term]:
        """The terms that the next forward computes."""
        return self._terms if self.training else [Term(LABELS, LABELS)]

    def count(self, batch: Batch) -> dict[str, int]:
        """By term, the tokens of the batch that it counts (which lies on the CPU)."""
        return {term.name: int(term_mask(term, batch).sum()) for term in self.terms}

    def forward(self, batch: Batch, denominators: Mapping[str, float]) -> StepOutput:
        """Run teachers and student on the batch.

        Args:
            batch: B rows of T positions.
            denominators: By term, the tokens that it counts in the whole optimizer step.
        """
        terms = self.terms
        asked = self._teachers if any(term.teacher is not None for term in terms) else {}
        answers = {name: teacher(batch) for name, teacher in asked.items()}
        hidden_BTD = last_hidden(self.student, batch)
        head = head_of(self.student)
        reduced = reduce_terms(terms, self.combination, batch, hidden_BTD, head, answers, denominators)
        return StepOutput(reduced.loss, reduced.sums)

"""One optimizer step's work on one micro-batch: everything that is trained, behind a single ``forward``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from transformers import PreTrainedModel

from stlm_kd.alignment import Site
from stlm_kd.data.examples import AnyBatch
from stlm_kd.features import Projections
from stlm_kd.losses import LABELS
from stlm_kd.losses.maps import MAP_LOSSES
from stlm_kd.losses.states import STATE_LOSSES
from stlm_kd.models.attention import install_maps
from stlm_kd.models.forward import inputs_of, vocabulary_head
from stlm_kd.models.observing import Needs, observe
from stlm_kd.objective import Sides, reduce_terms, term_mask
from stlm_kd.schedules import is_ever_above_zero
from stlm_kd.teachers import Teacher
from stlm_kd.terms import COMBINED, Combination, Term


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
    """The student, its objectives and their projections. Engines wrap it: what it holds is trained together.

    ``labels`` is measured in every step, with weight 0 where the recipe does not ask for it: it is the number
    that runs are compared by, and costs one pass over logits that are there anyway. In evaluation mode it is
    the only term, and no teacher is asked. Other terms of weight 0 are left out, and so is what they need.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        terms: Sequence[Term],
        *,
        teachers: Mapping[str, Teacher] | None = None,
        combination: Combination | None = None,
        projections: Projections | None = None,
        vocabulary_loss: Literal["chunked", "dense"] = "chunked",
    ) -> None:
        super().__init__()
        self.student = student
        self.projections = Projections() if projections is None else projections
        self._all = [term for term in terms if term.name == LABELS or is_ever_above_zero(term.weight)]
        if not any(term.name == LABELS for term in terms):
            self._all.append(Term(LABELS, LABELS, weight=0.0))
        self._progress = 0.0
        self.combination = combination or Combination()
        self.vocabulary_loss = vocabulary_loss
        self._teachers: dict[str, Teacher] = dict(teachers or {})
        # Of all terms and at once, or a term that rests would change by rounding what a resumed run says.
        install_maps(student, student_needs(self._all, classes=vocabulary_head(student) is None).maps)

    def begin(self, index: int, steps: int) -> None:
        """Optimizer step ``index`` (from 0) of ``steps`` is next: schedules follow it."""
        self._progress = index / steps

    @property
    def terms(self) -> list[Term]:
        """The terms that the next forward computes, with plain numbers."""
        if not self.training:
            return [Term(LABELS, LABELS)]
        return [term for term in self._now() if term.factor > 0 or term.name == LABELS]

    def count(self, batch: AnyBatch) -> dict[str, int]:
        """By term, the tokens of the batch that it counts (which lies on the CPU)."""
        return {term.name: int(term_mask(term, batch).sum()) for term in self.terms}

    def forward(self, batch: AnyBatch, denominators: Mapping[str, float]) -> StepOutput:
        """Run teachers and student on the batch.

        Args:
            batch: B rows of T positions.
            denominators: By term, the tokens that it counts in the whole optimizer step.
        """
        terms, head = self.terms, vocabulary_head(self.student)
        inputs = inputs_of(batch, self.student)
        asked = teacher_needs(terms, list(self._teachers), classes=head is None)
        sides = Sides(
            student=observe(self.student, inputs, student_needs(terms, classes=head is None)),
            head=head,
            teachers={name: self._teachers[name](batch, needs) for name, needs in asked.items()},
            projections=self.projections,
        )
        reduced = reduce_terms(
            terms, self.combination, batch, sides, denominators, method=self.vocabulary_loss
        )
        return StepOutput(reduced.loss + self._idle(terms), reduced.sums)

    def _now(self) -> list[Term]:
        return [term.at(self._progress) for term in self._all]

    def _idle(self, terms: Sequence[Term]) -> Tensor | float:
        """0, by way of the projections of scheduled terms that rest: every process must reach all weights."""
        if not self.training:
            return 0.0
        running = {term.name for term in terms}
        return self.projections.nothing([term.name for term in self._all if term.name not in running])


def student_needs(terms: Sequence[Term], *, classes: bool) -> Needs:
    """What terms look at in the student; what it predicts (``classes``: of an example) is always asked."""
    needs = Needs(head_input=not classes, logits=classes)
    for term in terms:
        needs |= _needs(term, [student for student, _ in term.pairs], classes=classes)
    return needs


def teacher_needs(terms: Sequence[Term], teachers: Sequence[str], *, classes: bool) -> dict[str, Needs]:
    """What terms look at in each teacher; those that no term asks are left out."""
    found: dict[str, Needs] = {}
    for term in terms:
        if term.teacher is None:
            continue
        for name in teachers if term.teacher == COMBINED else [term.teacher]:
            needs = _needs(term, [teacher for _, teacher in term.pairs], classes=classes)
            found[name] = found.get(name, Needs()) | needs
    return found


def _needs(term: Term, sites: Sequence[Site], *, classes: bool) -> Needs:
    if term.loss in STATE_LOSSES:
        return Needs(sites=frozenset(sites))
    if term.loss in MAP_LOSSES:
        return Needs(maps=frozenset(site for site in sites if isinstance(site, int)))
    return Needs(head_input=not classes, logits=classes) if term.teacher is not None else Needs()

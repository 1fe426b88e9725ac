"""The objective on one micro-batch: the only module that masks, weights and reduces losses.

Shapes: B rows, T positions, N tokens or examples that some term needs, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from stlm_kd.data.batch import IGNORED, Batch
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.distillation.hidden_terms import Projections, attention_loss, hidden_state_loss
from stlm_kd.distillation.logit_terms import direct_losses, projected_losses
from stlm_kd.distillation.terms import Term
from stlm_kd.distillation.token_table import TokenTable
from stlm_kd.losses import LOSSES, TopKTail
from stlm_kd.losses.hidden import STATE_LOSSES
from stlm_kd.models.forward import Head
from stlm_kd.models.outputs import ModelOutputs
from stlm_kd.teachers.combination import GATE, Gate, TeacherMixture
from stlm_kd.teachers.protocol import TeacherOutput
from stlm_kd.teachers.targets import Dense, Distribution, Logits, joined_sparse


def term_mask(term: Term, batch: AnyBatch) -> Tensor:
    """Mask of the positions that a term counts, (B, T) bool.

    For logit terms on labelled examples, the mask is per example, (B,), for token classification per labelled
    token, (B, T), and for spans per endpoint, (B, 2).
    """
    if isinstance(batch, Batch):
        return batch.labels != IGNORED if term.on == "labels" else batch.attention_mask
    is_example_B = batch.example_ids >= 0
    if term.pairs:
        return batch.attention_mask & is_example_B[:, None]
    return is_example_B if batch.of == "text" else batch.labels != IGNORED


@dataclass(frozen=True, slots=True)
class ForwardOutputs:
    """Outputs of student and teachers on a batch.

    Attributes:
        student: Outputs with the hidden states before the head, or a classifier's logits.
        head: The student's language-model head; None for a classifier.
        teachers: Outputs by name, of the teachers that some term uses.
        projections: Projections from the student's widths to the teachers'.
        after: Outputs after each intervention, by its name.
        gate: Learned gate that weights combined teachers.
    """

    student: ModelOutputs
    head: Head | None
    teachers: Mapping[str, TeacherOutput]
    projections: Projections
    after: Mapping[str, InterventionOutputs] = field(default_factory=dict)
    gate: Gate | None = None


@dataclass(frozen=True, slots=True)
class InterventionOutputs:
    """Outputs of student and teachers on a batch after an intervention.

    Attributes:
        student: As in ``ForwardOutputs``.
        teachers: As in ``ForwardOutputs``.
        touched: Mask of what the intervention may have changed: (B, T) bool, or (B,) for examples. Elsewhere
            the outputs equal those without it.
    """

    student: ModelOutputs
    teachers: Mapping[str, TeacherOutput]
    touched: Tensor


@dataclass(frozen=True, slots=True)
class Reduced:
    """``loss``: scalar, Σ weight · sum / denominator. ``sums``: each term's sum over its tokens, float64."""

    loss: Tensor
    sums: dict[str, Tensor]


def reduce_terms(
    terms: Sequence[Term],
    mixing: TeacherMixture,
    batch: AnyBatch,
    sides: ForwardOutputs,
    denominators: Mapping[str, float],
    *,
    method: Literal["chunked", "dense"] = "chunked",
) -> Reduced:
    """Compute every term's sum over the batch, and the differentiable weighted total.

    Args:
        terms: Terms with schedules resolved; one of weight 0 is measured and does not enter the total.
        mixing: Mixture for terms whose teacher is ``COMBINED``; its tensors are per row, (B,).
        batch: Labels and masks.
        sides: Outputs of student and teachers.
        denominators: By term, the number of tokens that it counts in the whole optimizer step.
        method: Whether logits are computed chunk by chunk or for all tokens at once.

    Returns:
        The total, differentiable with respect to the student's outputs, its head and the projections; and
        the sums in the order of the terms.
    """
    scales = {term.name: term.factor / max(denominators[term.name], 1.0) for term in terms}
    responses = [term for term in terms if _is_response(term)]
    loss, found = _responses(responses, mixing, batch, sides, scales, method)
    for term in terms:
        if not _is_response(term):
            value = _feature(term, batch, sides)
            found[term.name] = value.detach().double()
            loss = loss + scales[term.name] * value
    return Reduced(loss=loss, sums={term.name: found[term.name] for term in terms})


def _is_response(term: Term) -> bool:
    return term.loss in LOSSES or term.loss == GATE


def _responses(
    terms: Sequence[Term],
    mixing: TeacherMixture,
    batch: AnyBatch,
    sides: ForwardOutputs,
    scales: Mapping[str, float],
    method: Literal["chunked", "dense"],
) -> tuple[Tensor, dict[str, Tensor]]:
    rows, student = _token_table(terms, mixing, batch, sides, _parts(terms, batch, sides))
    weights = [scales[term.name] for term in terms]
    if sides.head is None:
        loss, sums = direct_losses(rows, student, weights)
    else:
        loss, sums = projected_losses(rows, student, sides.head, weights, method=method)
    return loss, {term.name: sums[i] for i, term in enumerate(terms)}


def paired_targets(
    term: Term, mixing: TeacherMixture, batch: AnyBatch, sides: ForwardOutputs
) -> tuple[TokenTable, Distribution]:
    """The targets of a term and the student's distribution, without an intervention and after it.

    Args:
        term: Logit term after an intervention. The rows are the tokens that it counts and the intervention
            touches: first all of them before, then all of them after.
        mixing: Mixture, used if the target is ``COMBINED``.
        batch: Labels and masks.
        sides: Outputs of student and teachers.
    """
    assert term.intervention is not None
    changed = sides.after[term.intervention.name]
    chosen = term_mask(term, batch) & changed.touched
    parts = [_Part(said.student, said.teachers, [chosen], chosen) for said in (sides, changed)]
    rows, student = _token_table([term], mixing, batch, sides, parts)
    if sides.head is None:
        return rows, Logits(student)
    sizes = [one.vocabulary for one in rows.teachers.values() if isinstance(one, Dense)]
    dense = Dense(student, sides.head, min(sizes)).rows(slice(None))
    return replace(rows, outcomes=min(sides.head.size, *sizes)), dense


def base_targets(
    term: Term, mixing: TeacherMixture, batch: AnyBatch, sides: ForwardOutputs
) -> tuple[TokenTable, Distribution]:
    """The targets of a term and the student's distribution, without an intervention.

    Args:
        term: Logit term. The rows are the tokens that it counts.
        mixing: Mixture, used if the target is ``COMBINED``.
        batch: Labels and masks.
        sides: Outputs of student and teachers.
    """
    chosen = term_mask(term, batch)
    part = _Part(sides.student, sides.teachers, [chosen], chosen)
    rows, student = _token_table([term], mixing, batch, sides, [part])
    if sides.head is None:
        return rows, Logits(student)
    return rows, Dense(student, sides.head, sides.head.size).rows(slice(None))


def _token_table(
    terms: Sequence[Term],
    mixing: TeacherMixture,
    batch: AnyBatch,
    sides: ForwardOutputs,
    parts: Sequence[_Part],
) -> tuple[TokenTable, Tensor]:
    """The token table of all parts, and the student's logits or the hidden states before its head."""
    student = _joined([part.tokens(_outcomes(part.student, sides.head, batch)) for part in parts])
    rows = TokenTable(
        terms=terms,
        mixing=_mixing_of_tokens(mixing, batch, sides, parts),
        labels=_joined([part.tokens(batch.labels) for part in parts]),
        masks=[_joined([part.tokens(part.masks[i]) for part in parts]) for i in range(len(terms))],
        teachers=_teacher_distributions(parts),
        outcomes=student.shape[-1] if sides.head is None else sides.head.size,
        weighting_targets=_base_distributions(parts, mixing),
    )
    return rows, student


@dataclass(frozen=True, slots=True)
class _Part:
    """The tokens of one forward pass: the base, or after an intervention.

    Attributes:
        student: The student's outputs.
        teachers: The teachers' outputs.
        masks: By term, the mask of the tokens that it counts here.
        needed: Mask of the tokens that some term counts here.
        order: Permutation of these tokens; None for batch order.
    """

    student: ModelOutputs
    teachers: Mapping[str, TeacherOutput]
    masks: Sequence[Tensor]
    needed: Tensor
    order: Tensor | None = None

    def tokens(self, values: Tensor) -> Tensor:
        """The values of the needed tokens, concatenated."""
        chosen = values[self.needed]
        return chosen if self.order is None else chosen[self.order]

    def said(self, name: str) -> Distribution | int:
        """A teacher's distribution at the needed tokens, or their number if it did not run."""
        found = self.teachers[name].distribution if name in self.teachers else None
        if found is None:
            return int(self.needed.sum())
        chosen = found.rows(self.needed)
        return chosen if self.order is None else chosen.rows(self.order)


def _parts(terms: Sequence[Term], batch: AnyBatch, sides: ForwardOutputs) -> list[_Part]:
    """The base and the interventions; an intervention's term counts its untouched tokens in the base."""
    masks = [term_mask(term, batch) for term in terms]
    nothing = torch.zeros_like(masks[0])
    names = [None if term.intervention is None else term.intervention.name for term in terms]
    own = [
        mask if name is None else mask & ~sides.after[name].touched
        for mask, name in zip(masks, names, strict=True)
    ]
    parts = [_base_part(own, names, sides)]
    for name, changed in sides.after.items():
        touched = [
            mask & changed.touched if name == other else nothing
            for mask, other in zip(masks, names, strict=True)
        ]
        parts.append(_Part(changed.student, changed.teachers, touched, torch.stack(touched).any(0)))
    return parts


def _base_part(masks: Sequence[Tensor], names: Sequence[str | None], sides: ForwardOutputs) -> _Part:
    """The tokens counted without an intervention; those that intervention terms count too come first.

    Most chunks are then covered completely by all these terms, which share the teachers' logits.
    """
    needed = torch.stack([*masks]).any(0)
    untouched = [mask for mask, name in zip(masks, names, strict=True) if name is not None]
    order = None
    if untouched and bool(torch.stack(untouched).any()):
        order = (~torch.stack(untouched).any(0)[needed]).to(torch.uint8).argsort(stable=True)
    return _Part(sides.student, sides.teachers, masks, needed, order)


def _mixing_of_tokens(
    mixing: TeacherMixture, batch: AnyBatch, sides: ForwardOutputs, parts: Sequence[_Part]
) -> TeacherMixture:
    """Expand the mixture's tensors per row, and the gate's scores of the base, to the tokens of all parts."""

    def of_tokens(value_B: Tensor | None) -> Tensor | None:
        if value_B is None:
            return None
        value = value_B if batch.labels.dim() == 1 else value_B[:, None].expand_as(batch.labels)
        return _joined([part.tokens(value) for part in parts])

    gate = None
    if sides.gate is not None:
        base = _outcomes(sides.student, sides.head, batch)
        gate = sides.gate(_joined([part.tokens(base) for part in parts]), mixing.teachers)
    return replace(mixing, domain=of_tokens(mixing.domain), drawn=of_tokens(mixing.drawn), gate=gate)


def _base_distributions(parts: Sequence[_Part], mixing: TeacherMixture) -> dict[str, Distribution] | None:
    """The teachers' distributions in the base, at the needed tokens of all parts.

    Teachers are weighted by their outputs before the intervention. None if these are the outputs used anyway.
    """
    base, *others = parts
    if not others or not mixing.weighs_distributions:
        return None
    mixed = {name: base.teachers[name] for name in mixing.teachers if name in base.teachers}
    return _teacher_distributions([replace(part, teachers=mixed) for part in parts])


def _outcomes(student: ModelOutputs, head: Head | None, batch: AnyBatch) -> Tensor:
    """A classifier's logits, or the hidden states before a language model's head.

    For spans, logits over the row's positions for both endpoints, (B, 2, T), with padding masked out.
    """
    found = student.logits if head is None else student.head_input
    assert found is not None
    if isinstance(batch, Batch) or batch.of != "span":
        return found
    return found.transpose(1, 2).masked_fill(~batch.attention_mask[:, None], -torch.inf)


def _teacher_distributions(parts: Sequence[_Part]) -> dict[str, Distribution]:
    """Each teacher's distribution at the needed tokens of all parts.

    Parts in which a teacher did not run are filled with zeros; no term counts them.
    """
    names = dict.fromkeys(
        name for part in parts for name, said in part.teachers.items() if said.distribution is not None
    )
    return {name: _joined_said([part.said(name) for part in parts]) for name in names}


def _joined_said(found: Sequence[Distribution | int]) -> Distribution:
    """Concatenate the distributions of several parts."""
    if len(found) == 1 and not isinstance(found[0], int):
        return found[0]
    (first, *_) = (said for said in found if not isinstance(said, int))
    if isinstance(first, TopKTail):
        return joined_sparse([said for said in found if isinstance(said, (int, TopKTail))], like=first)
    values = [_values(said, like=first) for said in found]
    if isinstance(first, Dense):
        return Dense(_joined(values), first.head, first.vocabulary)
    return Logits(_joined(values))


def _values(said: Distribution | int, *, like: Dense | Logits) -> Tensor:
    known = like.hidden if isinstance(like, Dense) else like.values
    if isinstance(said, int):
        return known.new_zeros(said, known.shape[-1])
    assert isinstance(said, (Dense, Logits))
    return said.hidden if isinstance(said, Dense) else said.values


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate tensors along the first dimension."""
    return parts[0] if len(parts) == 1 else torch.cat([*parts])


def _feature(term: Term, batch: AnyBatch, sides: ForwardOutputs) -> Tensor:
    """The sum of a hidden-state or attention term over the positions that it counts."""
    assert term.teacher is not None
    said: ForwardOutputs | InterventionOutputs = (
        sides if term.intervention is None else sides.after[term.intervention.name]
    )
    teacher = said.teachers[term.teacher].observed
    mask_BT = term_mask(term, batch)
    if term.loss in STATE_LOSSES:
        return hidden_state_loss(
            term.loss,
            term.pairs,
            said.student,
            teacher,
            mask_BT,
            sides.projections.of(term.name),
            term.options,
        )
    layers = [(own, other) for own, other in term.pairs if isinstance(own, int) and isinstance(other, int)]
    return attention_loss(term.loss, layers, said.student, teacher, mask_BT, term.options)

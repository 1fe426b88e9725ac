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
from stlm_kd.losses import LOSSES, STATE_LOSSES, TopKTail
from stlm_kd.models.forward import Head
from stlm_kd.models.outputs import ModelOutputs
from stlm_kd.teachers.combination import TeacherMixture
from stlm_kd.teachers.combination.gate import GATE, Gate
from stlm_kd.teachers.protocol import TeacherOutput
from stlm_kd.teachers.targets import Dense, Distribution, Logits, joined_sparse
from stlm_kd.teachers.translated_targets import Translated


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
    """Outputs of student and teachers on a batch, and what the terms read beside them.

    Attributes:
        mixing: Mixture for terms whose teacher is ``COMBINED``; its tensors are per row, (B,).
        student: Outputs with the hidden states before the head, or a classifier's logits.
        head: The student's language-model head; None for a classifier.
        teachers: Outputs by name, of the teachers that some term uses.
        after: Outputs after each intervention, by its name.
        gate: Learned gate that weights combined teachers.
    """

    batch: AnyBatch
    mixing: TeacherMixture
    student: ModelOutputs
    head: Head | None
    teachers: Mapping[str, TeacherOutput]
    projections: Projections
    after: Mapping[str, InterventionOutputs] = field(default_factory=dict)
    gate: Gate | None = None


@dataclass(frozen=True, slots=True)
class InterventionOutputs:
    """As ``ForwardOutputs``, after an intervention.

    ``touched`` is the mask of what it may have changed: (B, T) bool, or (B,) for examples. Elsewhere the
    outputs equal those without it.
    """

    student: ModelOutputs
    teachers: Mapping[str, TeacherOutput]
    touched: Tensor


def reduce_terms(
    terms: Sequence[Term],
    outputs: ForwardOutputs,
    denominators: Mapping[str, float],
    *,
    method: Literal["chunked", "dense"] = "chunked",
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted total of all terms over the batch, a scalar, and each term's detached sum in float64.

    The total is Σ weight · sum / denominator, differentiable with respect to the student's outputs, its head
    and the projections. Schedules are resolved; a term of weight 0 is measured and does not enter the total.
    A denominator is the number of tokens that the term counts in the whole optimizer step. ``method`` is as
    in ``projected_losses``.
    """
    scales = {term.name: term.factor / max(denominators[term.name], 1.0) for term in terms}
    on_logits = [term for term in terms if term.loss in LOSSES or term.loss == GATE]
    rows, student = _token_table(on_logits, outputs, _parts(on_logits, outputs))
    weights = [scales[term.name] for term in on_logits]
    if outputs.head is None:
        loss, sums = direct_losses(rows, student, weights)
    else:
        loss, sums = projected_losses(rows, student, outputs.head, weights, method=method)
    found = {term.name: sums[i] for i, term in enumerate(on_logits)}
    for term in terms:
        if term.name not in found:
            value = _hidden_loss(term, outputs)
            found[term.name] = value.detach().double()
            loss = loss + scales[term.name] * value
    return loss, {term.name: found[term.name] for term in terms}


def paired_targets(term: Term, outputs: ForwardOutputs) -> tuple[TokenTable, Dense | Logits]:
    """The targets of a term and the student's distribution, without an intervention and after it.

    The rows are the tokens that the term counts and its intervention touches: first all of them before, then
    all of them after.
    """
    assert term.intervention is not None
    changed = outputs.after[term.intervention.name]
    chosen = term_mask(term, outputs.batch) & changed.touched
    rows, student = _targets(term, outputs, [outputs, changed], chosen)
    sizes = [one.vocabulary for one in rows.teachers.values() if isinstance(one, Dense)]
    return replace(rows, outcomes=min([rows.outcomes, *sizes])), student


def base_targets(term: Term, outputs: ForwardOutputs) -> tuple[TokenTable, Dense | Logits]:
    """The targets of a term and the student's distribution without an intervention, at the counted tokens."""
    return _targets(term, outputs, [outputs], term_mask(term, outputs.batch))


def _targets(
    term: Term,
    outputs: ForwardOutputs,
    passes: Sequence[ForwardOutputs | InterventionOutputs],
    chosen: Tensor,
) -> tuple[TokenTable, Dense | Logits]:
    parts = [_Part(one.student, one.teachers, [chosen], chosen) for one in passes]
    rows, student = _token_table([term], outputs, parts)
    if outputs.head is None:
        return rows, Logits(student)
    return rows, Dense(student, outputs.head, outputs.head.size).rows(slice(None))


def _token_table(
    terms: Sequence[Term], outputs: ForwardOutputs, parts: Sequence[_Part]
) -> tuple[TokenTable, Tensor]:
    """The token table of all parts, and the student's logits or the hidden states before its head."""
    student = _joined([part.tokens(_outcomes(part.student, outputs)) for part in parts])
    rows = TokenTable(
        terms=terms,
        mixing=_mixing_of_tokens(outputs, parts),
        labels=_joined([part.tokens(outputs.batch.labels) for part in parts]),
        masks=[_joined([part.tokens(part.masks[i]) for part in parts]) for i in range(len(terms))],
        teachers=_teacher_distributions(parts),
        outcomes=student.shape[-1] if outputs.head is None else outputs.head.size,
        weighting_targets=_base_distributions(parts, outputs.mixing),
    )
    return rows, student


@dataclass(frozen=True, slots=True)
class _Part:
    """The tokens of one forward pass, the base or after an intervention.

    ``masks`` are those of the tokens that each term counts here, ``needed`` that of the tokens which some
    term counts; ``order`` permutes these (None: batch order).
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


def _parts(terms: Sequence[Term], outputs: ForwardOutputs) -> list[_Part]:
    """The base and the interventions; an intervention's term counts its untouched tokens in the base."""
    masks = [term_mask(term, outputs.batch) for term in terms]
    nothing = torch.zeros_like(masks[0])
    names = [None if term.intervention is None else term.intervention.name for term in terms]
    own = [
        mask if name is None else mask & ~outputs.after[name].touched
        for mask, name in zip(masks, names, strict=True)
    ]
    parts = [_base_part(own, names, outputs)]
    for name, changed in outputs.after.items():
        touched = [
            mask & changed.touched if name == other else nothing
            for mask, other in zip(masks, names, strict=True)
        ]
        parts.append(_Part(changed.student, changed.teachers, touched, torch.stack(touched).any(0)))
    return parts


def _base_part(masks: Sequence[Tensor], names: Sequence[str | None], outputs: ForwardOutputs) -> _Part:
    """The tokens counted without an intervention; those that intervention terms count too come first.

    Most chunks are then covered completely by all these terms, which share the teachers' logits.
    """
    needed = torch.stack([*masks]).any(0)
    untouched = [mask for mask, name in zip(masks, names, strict=True) if name is not None]
    order = None
    if untouched and bool(torch.stack(untouched).any()):
        order = (~torch.stack(untouched).any(0)[needed]).to(torch.uint8).argsort(stable=True)
    return _Part(outputs.student, outputs.teachers, masks, needed, order)


def _mixing_of_tokens(outputs: ForwardOutputs, parts: Sequence[_Part]) -> TeacherMixture:
    """Expand the mixture's tensors per row, and the gate's scores of the base, to the tokens of all parts."""
    labels, mixing = outputs.batch.labels, outputs.mixing

    def of_tokens(value_B: Tensor | None) -> Tensor | None:
        if value_B is None:
            return None
        value = value_B if labels.dim() == 1 else value_B[:, None].expand_as(labels)
        return _joined([part.tokens(value) for part in parts])

    gate = None
    if outputs.gate is not None:
        base = _outcomes(outputs.student, outputs)
        gate = outputs.gate(_joined([part.tokens(base) for part in parts]), mixing.teachers)
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


def _outcomes(student: ModelOutputs, outputs: ForwardOutputs) -> Tensor:
    """A classifier's logits, or the head's input; for spans, logits (B, 2, T) with padding masked out."""
    batch = outputs.batch
    found = student.logits if outputs.head is None else student.head_input
    assert found is not None
    if isinstance(batch, Batch) or batch.of != "span":
        return found
    return found.transpose(1, 2).masked_fill(~batch.attention_mask[:, None], -torch.inf)


def _teacher_distributions(parts: Sequence[_Part]) -> dict[str, Distribution]:
    """Each teacher's distribution at the tokens of all parts; uncounted zeros where it did not run."""
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
    assert not isinstance(first, Translated), "refused with interventions, and so never in several parts"
    values = [_values(said, like=first) for said in found]
    if isinstance(first, Dense):
        return replace(first, hidden=_joined(values))
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


def _hidden_loss(term: Term, outputs: ForwardOutputs) -> Tensor:
    """The sum of a hidden-state or attention term over the positions that it counts."""
    assert term.teacher is not None
    own = outputs if term.intervention is None else outputs.after[term.intervention.name]
    teacher = own.teachers[term.teacher].observed
    mask_BT = term_mask(term, outputs.batch)
    if term.loss in STATE_LOSSES:
        return hidden_state_loss(term, own.student, teacher, mask_BT, outputs.projections.of(term.name))
    return attention_loss(term, own.student, teacher, mask_BT)

"""The tokens that logit terms count, grouped by term, with the intermediate results that the terms share.

Tokens of a chunk that are counted by the same terms form a ``TermGroup``. It is processed in ``TokenBlock``s
that fit the processor's caches: matrix products with heads are efficient for many tokens, the rest for few.

Shapes: N tokens that some term needs, n tokens of one chunk, m of these in a group or block, V size of the
student's head, M combined teachers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from stlm_kd.distillation.terms import Term
from stlm_kd.losses import (
    GRADIENTS,
    LOSSES,
    SPARSE_LOSSES,
    SPARSE_SLOPES,
    FullDistribution,
    TargetMixture,
    TemperedLogits,
    TopKTail,
)
from stlm_kd.losses.chunked import block_rows, pieces
from stlm_kd.teachers import COMBINED
from stlm_kd.teachers.combination import TeacherMixture, mixture, weighting_features
from stlm_kd.teachers.combination.features import TeacherDistributions
from stlm_kd.teachers.combination.gate import GATE, gate_losses
from stlm_kd.teachers.targets import Distribution


@dataclass(frozen=True, slots=True)
class TokenTable:
    """Inputs of the terms at N tokens, besides the student's logits.

    Attributes:
        terms: Terms with schedules resolved.
        mixing: Mixture for the terms whose teacher is ``COMBINED``.
        labels: Label tokens or classes, (N,); ``IGNORED`` or arbitrary where no label term counts the token.
        masks: For each term, the mask of the tokens that it counts, (N,) bool.
        teachers: Each teacher's distribution at the N tokens.
        outcomes: Size of the student's head, padding entries included.
        weighting_targets: Distributions before an intervention, which weight the mixture's teachers; None if
            these are ``teachers``.
    """

    terms: Sequence[Term]
    mixing: TeacherMixture
    labels: Tensor
    masks: Sequence[Tensor]
    teachers: Mapping[str, Distribution]
    outcomes: int
    weighting_targets: Mapping[str, Distribution] | None = None

    def only(self, chosen_N: Tensor) -> TokenTable:
        """The table restricted to the tokens of a mask."""
        return replace(
            self,
            mixing=self.mixing.rows(chosen_N),
            labels=self.labels[chosen_N],
            masks=[mask_N[chosen_N] for mask_N in self.masks],
            teachers=_chosen_rows(self.teachers, chosen_N),
            weighting_targets=(
                None if self.weighting_targets is None else _chosen_rows(self.weighting_targets, chosen_N)
            ),
        )

    def groups(self) -> list[list[int]]:
        """Indices of the terms, grouped by equal masks: the terms of a group share intermediate results."""
        groups: list[list[int]] = []
        for i, mask_N in enumerate(self.masks):
            same = next((own for own in groups if torch.equal(self.masks[own[0]], mask_N)), None)
            if same is None:
                groups.append([i])
            else:
                same.append(i)
        return groups


def _chosen_rows(said: Mapping[str, Distribution], chosen: Tensor | slice) -> dict[str, Distribution]:
    return {name: one.rows(chosen) for name, one in said.items()}


class TermGroup:
    """The tokens of a chunk that a group of terms counts. Other tokens are never read: they may hold NaN.

    ``own`` are the indices of the group's terms; ``chunk`` slices all N tokens, clipped to their number.
    """

    def __init__(self, rows: TokenTable, own: Sequence[int], chunk: slice, logits_nV: Tensor) -> None:
        mask_n = rows.masks[own[0]][chunk]
        self.rows, self.own = rows, own
        self.within = None if bool(mask_n.all()) else mask_n.nonzero().squeeze(1)
        self.chosen = chunk if self.within is None else self.within + chunk.start
        self.logits_mV = logits_nV if self.within is None else logits_nV[self.within]

    def whole(self) -> TokenBlock:
        """All tokens of the group as one block."""
        return self._block(
            slice(0, len(self.logits_mV)), self._teacher_targets(), self._weighting_distributions()
        )

    def blocks(self) -> Iterator[tuple[slice, TokenBlock]]:
        """The group's tokens in blocks small enough for the losses' intermediate tensors."""
        said, features = self._teacher_targets(), self._weighting_distributions()
        for few in pieces(len(self.logits_mV), block_rows(self.logits_mV)):
            yield few, self._block(few, said, features)

    def places(self, few: slice) -> Tensor | slice:
        """Indices into all tokens of a slice of the group's tokens."""
        if isinstance(self.chosen, Tensor):
            return self.chosen[few]
        return slice(self.chosen.start + few.start, self.chosen.start + few.stop)

    def add_to(self, total_nV: Tensor | None, logits_nV: Tensor) -> Tensor:
        """Add this group's gradient, which has overwritten its logits, to the chunk's."""
        if self.within is None:
            return self.logits_mV
        total_nV = logits_nV.zero_() if total_nV is None else total_nV
        return total_nV.index_add_(0, self.within, self.logits_mV)

    def _block(
        self,
        few: slice,
        said: Mapping[str, Tensor | TopKTail],
        features: Mapping[float, TeacherDistributions],
    ) -> TokenBlock:
        part = {
            name: one.rows(few) if isinstance(one, TopKTail) else TemperedLogits(one[few])
            for name, one in said.items()
        }
        return TokenBlock(
            self.rows,
            self.rows.labels[self.chosen][few],
            self.rows.mixing.rows(self.chosen).rows(few),
            TemperedLogits(self.logits_mV[few]),
            part,
            {temperature: one.rows(few) for temperature, one in features.items()},
        )

    @property
    def _terms(self) -> list[Term]:
        return [self.rows.terms[i] for i in self.own]

    @property
    def _mixes(self) -> bool:
        return any(term.teacher == COMBINED for term in self._terms)

    @torch.no_grad()
    def _teacher_targets(self) -> dict[str, Tensor | TopKTail]:
        """Outputs of the teachers that the group's terms use: logits (m, V), or sparse targets."""
        used = {term.teacher for term in self._terms} | set(self.rows.mixing.teachers if self._mixes else ())
        chosen, outcomes = self.chosen, self.rows.outcomes
        return {
            name: one.rows(chosen) if isinstance(one, TopKTail) else one.logits(chosen, outcomes)
            for name, one in self.rows.teachers.items()
            if name in used
        }

    @torch.no_grad()
    def _weighting_distributions(self) -> dict[float, TeacherDistributions]:
        """By temperature, the teachers' features before an intervention; projects one teacher at a time."""
        mixing, targets = self.rows.mixing, self.rows.weighting_targets
        if targets is None or not self._mixes or not mixing.weighs_distributions:
            return {}
        temperatures = {term.temperature for term in self._terms if term.teacher == COMBINED}
        label_m = self.rows.labels[self.chosen]
        found: dict[float, list[TeacherDistributions]] = {temperature: [] for temperature in temperatures}
        for name in mixing.teachers:
            one = targets[name]
            assert not isinstance(one, TopKTail), "interventions need live teachers"
            logits = TemperedLogits(one.logits(self.chosen, self.rows.outcomes))
            for temperature, columns in found.items():
                columns.append(weighting_features([logits], label_m, mixing.needs, temperature))
        return {
            temperature: TeacherDistributions.concatenate(columns) for temperature, columns in found.items()
        }


@dataclass(slots=True)
class TokenBlock:
    """A block of tokens, all counted by the same terms, and the results that these terms share.

    Attributes:
        label_m: Labels, (m,).
        mixing: Mixture at the block's tokens.
        student: The student's logits of the block.
        said: By teacher, logits (m, V) or sparse targets.
        features: By temperature, features that weight the teachers; empty if ``said`` determines them.
        targets: Targets computed so far, by teacher (None for the mixture) and temperature.
    """

    rows: TokenTable
    label_m: Tensor
    mixing: TeacherMixture
    student: TemperedLogits
    said: Mapping[str, TemperedLogits | TopKTail]
    features: Mapping[float, TeacherDistributions]
    targets: dict[tuple[str | None, float], TemperedLogits] = field(default_factory=dict)

    def values(self, term: Term) -> Tensor:
        """The term's values (m,), differentiable with respect to the student's logits, or a gate's scores."""
        if term.loss == GATE:
            assert self.mixing.gate is not None
            return gate_losses(self.mixing.gate, self.label_log_probs(term.temperature))
        target = self.target(term)
        is_sparse = isinstance(target, (TopKTail, TargetMixture))
        loss = SPARSE_LOSSES[term.loss] if is_sparse else LOSSES[term.loss]
        plain = target.logits if isinstance(target, TemperedLogits) else target
        return loss(self.student.logits, plain, **term.options)

    def values_and_slope(self, term: Term) -> tuple[Tensor, Tensor]:
        """The values (m,) and their gradient by the student's logits (m, V), analytic or by autograd."""
        target = self.target(term)
        slopes = SPARSE_SLOPES if isinstance(target, (TopKTail, TargetMixture)) else GRADIENTS
        if term.loss in slopes:
            with torch.no_grad():
                return slopes[term.loss](self.student, target, **term.options)
        plain = target.logits if isinstance(target, TemperedLogits) else target
        with torch.enable_grad():
            leaf_mV = self.student.logits.detach().requires_grad_()
            values_m = LOSSES[term.loss](leaf_mV, plain, **term.options)
            (slope_mV,) = torch.autograd.grad(values_m.sum(), leaf_mV)
        return values_m.detach(), slope_mV

    @torch.no_grad()
    def label_log_probs(self, temperature: float) -> Tensor:
        """Log-probability of the label under each teacher of the mixture, (m, M)."""
        said = [self.said[name] for name in self.mixing.teachers]
        found = weighting_features(said, self.label_m, ["label_log_prob"], temperature).label_log_prob
        assert found is not None
        return found

    @torch.no_grad()
    def weights(self, temperature: float) -> Tensor:
        """Weight of each teacher of the mixture, (m, M)."""
        features = self.features.get(temperature) or weighting_features(
            [self.said[name] for name in self.mixing.teachers], self.label_m, self.mixing.needs, temperature
        )
        return self.mixing.weights(features, self.label_m, like=self.student.logits)

    @torch.no_grad()
    def target(self, term: Term) -> Tensor | TemperedLogits | TopKTail | TargetMixture:
        """Labels, a teacher's distribution, or the teachers' mixture."""
        if term.teacher is None:
            return self.label_m
        names = self.mixing.teachers if term.teacher == COMBINED else (term.teacher,)
        temperature, linear = term.temperature, term.loss in SPARSE_LOSSES
        if len(names) == 1:
            return self._of(names[0], temperature, linear=linear)
        said = [self.said[name] for name in names]
        if linear and any(isinstance(one, TopKTail) for one in said):
            parts = [
                one
                if isinstance(one, TopKTail)
                else FullDistribution(one.log_probs(temperature), temperature)
                for one in said
            ]
            return TargetMixture(parts, self.weights(temperature))
        key = (None, temperature)
        if key not in self.targets:
            log_probs_mV = {name: self.log_probs(name, temperature) for name in names}
            mixed_mV = mixture(log_probs_mV, self.weights(temperature))
            self.targets[key] = TemperedLogits.of_log_probs(mixed_mV, temperature)
        return self.targets[key]

    @torch.no_grad()
    def log_probs(self, name: str, temperature: float) -> Tensor:
        """A teacher's log-probabilities (m, V); the tail of a sparse target is spread evenly."""
        one = self.said[name]
        if isinstance(one, TemperedLogits):
            return one.log_probs(temperature)
        one.check(temperature)
        return one.spread(self.rows.outcomes)

    def _of(self, name: str, temperature: float, *, linear: bool) -> TemperedLogits | TopKTail:
        """One teacher's distribution; kept sparse for a loss that is linear in it."""
        one = self.said[name]
        if isinstance(one, TemperedLogits) or linear:
            return one
        key = (name, temperature)
        if key not in self.targets:
            self.targets[key] = TemperedLogits.of_log_probs(self.log_probs(name, temperature), temperature)
        return self.targets[key]

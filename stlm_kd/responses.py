"""The terms over outcomes, a vocabulary or classes: teachers combined, losses per token masked and added up.

The tokens of a chunk are taken apart by the terms that count them (``_Group``), and each group into blocks
that stay in a processor's caches (``_Block``): products with heads want many tokens, everything else few.

Shapes: N tokens that some term needs, n tokens of one chunk, m of these in a group or block, b in a block,
D width, V outcomes of the student's head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from stlm_kd.combine import COMBINERS
from stlm_kd.distributions import Distribution
from stlm_kd.losses import LOSSES, SLOPES, SPARSE_LOSSES, SPARSE_SLOPES, Softened, Sparse
from stlm_kd.losses.chunked import block_rows, chunked_losses
from stlm_kd.losses.precision import at_least_float32
from stlm_kd.models.forward import Head
from stlm_kd.terms import COMBINED, Combination, Term


@dataclass(frozen=True, slots=True)
class Rows:
    """What the terms of N tokens need besides the student's logits.

    Attributes:
        terms: What to compute, with plain numbers only.
        combination: For the terms whose teacher is ``COMBINED``.
        labels: The right outcome, (N,); ``IGNORED`` or anything where no term on labels counts it.
        masks: For each term, the tokens that it counts, (N,) bool.
        teachers: What each teacher says of the N tokens.
        outcomes: Outcomes of the student's head, padded ones included.
    """

    terms: Sequence[Term]
    combination: Combination
    labels: Tensor
    masks: Sequence[Tensor]
    teachers: Mapping[str, Distribution]
    outcomes: int

    def counted(self) -> Tensor:
        """The tokens that some term counts, (N,) bool."""
        return torch.stack([*self.masks]).any(0)

    def only(self, chosen_N: Tensor) -> Rows:
        """The same of the tokens under a mask."""
        return replace(
            self,
            labels=self.labels[chosen_N],
            masks=[mask_N[chosen_N] for mask_N in self.masks],
            teachers={name: said.rows(chosen_N) for name, said in self.teachers.items()},
        )

    def groups(self) -> list[list[int]]:
        """The terms by index, those together that count the same tokens: they share what is computed."""
        groups: list[list[int]] = []
        for i, mask_N in enumerate(self.masks):
            same = next((own for own in groups if torch.equal(self.masks[own[0]], mask_N)), None)
            if same is None:
                groups.append([i])
            else:
                same.append(i)
        return groups


def projected_losses(
    rows: Rows,
    hidden_ND: Tensor,
    head: Head,
    scales: Sequence[float],
    *,
    method: Literal["chunked", "dense"] = "chunked",
) -> tuple[Tensor, Tensor]:
    """Σ scales · sums, a scalar with its gradient; and each term's sum, detached, in float64, (terms,).

    Args:
        rows: What the terms need. A token that no term counts has no influence, whatever it holds.
        hidden_ND: The student's states that meet its head.
        head: The student's.
        scales: A factor for each term; of factor 0 it is measured only.
        method: ``chunked`` projects student and teachers to the vocabulary chunk by chunk, and has the
            gradient ready after the forward pass. ``dense`` projects all at once and leaves the gradient to
            autograd.
    """
    counted_N = rows.counted()
    if not bool(counted_N.all()):
        rows, hidden_ND = rows.only(counted_N), hidden_ND[counted_N]
    if method == "dense":
        return direct_losses(rows, functional.linear(hidden_ND, head.weight, head.bias), scales)
    share = 2 / (1 + max(len(rows.teachers), 1))  # logits of a chunk: the student's and each teacher's
    losses = _ChunkTerms(rows, scales)
    return chunked_losses(hidden_ND, head.weight, head.bias, losses, scales, share=share)


def direct_losses(rows: Rows, logits_NC: Tensor, scales: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The same from the student's logits, by autograd: for few outcomes, as a classifier's.

    Args:
        rows: What the terms need.
        logits_NC: The student's.
        scales: A factor for each term; of factor 0 it is measured only.
    """
    found: dict[int, Tensor] = {}
    for own in rows.groups():
        block = _Group(rows, own, slice(0, None), logits_NC).whole()
        found.update({i: block.values(rows.terms[i]).sum() for i in own})
    sums = [found[i] for i in range(len(rows.terms))]
    weighted = [value * scale for value, scale in zip(sums, scales, strict=True) if scale != 0]
    total = torch.stack(weighted).sum() if weighted else at_least_float32(logits_NC[:0]).sum()
    return total, torch.stack([value.detach().double() for value in sums])


@torch.no_grad()
def target_log_probs(rows: Rows, logits_nC: Tensor, chunk: slice) -> Tensor:
    """Log-probabilities (n, C) of what the only term is compared with, not softened.

    Args:
        rows: Of a term whose target is a teacher or the teachers' mixture, and which counts all of them.
        logits_nC: The student's of the chunk; they may be written over.
        chunk: The tokens.
    """
    (term,) = rows.terms
    plain = replace(term, options={**term.options, "temperature": 1.0})
    target = _Group(rows, [0], chunk, logits_nC).whole().target(plain)
    assert isinstance(target, Softened), "an intervention is answered by models that run"
    return target.log_probs(1.0)


class _ChunkTerms:
    """The terms' sums of a chunk and the derivative of their weighted total: ``ChunkLosses``."""

    def __init__(self, rows: Rows, scales: Sequence[float]) -> None:
        self.rows, self.scales, self.groups = rows, scales, rows.groups()

    def __call__(
        self, logits_nV: Tensor, chunk: slice, *, differentiate: bool
    ) -> tuple[Tensor, Tensor | None]:
        sums = torch.zeros(len(self.scales), dtype=torch.float64, device=logits_nV.device)
        total_nV: Tensor | None = None
        for group in self._groups(chunk, logits_nV):
            weighted = [i for i in group.own if differentiate and self.scales[i] != 0]
            for rows_of_block, block in group.blocks():
                with torch.no_grad():  # measured first, while the block's logits are still logits
                    for i in set(group.own) - set(weighted):
                        sums[i] += block.values(self.rows.terms[i]).double().sum()
                slope_bV = self._slope(block, weighted, sums)
                if slope_bV is not None:
                    group.logits_mV[rows_of_block] = slope_bV
            if weighted:
                total_nV = group.add_to(total_nV, logits_nV)
        return sums, total_nV

    def _groups(self, chunk: slice, logits_nV: Tensor) -> list[_Group]:
        """The groups of the chunk. One at most counts all its tokens: it comes first, and has no copy."""
        everything: list[int] = []
        parts: list[_Group] = []
        for own in self.groups:
            if bool(self.rows.masks[own[0]][chunk].all()):
                everything += own
            else:
                parts.append(_Group(self.rows, own, chunk, logits_nV))
        return [_Group(self.rows, everything, chunk, logits_nV), *parts] if everything else parts

    def _slope(self, block: _Block, weighted: Sequence[int], sums: Tensor) -> Tensor | None:
        """The derivative of a block's weighted total, whose terms it adds to the sums."""
        total_bV: Tensor | None = None
        for i in weighted:
            values_b, slope_bV = block.values_and_slope(self.rows.terms[i])
            sums[i] += values_b.double().sum()
            slope_bV = slope_bV.mul_(self.scales[i])
            total_bV = slope_bV if total_bV is None else total_bV.add_(slope_bV)
        return total_bV


class _Group:
    """The tokens of a chunk that some terms count. Others are not looked at: they may hold NaN.

    Args:
        rows: Of all tokens.
        own: The terms that count these tokens.
        chunk: Of all tokens.
        logits_nV: The student's of the chunk.
    """

    def __init__(self, rows: Rows, own: Sequence[int], chunk: slice, logits_nV: Tensor) -> None:
        mask_n = rows.masks[own[0]][chunk]
        self.rows, self.own = rows, own
        self.within = None if bool(mask_n.all()) else mask_n.nonzero().squeeze(1)
        self.chosen = chunk if self.within is None else self.within + chunk.start
        self.logits_mV = logits_nV if self.within is None else logits_nV[self.within]

    def whole(self) -> _Block:
        """All of its tokens."""
        return _Block(self.rows, self.rows.labels[self.chosen], Softened(self.logits_mV), self._said())

    def blocks(self) -> Iterator[tuple[slice, _Block]]:
        """Its tokens, so few at a time that what the losses make of them stays small."""
        label_m, said, size = self.rows.labels[self.chosen], self._said(), block_rows(self.logits_mV)
        for start in range(0, len(label_m), size):
            few = slice(start, start + size)
            part = {
                name: one.rows(few) if isinstance(one, Sparse) else one[few] for name, one in said.items()
            }
            yield few, _Block(self.rows, label_m[few], Softened(self.logits_mV[few]), part)

    def add_to(self, total_nV: Tensor | None, logits_nV: Tensor) -> Tensor:
        """The chunk's derivative with this group's, which stands in the place of its logits."""
        if self.within is None:
            return self.logits_mV
        total_nV = logits_nV.zero_() if total_nV is None else total_nV
        return total_nV.index_add_(0, self.within, self.logits_mV)

    @torch.no_grad()
    def _said(self) -> dict[str, Tensor | Sparse]:
        """What the teachers that its terms ask say: logits (m, V), or sparse targets."""
        terms = [self.rows.terms[i] for i in self.own]
        mixed = any(term.teacher == COMBINED for term in terms)
        asked = self.rows.teachers if mixed else {term.teacher for term in terms}
        said: dict[str, Tensor | Sparse] = {}
        for name, one in self.rows.teachers.items():
            if name in asked:
                if isinstance(one, Sparse):
                    said[name] = one.rows(self.chosen)
                else:
                    said[name] = one.logits(self.chosen, self.rows.outcomes)
        return said


class _Block:
    """Some tokens, all of which the terms count, and what these terms share.

    Args:
        rows: Of all tokens.
        label_m: These tokens' labels, (m,).
        student: Their logits.
        said: By teacher, logits (m, V) or sparse targets of these tokens.
    """

    def __init__(
        self, rows: Rows, label_m: Tensor, student: Softened, said: Mapping[str, Tensor | Sparse]
    ) -> None:
        self.rows, self.label_m, self.student = rows, label_m, student
        self.said = {name: one if isinstance(one, Sparse) else Softened(one) for name, one in said.items()}
        self.targets: dict[tuple[str | None, float, bool], Softened] = {}

    def values(self, term: Term) -> Tensor:
        """The term's values (m,), differentiable by the student's logits."""
        target = self.target(term)
        loss = SPARSE_LOSSES[term.loss] if isinstance(target, Sparse) else LOSSES[term.loss]
        plain = target.logits if isinstance(target, Softened) else target
        return loss(self.student.logits, plain, **term.options)

    def values_and_slope(self, term: Term) -> tuple[Tensor, Tensor]:
        """The values (m,) and their derivative by the student's logits, (m, V), by formula or autograd."""
        target = self.target(term)
        slopes = SPARSE_SLOPES if isinstance(target, Sparse) else SLOPES
        if term.loss in slopes:
            with torch.no_grad():
                return slopes[term.loss](self.student, target, **term.options)
        plain = target.logits if isinstance(target, Softened) else target
        with torch.enable_grad():
            leaf_mV = self.student.logits.detach().requires_grad_()
            values_m = LOSSES[term.loss](leaf_mV, plain, **term.options)
            (slope_mV,) = torch.autograd.grad(values_m.sum(), leaf_mV)
        return values_m.detach(), slope_mV

    @torch.no_grad()
    def target(self, term: Term) -> Tensor | Softened | Sparse:
        """Labels, a teacher's distribution, or the teachers' mixture."""
        if term.teacher is None:
            return self.label_m
        mixed = term.teacher == COMBINED and len(self.said) > 1
        name = None if mixed else next(iter(self.said)) if term.teacher == COMBINED else term.teacher
        if name is not None:
            return self._of(name, term.temperature, linear=term.loss in SPARSE_LOSSES)
        key = (None, term.temperature, self._estimated(term))
        if key not in self.targets:
            mixture_mV = self._mixture(term.temperature, linear=self._estimated(term))
            self.targets[key] = Softened.of_log_probs(mixture_mV, term.temperature)
        return self.targets[key]

    def _estimated(self, term: Term) -> bool:
        """Whether sparse targets have to be estimated without bias, since the loss is linear in them."""
        return term.loss in SPARSE_LOSSES and any(isinstance(one, Sparse) for one in self.said.values())

    def _mixture(self, temperature: float, *, linear: bool) -> Tensor:
        """Log-probabilities (m, V) of the teachers combined."""
        log_probs_mV: dict[str, Tensor] = {}
        for name, one in self.said.items():
            if isinstance(one, Sparse):
                one.check(temperature)
                log_probs_mV[name] = (
                    one.estimate(self.rows.outcomes) if linear else one.spread(self.rows.outcomes)
                )
            else:
                log_probs_mV[name] = one.log_probs(temperature)
        combine = COMBINERS[self.rows.combination.how]
        return combine(log_probs_mV, self.label_m, **self.rows.combination.options)

    def _of(self, name: str, temperature: float, *, linear: bool) -> Softened | Sparse:
        """One teacher's distribution; a sparse one stays so for a loss that is linear in it."""
        one = self.said[name]
        if isinstance(one, Softened) or linear:
            return one
        one.check(temperature)
        key = (name, temperature, False)
        if key not in self.targets:
            self.targets[key] = Softened.of_log_probs(one.spread(self.rows.outcomes), temperature)
        return self.targets[key]

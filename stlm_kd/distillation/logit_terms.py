"""Loss terms on logits over a vocabulary or classes: per-token losses, masked and summed.

Shapes: N tokens that some term needs, n tokens of one chunk, b in a block, D width, V size of the student's
head, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from stlm_kd.distillation.terms import Term
from stlm_kd.distillation.token_table import TermGroup, TokenBlock, TokenTable
from stlm_kd.losses import TemperedLogits
from stlm_kd.losses.chunked import chunked_losses
from stlm_kd.losses.precision import at_least_float32
from stlm_kd.models.forward import Head
from stlm_kd.teachers.combination.gate import GATE, gate_losses


def projected_losses(
    rows: TokenTable,
    hidden_ND: Tensor,
    head: Head,
    scales: Sequence[float],
    *,
    method: Literal["chunked", "dense"] = "chunked",
) -> tuple[Tensor, Tensor]:
    """The differentiable total Σ scales · sums, a scalar; and each term's detached sum in float64, (terms,).

    A gate's term contributes to the gradient of the total but not to its value: it is not a loss of the
    student, and the value stays comparable between objectives with and without a gate. A term of scale 0 is
    measured only. A token that no term counts has no effect, even if it holds NaN.

    ``hidden_ND`` is the input of the student's head. ``chunked`` projects student and teachers to the
    vocabulary chunk by chunk and computes the gradient in the forward pass; ``dense`` projects all tokens at
    once and uses autograd.
    """
    counted_N = torch.stack([*rows.masks]).any(0)
    if not bool(counted_N.all()):
        rows, hidden_ND = rows.only(counted_N), hidden_ND[counted_N]
    if method == "dense":
        return direct_losses(rows, functional.linear(hidden_ND, head.weight, head.bias), scales)
    # Logits of a chunk: the student's, each teacher's, and one teacher's before an intervention.
    share = 2 / (1 + max(len(rows.teachers), 1) + (rows.weighting_targets is not None))
    of_logits = [0.0 if term.loss == GATE else scale for term, scale in zip(rows.terms, scales, strict=True)]
    losses = _ChunkTerms(rows, of_logits)
    total, sums = chunked_losses(hidden_ND, head.weight, head.bias, losses, of_logits, share=share)
    return total + _gate_loss(rows, losses.label_log_probs, scales), sums


def _gate_loss(
    rows: TokenTable, label_log_probs_NM: Tensor | None, scales: Sequence[float]
) -> Tensor | float:
    """The gate's part of the total, from the label log-probabilities of the chunks; 0 without a gate."""
    if label_log_probs_NM is None:
        return 0.0
    assert rows.mixing.gate is not None
    (i,) = (i for i, term in enumerate(rows.terms) if term.loss == GATE)
    mask_N = rows.masks[i]
    losses_n = gate_losses(rows.mixing.gate[mask_N], label_log_probs_NM[mask_N])
    return _gradient_alone(scales[i] * losses_n.sum())


def _gradient_alone(loss: Tensor) -> Tensor:
    """Value 0, with the gradient of the loss."""
    return loss - loss.detach()


def direct_losses(rows: TokenTable, logits_NC: Tensor, scales: Sequence[float]) -> tuple[Tensor, Tensor]:
    """As ``projected_losses``, from the student's logits by autograd: for few classes, as a classifier's."""
    found: dict[int, Tensor] = {}
    for own in rows.groups():
        block = TermGroup(rows, own, slice(0, len(logits_NC)), logits_NC).whole()
        found.update({i: block.values(rows.terms[i]).sum() for i in own})
    sums = [found[i] for i in range(len(rows.terms))]
    enters = [
        _gradient_alone(value) if term.loss == GATE else value
        for term, value in zip(rows.terms, sums, strict=True)
    ]
    weighted = [value * scale for value, scale in zip(enters, scales, strict=True) if scale != 0]
    total = torch.stack(weighted).sum() if weighted else at_least_float32(logits_NC[:0]).sum()
    return total, torch.stack([value.detach().double() for value in sums])


@torch.no_grad()
def target_log_probs(rows: TokenTable, logits_nC: Tensor, chunk: slice) -> Tensor:
    """Log-probabilities (n, C), at temperature 1, of the target of the only term, which counts all tokens.

    The target is a teacher or the teachers' mixture. The student's logits may be overwritten.
    """
    (term,) = rows.terms
    plain = replace(term, options={**term.options, "temperature": 1.0})
    target = TermGroup(replace(rows, terms=[plain]), [0], chunk, logits_nC).whole().target(plain)
    assert isinstance(target, TemperedLogits), "interventions need live teachers"
    return target.log_probs(1.0)


class _ChunkTerms:
    """The terms' sums over a chunk and the gradient of their weighted total: ``ChunkLosses``.

    ``label_log_probs`` are, for a gate, those of each teacher, (N, M); 0 at tokens that the gate does not
    count.
    """

    def __init__(self, rows: TokenTable, scales: Sequence[float]) -> None:
        self.rows, self.scales, self.groups = rows, scales, rows.groups()
        gate = rows.mixing.gate if any(term.loss == GATE for term in rows.terms) else None
        self.label_log_probs = None if gate is None else torch.zeros_like(gate)

    def __call__(
        self, logits_nV: Tensor, chunk: slice, *, differentiate: bool
    ) -> tuple[Tensor, Tensor | None]:
        sums = torch.zeros(len(self.scales), dtype=torch.float64, device=logits_nV.device)
        total_nV: Tensor | None = None
        for group in self._groups(chunk, logits_nV):
            weighted = [i for i in group.own if differentiate and self.scales[i] != 0]
            for rows_of_block, block in group.blocks():
                with torch.no_grad():  # first, because the slope overwrites the block's logits
                    for i in set(group.own) - set(weighted):
                        sums[i] += block.values(self.rows.terms[i]).double().sum()
                        self._note(self.rows.terms[i], group.places(rows_of_block), block)
                slope_bV = self._slope(block, weighted, sums)
                if slope_bV is not None:
                    group.logits_mV[rows_of_block] = slope_bV
            if weighted:
                total_nV = group.add_to(total_nV, logits_nV)
        return sums, total_nV

    def _note(self, term: Term, places: Tensor | slice, block: TokenBlock) -> None:
        """Store the label log-probabilities that the gate's gradient needs."""
        if term.loss == GATE:
            assert self.label_log_probs is not None
            self.label_log_probs[places] = block.label_log_probs(term.temperature).to(self.label_log_probs)

    def _groups(self, chunk: slice, logits_nV: Tensor) -> list[TermGroup]:
        """The groups of the chunk. At most one covers all tokens; it comes first and needs no copy."""
        everything: list[int] = []
        parts: list[TermGroup] = []
        for own in self.groups:
            if bool(self.rows.masks[own[0]][chunk].all()):
                everything += own
            else:
                parts.append(TermGroup(self.rows, own, chunk, logits_nV))
        return [TermGroup(self.rows, everything, chunk, logits_nV), *parts] if everything else parts

    def _slope(self, block: TokenBlock, weighted: Sequence[int], sums: Tensor) -> Tensor | None:
        """The gradient of a block's weighted total; adds the terms' values to ``sums``."""
        total_bV: Tensor | None = None
        for i in weighted:
            values_b, slope_bV = block.values_and_slope(self.rows.terms[i])
            sums[i] += values_b.double().sum()
            slope_bV = slope_bV.mul_(self.scales[i])
            total_bV = slope_bV if total_bV is None else total_bV.add_(slope_bV)
        return total_bV

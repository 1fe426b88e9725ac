"""Agreement and weights of the combined teachers, measured in logged steps.

Shapes: B rows, n tokens of a block, M teachers, V tokens or classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import torch
from torch import Tensor

from stlm_kd.data.batch import IGNORED
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.distillation.objective import ForwardOutputs, base_targets
from stlm_kd.distillation.terms import Term
from stlm_kd.distillation.token_table import TermGroup, TokenBlock, TokenTable
from stlm_kd.losses import LOSSES, TopKTail
from stlm_kd.losses.chunked import chunk_rows, pieces
from stlm_kd.teachers import COMBINED
from stlm_kd.teachers.combination import TeacherMixture
from stlm_kd.teachers.combination.gate import LEAST_LOG_PROB
from stlm_kd.teachers.targets import Dense, Distribution, Logits
from stlm_kd.training.protocols import MeanMetric

OF_EACH = ("teacher_weight", "teacher_kl", "teacher_label_loss")
OF_PAIRS = ("teachers_agree/top-1", "teachers_differ/jensen_shannon")


def combined_term(terms: Sequence[Term]) -> Term | None:
    """The first term whose target is the teachers' mixture: the one that is measured."""
    return next((term for term in terms if term.teacher == COMBINED and term.loss in LOSSES), None)


def ensemble_names(terms: Sequence[Term], teachers: Sequence[str]) -> list[str]:
    """Names of the metrics that ``ensemble_measures`` may return for a step, as ``group/name``.

    Args:
        terms: Terms of the step.
        teachers: Teachers in its mixture.
    """
    if combined_term(terms) is None:
        return []
    each = [f"{group}/{name}" for group in OF_EACH for name in teachers]
    return [*each, *(OF_PAIRS if len(teachers) > 1 else ())]


@torch.no_grad()
def ensemble_measures(
    terms: Sequence[Term], mixing: TeacherMixture, batch: AnyBatch, sides: ForwardOutputs
) -> dict[str, MeanMetric]:
    """Weights, losses and agreement of the teachers, of one micro-batch, without interventions.

    Measured over the tokens of the first term on the mixture, at its temperature: each teacher's mean weight;
    KL(teacher || student) in nats; -log p(label) in nats, where there is a label; and over all pairs of
    teachers, the rate of equal top-1 predictions and the Jensen-Shannon divergence in nats. The tail of
    cached targets counts as uniform, except for the label's stored probability.

    Args:
        terms: Terms of the step.
        mixing: Mixture of the step.
        batch: Labels and masks.
        sides: Outputs of student and teachers.
    """
    term = combined_term(terms)
    if term is None:
        return {}
    rows, student = base_targets(term, mixing, batch, sides)
    totals: dict[str, Tensor] = {}
    labelled = (rows.labels != IGNORED).sum()
    with torch.autocast(rows.labels.device.type, enabled=False):
        for block in _blocks(rows, student):
            for name, value_n in _values(block, term.temperature):
                totals[name] = totals.get(name, 0.0) + value_n.sum(dtype=torch.float64)
    counted = torch.tensor(len(rows.labels), device=rows.labels.device)
    return {
        name: MeanMetric(totals[name], labelled if name.startswith("teacher_label_loss") else counted)
        for name in ensemble_names(terms, mixing.teachers)
        if name in totals
    }


def _blocks(rows: TokenTable, student: Distribution) -> Iterator[TokenBlock]:
    number = len(rows.labels)
    size = max(number, 1)
    assert isinstance(student, (Dense, Logits))
    if isinstance(student, Dense):  # logits of student and teachers
        size = chunk_rows(student.head.weight, 2 / (1 + len(rows.teachers)))
    for chunk in pieces(number, size):
        group = TermGroup(rows, [0], chunk, student.logits(chunk, rows.outcomes))
        yield from (block for _, block in group.blocks())


def _values(block: TokenBlock, temperature: float) -> Iterator[tuple[str, Tensor]]:
    """Each metric at the tokens of a block, (n,)."""
    names = block.mixing.teachers
    own_nV = block.student.log_probs(temperature)
    weights_nM = block.weights(temperature)
    log_probs = [block.log_probs(name, temperature) for name in names]
    labelled_n = block.label_m != IGNORED
    place_n1 = block.label_m.masked_fill(~labelled_n, 0)[:, None]
    for name, weight_n, log_nV in zip(names, weights_nM.unbind(-1), log_probs, strict=True):
        target = block.said[name]
        stored_n = target.label_log_probs if isinstance(target, TopKTail) else None
        label_n = log_nV.gather(-1, place_n1).squeeze(-1) if stored_n is None else stored_n
        label_n = label_n.clamp(min=LEAST_LOG_PROB)
        yield f"teacher_weight/{name}", weight_n
        yield f"teacher_kl/{name}", -_entropy(log_nV) - (log_nV.exp() * own_nV).sum(-1)
        yield f"teacher_label_loss/{name}", -label_n * labelled_n
    if len(names) > 1:
        pairs = list(combinations(log_probs, 2))
        same = [one.argmax(-1) == other.argmax(-1) for one, other in pairs]
        yield OF_PAIRS[0], torch.stack(same).double().mean(0)
        yield OF_PAIRS[1], torch.stack([_jensen_shannon(*pair) for pair in pairs]).mean(0)


def _entropy(log_nV: Tensor) -> Tensor:
    entropy_n: Tensor = torch.special.entr(log_nV.exp()).sum(-1)
    return entropy_n


def _jensen_shannon(one_nV: Tensor, other_nV: Tensor) -> Tensor:
    """Jensen-Shannon divergence: entropy of the mean distribution minus the mean entropy."""
    middle_nV = (one_nV.exp() + other_nV.exp()) / 2
    return _entropy(middle_nV.log_()) - (_entropy(one_nV) + _entropy(other_nV)) / 2

"""Metrics of logged steps beside the losses: effects of interventions, agreement and weights of teachers.

Shapes: N positions that a term counts, n of these in a chunk or block, M teachers, V tokens or classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from stlm_kd.data.batch import IGNORED
from stlm_kd.distillation.logit_terms import target_log_probs
from stlm_kd.distillation.objective import ForwardOutputs, base_targets, paired_targets
from stlm_kd.distillation.terms import Term
from stlm_kd.distillation.token_table import TermGroup, TokenBlock, TokenTable
from stlm_kd.interventions import SOURCES, layer_at
from stlm_kd.interventions.metrics import RATIOS, SUMS, DistributionPair, effects
from stlm_kd.interventions.spec import Intervention
from stlm_kd.losses import LOSSES, TopKTail
from stlm_kd.losses.chunked import chunk_rows, pieces
from stlm_kd.teachers import COMBINED
from stlm_kd.teachers.combination.gate import LEAST_LOG_PROB
from stlm_kd.teachers.targets import Dense, Logits
from stlm_kd.training.protocols import MeanMetric

OF_INTERVENTIONS = ("agreement", "interchange_accuracy", "teacher_effect", "student_effect")
"""Keys of ``RATIOS``."""

OF_EACH_TEACHER = ("teacher_weight", "teacher_kl", "teacher_label_loss")
OF_TEACHER_PAIRS = ("teachers_agree/top-1", "teachers_differ/jensen_shannon")


def intervention_metric_names(terms: Sequence[Term], *, seed: int, index: int, steps: int) -> list[str]:
    """Names, as ``name.metric/layer``, in step ``index`` (from 0); ``seed`` determines the drawn layers."""
    found = []
    for _, intervention in _intervention_terms(terms):
        layer = layer_at(intervention, seed, index=index, steps=steps)
        found += [_intervention_name(intervention, metric, layer) for metric in OF_INTERVENTIONS]
    return found


@torch.no_grad()
def intervention_metrics(
    terms: Sequence[Term], outputs: ForwardOutputs, layers: Mapping[str, int]
) -> dict[str, MeanMetric]:
    """The metrics named by ``intervention_metric_names`` for one micro-batch.

    They compare distributions at temperature 1, whatever the term's temperature: the student's in training
    mode, and the term's target. ``layers`` is the student's layer that each intervention overwrites;
    ``outputs`` includes the teachers' without an intervention.
    """
    found: dict[str, MeanMetric] = {}
    for term, intervention in _intervention_terms(terms):
        sums = _intervention_sums(term, outputs)
        for metric in OF_INTERVENTIONS:
            above, below = RATIOS[metric]
            name = _intervention_name(intervention, metric, layers[intervention.name])
            found[name] = MeanMetric(sums[above], sums[below])
    return found


def _intervention_terms(terms: Sequence[Term]) -> Iterator[tuple[Term, Intervention]]:
    """The terms that compare output distributions after an intervention."""
    return (
        (term, term.intervention) for term in terms if term.intervention is not None and term.loss in LOSSES
    )


def _intervention_name(intervention: Intervention, metric: str, layer: int) -> str:
    where = "tokens" if SOURCES[intervention.source].replaces == "tokens" else f"layer{layer}"
    return f"{intervention.name}.{metric}/{where}"


def _intervention_sums(term: Term, outputs: ForwardOutputs) -> dict[str, Tensor]:
    """``SUMS`` over the N positions, by name."""
    rows, student = paired_targets(term, outputs)
    number = len(rows.labels) // 2
    totals = torch.zeros(len(SUMS), dtype=torch.float64, device=rows.labels.device)
    with torch.autocast(rows.labels.device.type, enabled=False):
        # Logits of all models, before and after.
        for before in _chunks(number, student, 0.5 / (1 + len(rows.teachers))):
            after = slice(before.start + number, before.stop + number)
            pair = (_teacher_and_student(rows, student, chunk) for chunk in (before, after))
            found = effects(*pair)
            totals += torch.stack([found[name].sum(dtype=torch.float64) for name in SUMS])
    return dict(zip(SUMS, totals, strict=True))


def _teacher_and_student(rows: TokenTable, student: Dense | Logits, chunk: slice) -> DistributionPair:
    """Log-probabilities of target and student."""
    logits_nV = student.logits(chunk, rows.outcomes)
    own_nV = logits_nV.log_softmax(-1)
    return DistributionPair(target_log_probs(rows, logits_nV, chunk), own_nV)


def _chunks(number: int, student: Dense | Logits, share: float) -> Iterator[slice]:
    """Slices of N positions; a classifier's few logits need no chunks."""
    size = chunk_rows(student.head.weight, share) if isinstance(student, Dense) else max(number, 1)
    return pieces(number, size)


def teacher_metric_names(terms: Sequence[Term], teachers: Sequence[str]) -> list[str]:
    """Names of the metrics that ``teacher_metrics`` may return for a mixture of these, as ``group/name``."""
    if _combined_term(terms) is None:
        return []
    each = [f"{group}/{name}" for group in OF_EACH_TEACHER for name in teachers]
    return [*each, *(OF_TEACHER_PAIRS if len(teachers) > 1 else ())]


@torch.no_grad()
def teacher_metrics(terms: Sequence[Term], outputs: ForwardOutputs) -> dict[str, MeanMetric]:
    """Weights, losses and agreement of the teachers, of one micro-batch, without interventions.

    Measured over the tokens of the first term on the mixture, at its temperature: each teacher's mean weight;
    KL(teacher || student) in nats; -log p(label) in nats, where there is a label; and over all pairs of
    teachers, the rate of equal top-1 predictions and the Jensen-Shannon divergence in nats. The tail of
    cached targets counts as uniform, except for the label's stored probability.
    """
    term = _combined_term(terms)
    if term is None:
        return {}
    rows, student = base_targets(term, outputs)
    totals: dict[str, Tensor] = {}
    labelled = (rows.labels != IGNORED).sum()
    with torch.autocast(rows.labels.device.type, enabled=False):
        # Logits of student and teachers.
        for chunk in _chunks(len(rows.labels), student, 2 / (1 + len(rows.teachers))):
            group = TermGroup(rows, [0], chunk, student.logits(chunk, rows.outcomes))
            for _, block in group.blocks():
                for name, value_n in _teacher_values(block, term.temperature):
                    totals[name] = totals.get(name, 0.0) + value_n.sum(dtype=torch.float64)
    counted = torch.tensor(len(rows.labels), device=rows.labels.device)
    return {
        name: MeanMetric(totals[name], labelled if name.startswith("teacher_label_loss") else counted)
        for name in teacher_metric_names(terms, outputs.mixing.teachers)
        if name in totals
    }


def _combined_term(terms: Sequence[Term]) -> Term | None:
    """The first term whose target is the teachers' mixture: the one that is measured."""
    return next((term for term in terms if term.teacher == COMBINED and term.loss in LOSSES), None)


def _teacher_values(block: TokenBlock, temperature: float) -> Iterator[tuple[str, Tensor]]:
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
        yield OF_TEACHER_PAIRS[0], torch.stack(same).double().mean(0)
        yield OF_TEACHER_PAIRS[1], torch.stack([_jensen_shannon(*pair) for pair in pairs]).mean(0)


def _entropy(log_nV: Tensor) -> Tensor:
    entropy_n: Tensor = torch.special.entr(log_nV.exp()).sum(-1)
    return entropy_n


def _jensen_shannon(one_nV: Tensor, other_nV: Tensor) -> Tensor:
    """Jensen-Shannon divergence: entropy of the mean distribution minus the mean entropy."""
    middle_nV = (one_nV.exp() + other_nV.exp()) / 2
    return _entropy(middle_nV.log_()) - (_entropy(one_nV) + _entropy(other_nV)) / 2

"""Metrics per layer of a step's interventions on student and teachers; they do not enter the loss.

Shapes: N positions or examples that a term counts and its intervention affects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.distillation.logit_terms import target_log_probs
from stlm_kd.distillation.objective import ForwardOutputs, paired_targets
from stlm_kd.distillation.terms import Term
from stlm_kd.distillation.token_table import TokenTable
from stlm_kd.interventions import SOURCES, layer_at
from stlm_kd.interventions.metrics import RATIOS, SUMS, DistributionPair, effects
from stlm_kd.interventions.spec import Intervention
from stlm_kd.losses import LOSSES
from stlm_kd.losses.chunked import chunk_rows, pieces
from stlm_kd.teachers.combination import TeacherMixture
from stlm_kd.teachers.targets import Dense, Distribution, Logits
from stlm_kd.training.protocols import MeanMetric

MEASURED = ("agreement", "interchange_accuracy", "teacher_effect", "student_effect")
"""Keys of ``RATIOS``."""


def counterfactual_terms(terms: Sequence[Term]) -> list[Term]:
    """The terms that compare output distributions after an intervention: those with metrics."""
    return [term for term in terms if term.intervention is not None and term.loss in LOSSES]


def measure_names(terms: Sequence[Term], *, seed: int, index: int, steps: int) -> list[str]:
    """Names of the intervention metrics of optimizer step ``index``, as ``name.metric/layer``.

    Args:
        terms: Terms of the step.
        seed: Random seed of the drawn layers.
        index: Optimizer step, from 0.
        steps: Number of optimizer steps.
    """
    found = []
    for term in counterfactual_terms(terms):
        assert term.intervention is not None
        layer = layer_at(term.intervention, seed, index=index, steps=steps)
        found += [_name(term.intervention, metric, layer) for metric in MEASURED]
    return found


@torch.no_grad()
def measured(
    terms: Sequence[Term],
    mixing: TeacherMixture,
    batch: AnyBatch,
    sides: ForwardOutputs,
    layers: Mapping[str, int],
) -> dict[str, MeanMetric]:
    """The metrics named by ``measure_names`` for one micro-batch.

    Covers the positions that a term counts and its intervention can affect. Compares distributions at
    temperature 1, whatever the term's temperature: the student's in training mode, and the term's target.

    Args:
        terms: Terms of the step.
        mixing: Mixture for targets of several teachers.
        batch: Labels and masks.
        sides: Outputs of student and teachers, including the teachers' without an intervention.
        layers: By intervention, the student's layer that it overwrites.
    """
    found: dict[str, MeanMetric] = {}
    for term in counterfactual_terms(terms):
        assert term.intervention is not None
        sums = _sums(term, mixing, batch, sides)
        for metric in MEASURED:
            above, below = RATIOS[metric]
            name = _name(term.intervention, metric, layers[term.intervention.name])
            found[name] = MeanMetric(sums[above], sums[below])
    return found


def _name(intervention: Intervention, metric: str, layer: int) -> str:
    where = "tokens" if SOURCES[intervention.source].replaces == "tokens" else f"layer{layer}"
    return f"{intervention.name}.{metric}/{where}"


def _sums(term: Term, mixing: TeacherMixture, batch: AnyBatch, sides: ForwardOutputs) -> dict[str, Tensor]:
    """``SUMS`` over the N positions, by name."""
    rows, student = paired_targets(term, mixing, batch, sides)
    totals = torch.zeros(len(SUMS), dtype=torch.float64, device=rows.labels.device)
    with torch.autocast(rows.labels.device.type, enabled=False):
        for before, after in _chunks(rows, student):
            found = effects(before, after)
            totals += torch.stack([found[name].sum(dtype=torch.float64) for name in SUMS])
    return dict(zip(SUMS, totals, strict=True))


def _chunks(rows: TokenTable, student: Distribution) -> Iterator[tuple[DistributionPair, DistributionPair]]:
    """Log-probabilities of target and student in chunks of positions, before and after the intervention."""
    number = len(rows.labels) // 2
    size = max(number, 1)
    if isinstance(student, Dense):  # logits of all models, before and after
        size = chunk_rows(student.head.weight, 0.5 / (1 + len(rows.teachers)))
    for few in pieces(number, size):
        later = slice(few.start + number, few.stop + number)
        yield _student_and_target(rows, student, few), _student_and_target(rows, student, later)


def _student_and_target(rows: TokenTable, student: Distribution, chunk: slice) -> DistributionPair:
    assert isinstance(student, (Dense, Logits))
    logits_nV = student.logits(chunk, rows.outcomes)
    own_nV = logits_nV.log_softmax(-1)
    return DistributionPair(target_log_probs(rows, logits_nV, chunk), own_nV)

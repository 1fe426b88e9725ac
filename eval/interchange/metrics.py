"""Interchange intervention accuracy: student and teacher outputs when hidden states are swapped in both.

A student that has learnt the teacher's causal structure has the teacher's outputs after the same intervention
(Geiger et al., "Causal Abstractions of Neural Networks", 2021; as a distillation objective: Wu et al.,
"Causal Distillation for Language Models", 2022). Only positions that an intervention can affect are counted:
in a causal model, those of the document from the first swapped position on.

Shapes: B rows, T positions, N counted positions, n of one chunk, D hidden width, V tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import TYPE_CHECKING, Literal

from transformers import PreTrainedModel

from stlm_kd.artifacts.results import ExampleScore, Score, SuiteResult
from stlm_kd.data.batch import Batch
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.eval.interchange.config import ALL, SUITE
from stlm_kd.eval.language_modeling.likelihood import ratio_stderr
from stlm_kd.eval.runner import require_finite
from stlm_kd.interventions import Plan, SourceInputs, draw_plan
from stlm_kd.interventions.metrics import RATIOS, SUMS, DistributionPair, effects
from stlm_kd.interventions.plan import Tokens
from stlm_kd.interventions.rerun import InterventionPass
from stlm_kd.interventions.spec import Intervention
from stlm_kd.lazy import torch
from stlm_kd.losses.chunked import chunk_rows, pieces
from stlm_kd.models.forward import evaluating, inputs_of, vocabulary_head
from stlm_kd.models.layer_alignment import Alignment
from stlm_kd.models.outputs import ModelOutputs, OutputSpec, forward_with_outputs
from stlm_kd.teachers.targets import Dense, Logits

if TYPE_CHECKING:
    from torch import Tensor


TEACHER = "teacher"
OF_TEACHER = ("teacher_changes", "teacher_effect")
"""Metrics that do not depend on the student."""

Tops = tuple[set[int], set[int]]
"""All top-1 predictions of the teacher and of the student, with and without interventions."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """An intervention on a batch, shared by all layers and students; ``at`` adds the layers."""

    batch: AnyBatch
    plan: Plan

    def at(self, student_layer: int, teacher_layers: tuple[int, ...], device: torch.device) -> Plan:
        """The plan for a student layer and the teacher layers aligned with it."""
        aimed = replace(self.plan, student_layer=student_layer, teacher_layers={TEACHER: teacher_layers})
        return aimed.to(device)


def draw_exchanges(
    batches: Iterable[AnyBatch],
    *,
    source: str,
    positions: Literal["consecutive", "random"],
    supplies: SourceInputs,
    causal: bool,
    fraction: float = 0.3,
) -> list[Exchange]:
    """Draw an intervention for each batch from the seed in ``supplies``; see ``Intervention``.

    Batches are held-out text or examples, in a fixed order; ``causal`` models attend only to the left. Raises
    DataError if the source is another row, and there is none.
    """
    intervention = Intervention(
        SUITE, {TEACHER: {0: (0,)}}, source=source, positions=positions, fraction=fraction
    )
    return [
        Exchange(batch, draw_plan(intervention, batch, supplies, index=index, steps=index + 1, causal=causal))
        for index, batch in enumerate(batches)
    ]


def measure(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    exchanges: Sequence[Exchange],
    *,
    alignment: Alignment,
    vocabulary: int,
) -> SuiteResult:
    """Compare a student and its teacher under the same interventions, at each aligned layer of the student.

    The result has every metric over all layers and for each layer (token interventions have none), with
    standard errors over the rows. ``interchange_accuracy`` is omitted if no intervention changes the
    teacher's top-1 prediction.

    Both are language models or classifiers of a family listed in ``architectures.py``, with the same
    vocabulary or classes and task, on one device; their mode is restored. ``alignment``: student layer → the
    aligned teacher layers; ``vocabulary``: the tokenizer's size, beyond which logits are padding. At least
    one exchange, with rows that are not all padding.
    """
    assert alignment and exchanges
    of_tokens = any(isinstance(exchange.plan.source, Tokens) for exchange in exchanges)
    if of_tokens:
        alignment = dict([next(iter(alignment.items()))])
    rows: dict[int, list[Mapping[str, float]]] = {layer: [] for layer in alignment}
    ids: list[int] = []
    tops: Tops = set(), set()
    with evaluating(teacher), evaluating(student), torch.inference_mode():
        for exchange in exchanges:
            found = _answers(teacher, student, exchange, alignment, vocabulary, tops)
            filled = _filled(exchange.batch).tolist()
            ids += compress(exchange.batch.example_ids.tolist(), filled)
            for layer, sums in found.items():
                rows[layer] += compress(sums, filled)
    together = [
        {name: math.fsum(row[name] for row in parts) for name in SUMS}
        for parts in zip(*rows.values(), strict=True)
    ]
    counted = int(sum(row["positions"] for row in together) / len(rows))
    degenerate = _degenerate(tops, counted, exchanges[0].batch)
    scores = [*_scores(ALL, together, degenerate, part_of=None)]
    for layer, own in () if of_tokens else rows.items():
        scores += _scores(f"layer {layer}", own, degenerate, part_of=ALL)
    last = int(student.config.get_text_config().num_hidden_layers) - 1
    return SuiteResult(
        SUITE,
        tuple(scores),
        tuple(_examples(ids, together)),
        tuple(_notes(scores, of_tokens=of_tokens, last_layer=last if last in alignment else None)),
        {
            "alignment": {str(layer): list(theirs) for layer, theirs in alignment.items()},
            "positions": counted,
            "counts": {
                metric: [int(row[below]) for row in together if row[below]]
                for metric, (_, below) in RATIOS.items()
            },
        },
    )


def _scores(
    task: str, rows: Sequence[Mapping[str, float]], degenerate: str | None, *, part_of: str | None
) -> Iterator[Score]:
    """Every metric with its standard error over the rows; none where no row counts."""
    for metric, (above, below) in RATIOS.items():
        pairs = [(row[above], int(row[below])) for row in rows if row[below]]
        if pairs:
            value = math.fsum(over for over, _ in pairs) / sum(under for _, under in pairs)
            yield Score(
                task,
                metric,
                value,
                ratio_stderr(pairs),
                len(pairs),
                part_of=part_of,
                degenerate=None if metric in OF_TEACHER else degenerate,
            )


def _examples(ids: Sequence[int], together: Sequence[Mapping[str, float]]) -> Iterator[ExampleScore]:
    for number, row in zip(ids, together, strict=True):
        for metric, (above, below) in RATIOS.items():
            if row[below]:
                yield ExampleScore(ALL, str(number), metric, row[above] / row[below])


def _notes(scores: Sequence[Score], *, of_tokens: bool, last_layer: int | None) -> Iterator[str]:
    """``last_layer``: the student's last layer, if it is among those with interventions."""
    if of_tokens:
        yield "tokens were swapped, not hidden states: there are no scores by layer"
    elif last_layer is not None:
        yield (
            f"layer {last_layer} is the student's last: states swapped there go directly to the "
            "output, so it shows no more than agreement without intervention"
        )
    together = {score.metric: score.examples for score in scores if score.task == ALL}
    few, rows = together.get("interchange_accuracy"), together.get("agreement")
    if few is not None and few != rows:
        yield (
            f"interchange_accuracy is over the {few} of {rows} rows in which the teacher's top-1 "
            "prediction changes"
        )
    scored = {score.task for score in scores if score.metric == "interchange_accuracy"}
    for task in dict.fromkeys(score.task for score in scores):
        if task not in scored:
            yield f"{task}: no intervention changes the teacher's top-1 prediction"


def _degenerate(tops: Tops, counted: int, batch: AnyBatch) -> str | None:
    """The reason if the student has a single top-1 prediction although the teacher's vary."""
    theirs, own = tops
    if len(own) != 1 or len(theirs) < 2:
        return None
    if isinstance(batch, Batch):
        return f"degenerate: predicts a single token at all {counted:,} positions"
    return f"degenerate: predicts a single class for all {counted:,} examples"


def _filled(batch: AnyBatch) -> Tensor:
    """The rows that are not all padding, (B,) bool."""
    return batch.attention_mask.any(1) if isinstance(batch, Batch) else batch.example_ids >= 0


@dataclass(frozen=True, slots=True)
class _OutputPair:
    """A model's outputs at the counted positions or for examples: of the base, and after interventions."""

    base: Dense | Logits
    after: Mapping[int, Dense | Logits]


def _answers(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    exchange: Exchange,
    alignment: Alignment,
    vocabulary: int,
    tops: Tops,
) -> dict[int, list[dict[str, float]]]:
    """By layer, the sums of each row of a batch; adds to ``tops``.

    Raises ModelError if a log-probability is NaN; -inf marks tokens that a padded head excludes.
    """
    device = student.device
    batch = exchange.batch.to(device)
    plans = {layer: exchange.at(layer, theirs, device) for layer, theirs in alignment.items()}
    mask = batch.attention_mask if isinstance(batch, Batch) else _filled(batch)
    counted = mask & exchange.plan.touched.to(device)  # (B, T), or of examples (B,)
    theirs = _student_and_teacher(teacher, TEACHER, batch, plans, counted, vocabulary)
    own = _student_and_teacher(student, None, batch, plans, counted, vocabulary)
    row_N = counted.nonzero()[:, 0]
    sums = {layer: torch.zeros(len(counted), len(SUMS), dtype=torch.float64) for layer in plans}
    head = vocabulary_head(student)
    outcomes = vocabulary if isinstance(own.base, Dense) else own.base.values.shape[-1]
    size = max(1, len(row_N)) if head is None else chunk_rows(head.weight, 0.25)  # four tensors of logits

    def output_pair(chunk: slice, *outputs: Dense | Logits) -> DistributionPair:
        both = [one.logits(chunk, outcomes).log_softmax(-1) for one in outputs]
        for model, logs, seen in zip((teacher, student), both, tops, strict=True):
            require_finite(model, logs.logsumexp(-1), suite=SUITE)  # 0 for a distribution
            seen.update(logs.argmax(-1).tolist())
        return DistributionPair(*both)

    for chunk in pieces(len(row_N), size):
        before = output_pair(chunk, theirs.base, own.base)
        for layer, total in sums.items():
            found = effects(before, output_pair(chunk, theirs.after[layer], own.after[layer]))
            values_nS = torch.stack([found[name].double() for name in SUMS], 1)
            total.index_add_(0, row_N[chunk].cpu(), values_nS.cpu())
    return {
        layer: [dict(zip(SUMS, row, strict=True)) for row in total.tolist()] for layer, total in sums.items()
    }


def _student_and_teacher(
    model: PreTrainedModel,
    who: str | None,
    batch: AnyBatch,
    plans: Mapping[int, Plan],
    chosen: Tensor,
    vocabulary: int,
) -> _OutputPair:
    """The outputs of the teacher (``who``: its name in the plans) or of the student (None)."""
    head = vocabulary_head(model)
    outcomes = OutputSpec(head_input=head is not None, logits=head is None)
    parts = {layer: InterventionPass(model, plan.layers(who), plan) for layer, plan in plans.items()}
    needs = outcomes
    for part in parts.values():
        needs |= part.needs()
    base = forward_with_outputs(model, inputs_of(batch, model), needs)

    def counted(observed: ModelOutputs) -> Dense | Logits:
        if head is None:
            assert observed.logits is not None
            return Logits(observed.logits).rows(chosen)
        assert observed.head_input is not None
        return Dense(observed.head_input, head, vocabulary).rows(chosen)

    return _OutputPair(
        counted(base), {layer: counted(part.after(batch, base, outcomes)) for layer, part in parts.items()}
    )

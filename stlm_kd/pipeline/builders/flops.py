"""What a training computes, in floating-point operations (FLOPs): counted, so the same on every machine.

Matrix products count alone, two operations for each multiply-add, as ``torch.utils.flop_counter`` finds them
in one forward of a row on the meta device. A backward pass is two forwards. What a teacher says once of data
that are read often counts once, also where it was cached before. A run after an intervention counts from the
exchanged layer on, averaged over the layers that may be drawn, with all positions of its rows. Not counted:
validation, projections of states, what gradient checkpointing computes again, and the making of the teachers
themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from stlm_kd.data.dealing import share_run_again
from stlm_kd.distillation.step import StepModule, teacher_needs
from stlm_kd.distillation.terms import Term
from stlm_kd.distributed import launched_processes
from stlm_kd.interventions.sources import pairs_rows
from stlm_kd.interventions.spec import Intervention
from stlm_kd.models.families import ARCHITECTURES
from stlm_kd.models.forward import task_of, vocabulary_head
from stlm_kd.models.outputs import OutputSpec
from stlm_kd.pipeline.builders.data import BatchSizes, TrainingData
from stlm_kd.pipeline.builders.numbers import num_layers
from stlm_kd.recipe import Recipe
from stlm_kd.teachers.cached import CachedTeacher
from stlm_kd.teachers.live import LiveTeacher
from stlm_kd.teachers.precomputed import PrecomputedTeacher
from stlm_kd.teachers.protocol import Teacher

LOOKS = 1000
"""Scheduled terms are looked at so many times over a training, at most."""


@dataclass(frozen=True, slots=True)
class PassCost:
    """FLOPs of one forward of a row; ``head`` is a projection of all its positions to a vocabulary."""

    body: int
    head: int
    num_layers: int


@dataclass(frozen=True, slots=True)
class StepShape:
    """What an optimizer step reads.

    Attributes:
        rows: On average.
        length: Positions of a row, on average.
        counted: The share of the positions that have a label, and so meet the head.
        run_again: Of rows that are sources of each other, the share of those whose source lies in another
            micro-batch and is run again for them.
    """

    rows: float
    length: int
    counted: float
    run_again: float = 0.0


def pass_cost(model: PreTrainedModel, length: int) -> PassCost:
    """One forward of a row of so many positions; nothing is computed, and no weight is read."""
    config = deepcopy(model.config)
    with torch.device("meta"):  # eager attention's products are counted on every device
        empty = type(model)._from_config(config, attn_implementation="eager").eval()
        inputs = {"input_ids": torch.zeros(1, length, dtype=torch.int64)}
        if task_of(model) == "clm":  # or it looks for padding, which has no value here
            inputs["attention_mask"] = torch.ones(1, length, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        empty(**inputs)
    head = empty.get_output_embeddings()
    in_head = 2 * length * head.weight.numel() if isinstance(head, nn.Linear) else 0
    return PassCost(int(counter.get_total_flops()) - in_head, in_head, num_layers(config))


def step_shape(
    recipe: Recipe, training_data: TrainingData, sizes: BatchSizes, *, steps_per_epoch: int
) -> StepShape:
    """What an optimizer step reads; of examples the last one of an epoch has fewer rows."""
    again = 0.0
    if sizes.pairs:
        rows = min(sizes.effective, training_data.num_rows)
        again = share_run_again(rows, micro_batch=sizes.micro, world_size=launched_processes())
    if recipe.language_task is None:
        length = max(1, round(training_data.row_tokens))
        return StepShape(training_data.num_rows / steps_per_epoch, length, 1.0, again)
    return StepShape(sizes.effective, recipe.data.context, recipe.data.masked_share or 1.0, again)


def training_flops(
    step: StepModule, reading: StepShape, *, steps: int, planned: int | None = None, frozen_body: bool = False
) -> int | None:
    """What so many optimizer steps compute; None where a model is of a family that ``ARCHITECTURES`` lacks.

    Args:
        step: The student, its terms and its teachers.
        reading: What each step reads.
        steps: Optimizer steps that were done.
        planned: Those that schedules are shares of, if they are more.
        frozen_body: Whether only the student's embedding and head learn, so that the body has no gradients of
            its own.
    """
    stored = [teacher for teacher in step.teachers.values() if isinstance(teacher, CachedTeacher)]
    others = [teacher for teacher in step.teachers.values() if not isinstance(teacher, CachedTeacher)]
    models = [step.student, *(_model(teacher) for teacher in others)]
    if any(model.config.model_type not in ARCHITECTURES for model in models):
        return None
    once = 0
    for teacher in stored:
        if teacher.cache.manifest.flops is None:
            return None
        once += teacher.cache.manifest.flops
    student = pass_cost(step.student, reading.length)
    teachers = {name: _answers(teacher, reading) for name, teacher in step.teachers.items()}
    looks = min(steps, LOOKS)
    rows = []
    for look in range(looks):
        step.begin(look * steps // looks, planned or steps)
        rows.append(_row_flops(step, student, teachers, reading, frozen_body=frozen_body))
    once += sum(known.rows * known.cost.body for known in teachers.values())
    return round(steps * reading.rows * fmean(rows)) + once


def affordable_steps(step: StepModule, reading: StepShape, *, flops: int) -> int:
    """Optimizer steps that so many FLOPs pay for, at least one."""
    price = training_flops(step, reading, steps=1)
    assert price is not None, "what the same student computed with its teachers is known"
    return max(1, flops // price)


@dataclass(frozen=True, slots=True)
class _Answers:
    """How a teacher answers: in each step, or from what it computed of ``rows`` rows before the first one."""

    cost: PassCost
    rows: int


def _answers(teacher: Teacher, reading: StepShape) -> _Answers:
    """Which teachers compute when: one that is read from a cache computed before."""
    if isinstance(teacher, CachedTeacher):
        return _Answers(PassCost(0, 0, 1), 0)
    rows = teacher.num_rows if isinstance(teacher, PrecomputedTeacher) else 0
    return _Answers(pass_cost(_model(teacher), reading.length), rows)


def _model(teacher: Teacher) -> PreTrainedModel:
    assert isinstance(teacher, LiveTeacher | PrecomputedTeacher)
    return teacher.model


def _row_flops(
    step: StepModule,
    student: PassCost,
    teachers: Mapping[str, _Answers],
    reading: StepShape,
    *,
    frozen_body: bool,
) -> float:
    """One row of the step that is next, forward and backward."""
    terms, classes = step.terms, vocabulary_head(step.student) is None
    labels_alone = all(term.on == "labels" for term in terms)
    head = reading.counted if labels_alone else 1.0
    flops = (2 if frozen_body else 3) * student.body + 3 * head * student.head
    depths = dict.fromkeys(teachers, 0.0)
    mixed = step.mixed
    for name, needs in teacher_needs(terms, mixed, classes=classes).items():
        depths[name] = _depth(needs, teachers[name].cost)
        flops += head * teachers[name].cost.head if needs.head_input else 0
    for intervention in _interventions(terms):
        own = _again(
            intervention, [(layer,) for layer in intervention.student_layers], student, reading, own=True
        )
        flops += 3 * (student.body * own.after + head * student.head)
        for name, needs in teacher_needs(terms, mixed, classes=classes, after=intervention.name).items():
            cost = teachers[name].cost
            layers = [intervention.layers[name][layer] for layer in intervention.student_layers]
            theirs = _again(intervention, layers, cost, reading, own=False)
            depths[name] = max(depths[name], theirs.base)
            flops += cost.body * theirs.after + (head * cost.head if needs.head_input else 0)
    return flops + sum(
        teachers[name].cost.body * depth for name, depth in depths.items() if not teachers[name].rows
    )


def _depth(needs: OutputSpec, cost: PassCost) -> float:
    """The share of the blocks that run."""
    return 1.0 if needs.last_block is None else (needs.last_block + 1) / cost.num_layers


def _interventions(terms: Sequence[Term]) -> list[Intervention]:
    found = {term.intervention.name: term.intervention for term in terms if term.intervention is not None}
    return list(found.values())


@dataclass(frozen=True, slots=True)
class _Again:
    """Forwards of the body that an intervention takes: of the base at least, and after that."""

    base: float
    after: float


def _again(
    intervention: Intervention,
    layers: Sequence[Sequence[int]],
    cost: PassCost,
    reading: StepShape,
    *,
    own: bool,
) -> _Again:
    """The shares of the blocks that run, averaged over the layers that may be drawn.

    Args:
        intervention: Which.
        layers: For each layer that may be drawn, those that are overwritten in the model.
        cost: The model's.
        reading: How many sources are run again.
        own: Whether it is the student's, whose passes may draw dropout each for itself.
    """
    if intervention.source == "input-tokens":
        return _Again(0.0, 1.0)
    first = fmean((min(chosen) + 1) / cost.num_layers for chosen in layers)
    last = fmean((max(chosen) + 1) / cost.num_layers for chosen in layers)
    fresh = own and intervention.exact_dropout
    later = 1.0 if fresh else 1.0 - first
    if intervention.source == "mixup":
        return _Again(first, later)
    is_read = pairs_rows(intervention.source, intervention.options) and not fresh and reading.run_again < 1
    return _Again(last, later + reading.run_again * last) if is_read else _Again(first, later + last)

"""Training cost in floating-point operations (FLOPs), counted rather than measured: machine-independent.

Only matrix products count, two operations per multiply-add, as ``torch.utils.flop_counter`` finds them in one
forward pass of a row on the meta device. A backward pass counts as two forward passes. Precomputed or cached
teacher outputs count once. A forward pass after an intervention counts from the exchanged layer on, averaged
over the layers that may be drawn, with all positions of its rows. Not counted: validation, projections of
hidden states, recomputation by gradient checkpointing, and the training of the teachers.
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
from stlm_kd.distillation.step import DistillationStep, teacher_needs
from stlm_kd.distillation.terms import Term
from stlm_kd.distributed import launched_processes
from stlm_kd.interventions import SOURCES
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
"""Maximum number of steps at which scheduled terms are evaluated over a training."""


@dataclass(frozen=True, slots=True)
class PassCost:
    """FLOPs of one forward pass of a row; ``head`` projects all its positions to the vocabulary."""

    body: int
    head: int
    num_layers: int


@dataclass(frozen=True, slots=True)
class StepShape:
    """The size of an optimizer step.

    Attributes:
        rows: Average number of rows.
        length: Average positions per row.
        counted: The share of positions with a label, which the head processes.
        run_again: For rows used as sources for each other, the share whose source is in another micro-batch
            and needs an extra forward pass.
    """

    rows: float
    length: int
    counted: float
    run_again: float = 0.0


def pass_cost(model: PreTrainedModel, length: int) -> PassCost:
    """The cost of one forward pass of a row of this length, counted on the meta device."""
    config = deepcopy(model.config)
    with torch.device("meta"):  # the products of eager attention are counted on every device
        empty = type(model)._from_config(config, attn_implementation="eager").eval()
        inputs = {"input_ids": torch.zeros(1, length, dtype=torch.int64)}
        if task_of(model) == "clm":  # avoids a check for padding, which needs values
            inputs["attention_mask"] = torch.ones(1, length, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        empty(**inputs)
    head = empty.get_output_embeddings()
    in_head = 2 * length * head.weight.numel() if isinstance(head, nn.Linear) else 0
    return PassCost(int(counter.get_total_flops()) - in_head, in_head, num_layers(config))


def step_shape(
    recipe: Recipe, training_data: TrainingData, sizes: BatchSizes, *, steps_per_epoch: int
) -> StepShape:
    """The size of an optimizer step; with labelled examples the last step of an epoch has fewer rows."""
    again = 0.0
    if sizes.pairs:
        rows = min(sizes.effective, training_data.num_rows)
        again = share_run_again(rows, micro_batch=sizes.micro, world_size=launched_processes())
    if recipe.language_task is None:
        length = max(1, round(training_data.row_tokens))
        return StepShape(training_data.num_rows / steps_per_epoch, length, 1.0, again)
    return StepShape(sizes.effective, recipe.data.context, recipe.data.masked_share or 1.0, again)


def training_flops(
    step: DistillationStep,
    reading: StepShape,
    *,
    steps: int,
    planned: int | None = None,
    frozen_body: bool = False,
) -> int | None:
    """The FLOPs of this many optimizer steps; None if a model's family is not in ``ARCHITECTURES``.

    Args:
        step: The student, its terms and its teachers.
        reading: The size of a step.
        steps: Completed optimizer steps.
        planned: Total steps of the schedules, if larger.
        frozen_body: Whether only the student's embedding and head are trained, so that the body needs no
            weight gradients.
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
    teachers = {name: _teacher_cost(teacher, reading) for name, teacher in step.teachers.items()}
    looks = min(steps, LOOKS)
    rows = []
    for look in range(looks):
        step.begin(look * steps // looks, planned or steps)
        rows.append(_row_flops(step, student, teachers, reading, frozen_body=frozen_body))
    once += sum(known.rows * known.cost.body for known in teachers.values())
    return round(steps * reading.rows * fmean(rows)) + once


def affordable_steps(step: DistillationStep, reading: StepShape, *, flops: int) -> int:
    """The number of optimizer steps within a FLOPs budget, at least one."""
    cost = training_flops(step, reading, steps=1)
    assert cost is not None, "the FLOPs of the same student with its teachers are known"
    return max(1, flops // cost)


@dataclass(frozen=True, slots=True)
class _TeacherCost:
    """A teacher's cost per pass, and the ``rows`` that it precomputes before the first step (0: live)."""

    cost: PassCost
    rows: int


def _teacher_cost(teacher: Teacher, reading: StepShape) -> _TeacherCost:
    """A teacher's cost and precomputed rows; a cached teacher costs nothing during training."""
    if isinstance(teacher, CachedTeacher):
        return _TeacherCost(PassCost(0, 0, 1), 0)
    rows = teacher.num_rows if isinstance(teacher, PrecomputedTeacher) else 0
    return _TeacherCost(pass_cost(_model(teacher), reading.length), rows)


def _model(teacher: Teacher) -> PreTrainedModel:
    assert isinstance(teacher, LiveTeacher | PrecomputedTeacher)
    return teacher.model


def _row_flops(
    step: DistillationStep,
    student: PassCost,
    teachers: Mapping[str, _TeacherCost],
    reading: StepShape,
    *,
    frozen_body: bool,
) -> float:
    """The FLOPs of one row of the current step, forward and backward."""
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
        own = _intervention_passes(
            intervention, [(layer,) for layer in intervention.student_layers], student, reading, own=True
        )
        flops += 3 * (student.body * own.after + head * student.head)
        for name, needs in teacher_needs(terms, mixed, classes=classes, after=intervention.name).items():
            cost = teachers[name].cost
            layers = [intervention.layers[name][layer] for layer in intervention.student_layers]
            theirs = _intervention_passes(intervention, layers, cost, reading, own=False)
            depths[name] = max(depths[name], theirs.base)
            flops += cost.body * theirs.after + (head * cost.head if needs.head_input else 0)
    return flops + sum(
        teachers[name].cost.body * depth for name, depth in depths.items() if not teachers[name].rows
    )


def _depth(needs: OutputSpec, cost: PassCost) -> float:
    """The share of the blocks that are computed."""
    return 1.0 if needs.last_block is None else (needs.last_block + 1) / cost.num_layers


def _interventions(terms: Sequence[Term]) -> list[Intervention]:
    found = {term.intervention.name: term.intervention for term in terms if term.intervention is not None}
    return list(found.values())


@dataclass(frozen=True, slots=True)
class _InterventionPasses:
    """Body passes of an intervention: minimum depth of the base pass, and passes after it."""

    base: float
    after: float


def _intervention_passes(
    intervention: Intervention,
    layers: Sequence[Sequence[int]],
    cost: PassCost,
    reading: StepShape,
    *,
    own: bool,
) -> _InterventionPasses:
    """The shares of the blocks that are computed, averaged over the layers that may be drawn.

    Args:
        intervention: The intervention.
        layers: For each layer that may be drawn, the layers overwritten in the model.
        cost: The model's cost.
        reading: Provides the share of sources that need an extra pass.
        own: Whether the model is the student, whose passes may draw separate dropout masks.
    """
    source = SOURCES[intervention.source]
    if source.replaces == "tokens":
        return _InterventionPasses(0.0, 1.0)
    first = fmean((min(chosen) + 1) / cost.num_layers for chosen in layers)
    last = fmean((max(chosen) + 1) / cost.num_layers for chosen in layers)
    fresh = own and intervention.exact_dropout
    later = 1.0 if fresh else 1.0 - first
    if not source.runs_source:
        return _InterventionPasses(first, later)
    is_read = source.pairs_rows(intervention.options) and not fresh and reading.run_again < 1
    return (
        _InterventionPasses(last, later + reading.run_again * last)
        if is_read
        else _InterventionPasses(first, later + last)
    )

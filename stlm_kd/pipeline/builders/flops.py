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
from functools import reduce
from operator import add
from statistics import fmean

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from stlm_kd.data.dealing import share_run_again
from stlm_kd.distillation.step import DistillationStep, teacher_needs
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
from stlm_kd.teachers.translated import TranslatedTeacher

HEAD, INTERVENTIONS = "student, head", "interventions"

LOOKS = 1000  # maximum number of steps at which scheduled terms are evaluated over a training


@dataclass(frozen=True, slots=True)
class PassCost:
    """FLOPs of one forward pass of a row; ``head`` projects all its positions to the vocabulary."""

    body: int
    head: int
    num_layers: int


@dataclass(frozen=True, slots=True)
class StepShape:
    """The average rows of an optimizer step, and positions per row.

    ``counted`` is the share of positions with a label, which the head processes. For rows used as sources for
    each other, ``run_again`` is the share whose source is in another micro-batch and needs a forward pass.
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

    ``planned`` is the number of steps of the schedules, if larger. With ``frozen_body``, only the student's
    embedding and head are trained, so that the body needs no weight gradients.
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
    ahead = {name: t.num_rows for name, t in step.teachers.items() if isinstance(t, PrecomputedTeacher)}
    looks = min(steps, LOOKS)
    rows = []
    for look in range(looks):
        step.begin(look * steps // looks, planned or steps)
        parts, depths = _row_flops(step, student, teachers, reading, frozen_body=frozen_body)
        live = (teachers[name].body * depth for name, depth in depths.items() if not ahead.get(name))
        rows.append(reduce(add, (flops for _, flops in parts)) + sum(live))  # in order: rounding
    once += sum(number * teachers[name].body for name, number in ahead.items())
    return round(steps * reading.rows * fmean(rows)) + once


def flops_by_part(step: DistillationStep, reading: StepShape, *, steps: int) -> dict[str, float]:
    """As ``training_flops``, with live teachers: the average FLOPs of an optimizer step, by part."""
    student = pass_cost(step.student, reading.length)
    teachers = {name: _teacher_cost(teacher, reading) for name, teacher in step.teachers.items()}
    looks = min(steps, LOOKS)
    found: dict[str, float] = {}
    for look in range(looks):
        step.begin(look * steps // looks, steps)
        parts, depths = _row_flops(step, student, teachers, reading, frozen_body=False)
        bodies = [(f"teacher {name}", teachers[name].body * depth) for name, depth in depths.items()]
        for name, flops in [*parts, *bodies]:
            found[name] = found.get(name, 0.0) + flops * reading.rows / looks
    return found


def affordable_steps(step: DistillationStep, reading: StepShape, *, flops: int) -> int:
    """The number of optimizer steps within a FLOPs budget, at least one."""
    cost = training_flops(step, reading, steps=1)
    assert cost is not None, "the FLOPs of the same student with its teachers are known"
    return max(1, flops // cost)


def _teacher_cost(teacher: Teacher, reading: StepShape) -> PassCost:
    """A teacher's cost; a cached teacher costs nothing during training."""
    if isinstance(teacher, CachedTeacher):
        return PassCost(0, 0, 1)
    length = reading.length
    if isinstance(teacher, TranslatedTeacher):
        length = max(1, round(length * teacher.translation.nodes_per_token))
    return pass_cost(_model(teacher), length)


def _model(teacher: Teacher) -> PreTrainedModel:
    assert isinstance(teacher, LiveTeacher | PrecomputedTeacher)
    return teacher.model


def _row_flops(
    step: DistillationStep,
    student: PassCost,
    teachers: Mapping[str, PassCost],
    reading: StepShape,
    *,
    frozen_body: bool,
) -> tuple[list[tuple[str, float]], dict[str, float]]:
    """A step's FLOPs per row by part, without the teachers' bodies; the share of each body that runs."""
    terms, classes = step.terms, vocabulary_head(step.student) is None
    labels_alone = all(term.on == "labels" for term in terms)
    head = reading.counted if labels_alone else 1.0
    parts = [("student", (2 if frozen_body else 3) * student.body), (HEAD, 3 * head * student.head)]
    depths = dict.fromkeys(teachers, 0.0)
    mixed = step.mixed
    for name, needs in teacher_needs(terms, mixed, classes=classes).items():
        depths[name] = _depth(needs, teachers[name])
        parts.append((f"teacher {name}, head", head * teachers[name].head if needs.head_input else 0.0))
    named = {term.intervention.name: term.intervention for term in terms if term.intervention is not None}
    for intervention in named.values():
        layers: list[Sequence[int]] = [(layer,) for layer in intervention.student_layers]
        _, after = _intervention_passes(intervention, layers, student, reading, own=True)
        parts.append((f"{INTERVENTIONS}, student", 3 * (student.body * after + head * student.head)))
        for name, needs in teacher_needs(terms, mixed, classes=classes, after=intervention.name).items():
            cost = teachers[name]
            layers = [intervention.layers[name][layer] for layer in intervention.student_layers]
            base, after = _intervention_passes(intervention, layers, cost, reading, own=False)
            depths[name] = max(depths[name], base)
            again = cost.body * after + (head * cost.head if needs.head_input else 0)
            parts.append((f"{INTERVENTIONS}, teacher {name}", again))
    return parts, depths


def _depth(needs: OutputSpec, cost: PassCost) -> float:
    """The share of the blocks that are computed."""
    return 1.0 if needs.last_block is None else (needs.last_block + 1) / cost.num_layers


def _intervention_passes(
    intervention: Intervention,
    layers: Sequence[Sequence[int]],
    cost: PassCost,
    reading: StepShape,
    *,
    own: bool,
) -> tuple[float, float]:
    """The least depth of the base pass and the passes after it, as shares of the blocks.

    Both are averaged over the layers that may be drawn; ``layers`` are those overwritten for each of these. A
    student (``own``) may draw separate dropout masks.
    """
    source = SOURCES[intervention.source]
    if source.replaces == "tokens":
        return 0.0, 1.0
    first = fmean((min(chosen) + 1) / cost.num_layers for chosen in layers)
    last = fmean((max(chosen) + 1) / cost.num_layers for chosen in layers)
    fresh = own and intervention.exact_dropout
    later = 1.0 if fresh else 1.0 - first
    if not source.runs_source:
        return first, later
    is_read = source.pairs_rows(intervention.options) and not fresh and reading.run_again < 1
    return (last, later + reading.run_again * last) if is_read else (first, later + last)

"""Train one student of a recipe: from its plain values to a Hugging Face folder and a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stlm_kd.artifacts.atomic import write_json
from stlm_kd.artifacts.reports import REPORT, TrainingReport
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.distillation.step import StepModule, teacher_needs
from stlm_kd.distillation.terms import COMBINED, Term
from stlm_kd.distributed import first_process_runs
from stlm_kd.errors import told_at
from stlm_kd.models.attention_maps import install_maps
from stlm_kd.models.dropout import set_dropout
from stlm_kd.models.forward import head_of
from stlm_kd.models.load import count_parameters, save_model
from stlm_kd.models.outputs import Needs
from stlm_kd.models.students import check_size, student_from_layers
from stlm_kd.pipeline.builders.data import Material, batch_sizes
from stlm_kd.pipeline.builders.flops import affordable_steps, reading_of, training_flops
from stlm_kd.pipeline.builders.interchange import supplies_of
from stlm_kd.pipeline.builders.models import (
    check_model,
    live_teacher,
    load_model,
    model_from_recipe,
    teacher_place,
)
from stlm_kd.pipeline.builders.objective import looked_into, projections_of
from stlm_kd.pipeline.context import Zero
from stlm_kd.pipeline.stages.cache_reading import opened
from stlm_kd.pipeline.stages.student_job import Assignment, labels_term
from stlm_kd.recipe import Recipe, hash_of
from stlm_kd.recipe.schema.training import Train
from stlm_kd.teachers.cached import CachedTeacher
from stlm_kd.teachers.combination import COMBINERS, Gate
from stlm_kd.teachers.combination.mixture import Combination
from stlm_kd.teachers.live import LiveTeacher
from stlm_kd.teachers.precomputed import RememberingTeacher
from stlm_kd.teachers.protocol import Teacher
from stlm_kd.training import FitResult, FitSettings, current_device, fit
from stlm_kd.training.backends.ddp import autocast

REMEMBERED_BYTES = 2**30
"""Teachers' hidden states are computed once and kept, of as many teachers as this holds together."""


def train_student(assignment: Assignment, folder: Path, *, label: str) -> None:
    """Fill a folder with ``model/``, ``report.json`` and ``metrics.jsonl``; its checkpoints stay in it too.

    Args:
        assignment: What to train.
        folder: Where an interrupted training finds its checkpoints again.
        label: What progress calls this training.
    """
    recipe, tokenizer, workshop = assignment.recipe, assignment.tokenizer, assignment.workshop
    student = initial_student(assignment)
    own = assignment.material(recipe.data.fraction)
    is_own = assignment.fraction == recipe.data.fraction
    material = own if is_own else assignment.material(assignment.fraction)
    sizes = replace(batch_sizes(recipe.train), pairs=assignment.pairs_rows)
    stream = material.stream(sizes, seed=assignment.seed)
    reading = reading_of(recipe, material, sizes, steps_per_epoch=stream.steps_per_epoch)
    steps = num_steps(recipe.train, own, assignment.seed)
    if assignment.flops is not None:
        steps = affordable_steps(StepModule(student, [labels_term()]), reading, flops=assignment.flops)
    step = step_of(assignment, student, material, epochs=steps / stream.steps_per_epoch)
    tracker = workshop.tracker(folder, recipe=recipe, stage=label)
    for note in (*material.notes, *assignment.cache_notes):
        tracker.note(note)
    try:
        result = fit(
            step,
            stream,
            fit_settings(recipe.train, steps, assignment.seed, zero=workshop.zero),
            folder=folder,
            validation=held_out_of(material, sizes.micro),
            tracker=tracker,
            resume=workshop.resume,
            fingerprint=hash_of(dict(assignment.key())),
        )
    finally:
        tracker.close()
    kept_best = recipe.train.keep == "best"
    flops = training_flops(step, reading, steps=result.steps, planned=steps)
    first_process_runs(
        lambda: finish(
            student, tokenizer, folder, result, kept_best=kept_best, material=material, flops=flops
        )
    )


def held_out_of(material: Material, micro_batch: int) -> Callable[[], Iterator[AnyBatch]] | None:
    """Gives the held-out batches of this process, anew each time; None where there are none."""
    if material.held_out(micro_batch) is None:
        return None

    def batches() -> Iterator[AnyBatch]:
        found = material.held_out(micro_batch)
        assert found is not None
        return found

    return batches


def initial_student(assignment: Assignment) -> PreTrainedModel:
    """The student before its training.

    Raises:
        ModelError: It cannot be built, is too large, or is of a kind that cannot be trained on packed rows.
    """
    recipe = assignment.recipe
    student = _built(assignment)
    if recipe.student.dropout is not None:
        set_dropout(student, recipe.student.dropout)
    check_model(student, recipe, teacher=None, name="student")
    if recipe.train.gradient_checkpointing:
        # Named anew within version 5 of transformers, where the old name warns.
        renamed = getattr(student, "activation_checkpointing_enable", None)
        (renamed or student.gradient_checkpointing_enable)({"use_reentrant": False})
    return student


def _built(assignment: Assignment) -> PreTrainedModel:
    """The student of a teacher's layers, of a checkpoint, or of fields."""
    recipe, seed, tokenizer = assignment.recipe, assignment.seed, assignment.tokenizer
    wanted, trust = recipe.student, assignment.workshop.trust_remote_code
    if wanted.init_from is not None:
        source = assignment.teachers[wanted.init_from.teacher]
        with told_at(teacher_place(recipe, wanted.init_from.teacher)):
            donor = load_model(source, recipe, tokenizer=None, trust_remote_code=trust)
        student = student_from_layers(
            donor,
            wanted.init_from.layers,
            model_type=wanted.init_from.model_type,
            place="student.init_from.layers",
        )
    elif wanted.model is not None:
        head_seed = seed if wanted.new_head else None
        with told_at("student.model"):
            student = load_model(
                wanted.model, recipe, tokenizer=tokenizer, trust_remote_code=trust, head_seed=head_seed
            )
        check_size(student)
    else:
        student = model_from_recipe(assignment.fields, recipe, tokenizer, seed=seed)
    return student


def fit_settings(train: Train, steps: int, seed: int, *, zero: Zero) -> FitSettings:
    """The recipe's training settings as the engine takes them."""
    return FitSettings(
        steps=steps,
        learning_rate=train.learning_rate,
        schedule=train.schedule,
        warmup=train.warmup,
        weight_decay=train.weight_decay,
        betas=train.betas,
        eps=train.eps,
        bias_correction=train.bias_correction,
        clip=train.clip,
        precision=train.precision,
        validate_every=train.validate_every,
        keep=train.keep,
        patience=train.patience,
        checkpoint_every=train.checkpoint_every or tenth(steps),
        log_every=train.log_every,
        seed=seed,
        zero=zero,
    )


def tenth(steps: int) -> int:
    """Steps between checkpoints where nothing else is said: a crash costs a tenth of the work at most."""
    return max(1, math.ceil(steps / 10))


def num_steps(train: Train, own: Material, seed: int) -> int:
    """Optimizer steps: as given, or as many as the epochs of the student's own data have."""
    if train.steps is not None:
        return train.steps
    assert train.epochs is not None
    return train.epochs * own.stream(batch_sizes(train), seed=seed).steps_per_epoch


def finish(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    result: FitResult,
    *,
    kept_best: bool,
    material: Material,
    flops: int | None,
) -> None:
    """Save the model, then the report that says that it is whole."""
    save_model(model.cpu(), tokenizer, folder / "model")
    report = TrainingReport(
        parameters=count_parameters(model),
        steps=result.steps,
        tokens_seen=result.tokens,
        tokens_of_text=material.num_tokens,
        best_step=result.best_step if kept_best else None,
        best_loss=result.best_loss if kept_best else None,
        seconds=round(result.seconds, 1),
        stopped=result.stopped,
        flops=flops,
    )
    write_json(folder / REPORT, asdict(report))


def step_of(
    assignment: Assignment, student: PreTrainedModel, material: Material, *, epochs: float
) -> StepModule:
    """The student with its objectives, their projections, and the teachers that they ask."""
    recipe = assignment.recipe
    names, cached = sorted(assignment.asked), assignment.cached
    models = {name: _teacher(assignment, name) for name in names if name not in cached}
    configs = {
        name: models[name].model.config if name in models else assignment.configuration(name)
        for name in names
        if name in models or name in looked_into(recipe)
    }
    terms = assignment.terms(student.config, configs)
    exchanged = {term.teacher for term in terms if term.intervention is not None}
    teachers: dict[str, Teacher] = {}
    left = REMEMBERED_BYTES
    asked = teacher_needs(terms, names, classes=recipe.language_task is None)
    for name, needs in asked.items():
        if name in cached:
            teachers[name] = CachedTeacher(opened(assignment.order(name)), needs)
            continue
        install_maps(models[name].model, needs.maps)
        ready: LiveTeacher | RememberingTeacher = models[name]
        if not exchanged & {name, COMBINED}:  # what is remembered answers no intervention
            ready = _ready(models[name], needs, recipe, material, epochs=epochs, room=left)
        left -= ready.num_bytes if isinstance(ready, RememberingTeacher) else 0
        teachers[name] = ready
    seed = assignment.seed
    return StepModule(
        student,
        terms,
        teachers=teachers,
        combination=Combination(
            recipe.combine.how, recipe.combine.options, recipe.combine.teacher_dropout, seed
        ),
        projections=projections_of(recipe, terms, student.config, configs, seed=seed) if teachers else None,
        vocabulary_loss=recipe.engine.vocabulary_loss,
        supplies=supplies_of(material, assignment.tokenizer, seed=seed) if exchanged else None,
        domains=material.domains,
        gate=_gate(recipe, student, terms, list(teachers)),
    )


def _gate(
    recipe: Recipe, student: PreTrainedModel, terms: Sequence[Term], teachers: Sequence[str]
) -> Gate | None:
    """What learns to weigh the teachers, where they are combined by it."""
    needs = COMBINERS.needs(recipe.combine.how, recipe.combine.options)
    if "gate" not in needs or all(term.teacher != COMBINED for term in terms):
        return None
    return Gate(head_of(student).weight.shape[1], teachers)


def _teacher(assignment: Assignment, name: str) -> LiveTeacher:
    """A teacher on its device."""
    trust = assignment.workshop.trust_remote_code
    return live_teacher(assignment.teachers[name], assignment.recipe, name=name, trust_remote_code=trust)


def _ready(
    live: LiveTeacher, needs: Needs, recipe: Recipe, material: Material, *, epochs: float, room: int
) -> LiveTeacher | RememberingTeacher:
    """The teacher answering from memory, where the rows come often and its answers fit in it.

    Args:
        live: The teacher.
        needs: All that it will be asked for.
        recipe: Its batches and precision.
        material: What the student reads.
        epochs: How often each row comes.
        room: Bytes that are left.
    """
    of_one_length = recipe.language_task is not None or not (needs.sites or needs.maps)
    if epochs <= 1 or not material.is_always_the_same or not of_one_length:
        return live
    device, micro_batch = current_device(), batch_sizes(recipe.train).micro
    with autocast(device, recipe.train.precision):
        first = next(material.in_order(micro_batch)).to(device)
        if material.num_rows * RememberingTeacher.row_bytes(live, first, needs) > room:
            return live
        batches = (batch.to(device) for batch in material.in_order(micro_batch))
        return RememberingTeacher(live, batches, rows=material.num_rows, needs=needs)

"""Train one student of a recipe and write a Hugging Face folder and a report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stlm_kd.artifacts.atomic import write_json
from stlm_kd.artifacts.reports import REPORT, AdaptationReport, TrainingReport
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.distillation.step import DistillationStep, teacher_needs
from stlm_kd.distillation.terms import Term
from stlm_kd.distributed import on_main_process
from stlm_kd.errors import error_context
from stlm_kd.models.attention_maps import install_maps
from stlm_kd.models.dropout import set_dropout
from stlm_kd.models.forward import autocast, head_of
from stlm_kd.models.load import count_parameters, save_model
from stlm_kd.models.outputs import OutputSpec
from stlm_kd.models.students import check_size, student_from_layers
from stlm_kd.pipeline.builders.data import TrainingData, batch_sizes, repeats_note
from stlm_kd.pipeline.builders.flops import affordable_steps, step_shape, training_flops
from stlm_kd.pipeline.builders.interchange import supplies_of
from stlm_kd.pipeline.builders.models import (
    check_model,
    live_teacher,
    load_model,
    model_from_recipe,
    teacher_place,
)
from stlm_kd.pipeline.builders.objective import feature_teachers, projections_of
from stlm_kd.pipeline.stage_keys import student_key
from stlm_kd.pipeline.stages.cache_reading import opened
from stlm_kd.pipeline.stages.student_job import StudentJob, labels_term
from stlm_kd.recipe import Recipe, hash_of
from stlm_kd.recipe.schema.training import Train
from stlm_kd.teachers import COMBINED
from stlm_kd.teachers.cached import CachedTeacher
from stlm_kd.teachers.combination import COMBINERS
from stlm_kd.teachers.combination.gate import Gate
from stlm_kd.teachers.combination.mixture import Combination
from stlm_kd.teachers.live import LiveTeacher
from stlm_kd.teachers.precomputed import PrecomputedTeacher
from stlm_kd.teachers.protocol import Teacher
from stlm_kd.teachers.translated import TranslatedTeacher
from stlm_kd.training.loop import fit
from stlm_kd.training.processes import current_device

REMEMBERED_BYTES = 2**30  # memory for precomputed outputs of all teachers together


def train_student(job: StudentJob, folder: Path, *, label: str) -> None:
    """Write ``model/``, ``report.json``, ``metrics.jsonl`` and checkpoints to a folder.

    An interrupted training resumes from its checkpoints. ``label`` is its name in progress lines.
    """
    recipe, tokenizer, context = job.recipe, job.tokenizer, job.context
    student = initial_student(job)
    own = job.training_data(recipe.data.fraction)
    is_own = job.fraction == recipe.data.fraction
    training_data = own if is_own else job.training_data(job.fraction)
    sizes = replace(batch_sizes(recipe.train.config), pairs=job.pairs_rows)
    stream = training_data.stream(sizes, seed=job.seed)
    reading = step_shape(recipe, training_data, sizes, steps_per_epoch=stream.steps_per_epoch)
    steps = num_steps(recipe.train, own, job.seed)
    if job.flops is not None:
        steps = affordable_steps(DistillationStep(student, [labels_term()]), reading, flops=job.flops)
    epochs = steps / stream.steps_per_epoch
    step = step_of(job, student, training_data, epochs=epochs)
    tracker = context.tracker(folder, recipe=recipe, stage=label)
    repeats = repeats_note(recipe, training_data, epochs)
    for note in (*training_data.notes, *repeats, *job.cache_notes):
        tracker.note(note)
    try:
        result = fit(
            step,
            stream,
            context.with_engine(replace(recipe.train.config.with_steps(steps), seed=job.seed)),
            folder=folder,
            validation=held_out_of(training_data, sizes.micro),
            tracker=tracker,
            resume=context.resume,
            fingerprint=hash_of(dict(student_key(job))),
        )
    finally:
        tracker.close()
    kept_best = recipe.train.keep == "best"
    report = TrainingReport(
        parameters=count_parameters(student),
        steps=result.steps,
        tokens_seen=result.tokens,
        tokens_of_text=training_data.num_tokens,
        best_step=result.best_step if kept_best else None,
        best_loss=result.best_loss if kept_best else None,
        seconds=round(result.seconds, 1),
        stopped=result.stopped,
        flops=training_flops(step, reading, steps=result.steps, planned=steps),
    )
    on_main_process(lambda: save_trained(student, tokenizer, report, folder))


def held_out_of(training_data: TrainingData, micro_batch: int) -> Callable[[], Iterator[AnyBatch]] | None:
    """A function that returns a new iterator over this process's held-out batches; None without them."""
    if training_data.held_out(micro_batch) is None:
        return None
    return lambda: training_data.held_out(micro_batch) or iter(())


def initial_student(job: StudentJob) -> PreTrainedModel:
    """The student with its initial weights; ModelError if it is too large or cannot read packed rows."""
    recipe = job.recipe
    student = _built(job)
    if recipe.student.dropout is not None:
        set_dropout(student, recipe.student.dropout)
    check_model(student, recipe, teacher=None, name="student")
    if recipe.train.gradient_checkpointing:
        checkpoint_activations(student)
    return student


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Recompute each block's activations in the backward pass."""
    # transformers 5 renamed the method; the old name warns.
    renamed = getattr(model, "activation_checkpointing_enable", None)
    (renamed or model.gradient_checkpointing_enable)({"use_reentrant": False})


def _built(job: StudentJob) -> PreTrainedModel:
    recipe, seed, tokenizer = job.recipe, job.seed, job.tokenizer
    wanted, trust = recipe.student, job.context.trust_remote_code
    if wanted.init_from is not None:
        source = job.teachers[wanted.init_from.teacher]
        with error_context(teacher_place(recipe, wanted.init_from.teacher)):
            donor = load_model(source, recipe, tokenizer=None, trust_remote_code=trust)
        return student_from_layers(
            donor,
            wanted.init_from.layers,
            model_type=wanted.init_from.model_type,
            place="student.init_from.layers",
        )
    if wanted.model is not None:
        head_seed = seed if wanted.new_head else None
        with error_context("student.model"):
            student = load_model(
                wanted.model, recipe, tokenizer=tokenizer, trust_remote_code=trust, head_seed=head_seed
            )
        check_size(student)
        return student
    return model_from_recipe(job.fields, recipe, tokenizer, seed=seed)


def num_steps(train: Train, own: TrainingData, seed: int) -> int:
    """The number of optimizer steps, given directly or by epochs of the student's data."""
    if train.steps is not None:
        return train.steps
    assert train.epochs is not None
    return train.epochs * own.stream(batch_sizes(train.config), seed=seed).steps_per_epoch


def save_trained(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    report: TrainingReport | AdaptationReport,
    folder: Path,
) -> None:
    """Save the model, then the report, whose existence marks the model as complete."""
    save_model(model.cpu(), tokenizer, folder / "model")
    write_json(folder / REPORT, asdict(report))


def step_of(
    job: StudentJob, student: PreTrainedModel, training_data: TrainingData, *, epochs: float
) -> DistillationStep:
    """The training step: the student, its objectives, projections and teachers."""
    recipe = job.recipe
    names, cached = sorted(job.used_teachers), job.cached
    models = {
        name: live_teacher(job.teachers[name], job, training_data, name=name)
        for name in names
        if name not in cached
    }
    configs = {
        name: models[name].model.config if name in models else job.configuration(name)
        for name in names
        if name in models or name in feature_teachers(recipe)
    }
    terms = job.terms(student.config, configs)
    exchanged = {term.teacher for term in terms if term.intervention is not None}
    teachers: dict[str, Teacher] = {}
    left = REMEMBERED_BYTES
    asked = teacher_needs(terms, names, classes=recipe.language_task is None)
    for name, needs in asked.items():
        if name in cached:
            teachers[name] = CachedTeacher(opened(job.order(name)), needs)
            continue
        install_maps(models[name].model, needs.maps)
        ready: LiveTeacher | PrecomputedTeacher = models[name]
        if not exchanged & {name, COMBINED}:  # precomputed outputs do not cover interventions
            ready = _ready(models[name], needs, recipe, training_data, epochs=epochs, room=left)
        left -= ready.num_bytes if isinstance(ready, PrecomputedTeacher) else 0
        teachers[name] = ready
    seed = job.seed
    return DistillationStep(
        student,
        terms,
        teachers=teachers,
        combination=Combination(
            recipe.combine.how, recipe.combine.options, recipe.combine.teacher_dropout, seed
        ),
        projections=projections_of(recipe, terms, student.config, configs, seed=seed) if teachers else None,
        vocabulary_loss=recipe.engine.vocabulary_loss,
        supplies=supplies_of(training_data, job.tokenizer, seed=seed) if exchanged else None,
        domains=training_data.domains,
        gate=gate_of(recipe, student, terms, list(teachers)),
    )


def gate_of(
    recipe: Recipe, student: PreTrainedModel, terms: Sequence[Term], teachers: Sequence[str]
) -> Gate | None:
    """The gate of a combiner that learns its weights, untrained; None for another, or if no term mixes."""
    needs = COMBINERS[recipe.combine.how].needs_with(recipe.combine.options)
    if "gate" not in needs or all(term.teacher != COMBINED for term in terms):
        return None
    return Gate(head_of(student).weight.shape[1], teachers)


def _ready(
    live: LiveTeacher,
    needs: OutputSpec,
    recipe: Recipe,
    training_data: TrainingData,
    *,
    epochs: float,
    room: int,
) -> LiveTeacher | PrecomputedTeacher:
    """Precompute the teacher's outputs if rows repeat and the outputs fit in memory (``room``, in bytes).

    ``epochs``: how often each row is read.
    """
    of_one_length = recipe.language_task is not None or not (needs.sites or needs.maps)
    is_translated = isinstance(live, TranslatedTeacher)
    if is_translated or epochs <= 1 or not training_data.is_always_the_same or not of_one_length:
        return live
    device, micro_batch = current_device(), batch_sizes(recipe.train.config).micro
    with autocast(device, recipe.train.precision):
        first = next(training_data.in_order(micro_batch)).to(device)
        if training_data.num_rows * PrecomputedTeacher.row_bytes(live, first, needs) > room:
            return live
        batches, rows = training_data.in_order(micro_batch), training_data.num_rows
        return PrecomputedTeacher(live, batches, rows=rows, needs=needs, device=device)

"""Train one student of a recipe: from its plain values to a Hugging Face folder and a report."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stlm_kd.data.batch import Batch
from stlm_kd.data.batches import BatchStream, PackedRows, evaluation_batches
from stlm_kd.data.masking import Masking
from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.engine import FitResult, FitSettings, current_device, fit
from stlm_kd.engine.launched import first_process_runs, launched_processes, process_rank
from stlm_kd.engine.plain import autocast
from stlm_kd.models.forward import check_forward
from stlm_kd.models.load import count_parameters, load_language_model, save_model
from stlm_kd.models.observing import Needs
from stlm_kd.models.students import check_size, student_from_fields, student_from_layers
from stlm_kd.recipe import Recipe, hash_of
from stlm_kd.recipe.training import Train
from stlm_kd.run.assignment import Assignment
from stlm_kd.run.record import write_json
from stlm_kd.run.terms import projections_of
from stlm_kd.run.text import held_out_masking, held_out_rows, training_masking, training_rows
from stlm_kd.run.workshop import Zero
from stlm_kd.step import StepModule, teacher_needs
from stlm_kd.teachers import LiveTeacher, RememberingTeacher, Teacher
from stlm_kd.terms import Combination
from stlm_kd.vocab.spelling import vocabulary_size

REMEMBERED_BYTES = 2**30
"""Teachers' hidden states are computed once and kept, of as many teachers as this holds together."""


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What training a model took.

    Attributes:
        parameters: Of the model, shared ones once.
        steps: Optimizer steps done.
        tokens_seen: Positions read, repeats counted.
        tokens_of_text: Positions of the training text, each once.
        best_step: Whose weights were kept; None for the last.
        best_loss: Held-out loss there, nats per token of the student's vocabulary.
        seconds: Of training.
        stopped: Why it ended.
    """

    parameters: int
    steps: int
    tokens_seen: int
    tokens_of_text: int
    best_step: int | None
    best_loss: float | None
    seconds: float
    stopped: str


def read_report(folder: Path) -> TrainingReport:
    """The report of a finished training."""
    return TrainingReport(**json.loads((folder / "report.json").read_text(encoding="utf-8")))


def train_student(assignment: Assignment, folder: Path, *, label: str) -> None:
    """Fill a folder with ``model/``, ``report.json`` and ``metrics.jsonl``; its checkpoints stay in it too.

    Args:
        assignment: What to train.
        folder: Where an interrupted training finds its checkpoints again.
        label: What progress calls this training.
    """
    recipe, tokenizer, workshop = assignment.recipe, assignment.tokenizer, assignment.workshop
    student = initial_student(assignment)
    own = training_rows(recipe, tokenizer, workshop)
    parts = training_rows(recipe, tokenizer, workshop, fraction=assignment.fraction)
    steps = num_steps(recipe.train, own, assignment.seed)
    stream = BatchStream(
        parts,
        effective_batch=recipe.train.effective_batch,
        micro_batch=micro_batch_of(recipe.train),
        seed=assignment.seed,
        rank=process_rank(),
        world_size=launched_processes(),
        masking=training_masking(recipe, tokenizer, parts),
    )
    step = _step(assignment, student, parts, epochs=steps / stream.steps_per_epoch)
    held = held_out_rows(recipe, tokenizer, workshop)
    masking = held_out_masking(recipe, tokenizer)
    tracker = workshop.tracker(folder, backends=recipe.tracking, stage=label)
    try:
        result = fit(
            step,
            stream,
            fit_settings(recipe.train, steps, assignment.seed, zero=workshop.zero),
            folder=folder,
            validation=partial(held_out_batches, held, micro_batch_of(recipe.train), masking)
            if held
            else None,
            tracker=tracker,
            resume=workshop.resume,
            fingerprint=hash_of(dict(assignment.key())),
        )
    finally:
        tracker.close()
    kept_best = recipe.train.keep == "best"
    first_process_runs(lambda: finish(student, tokenizer, folder, result, kept_best=kept_best, parts=parts))


def held_out_batches(
    parts: Sequence[PackedRows], micro_batch: int, masking: Masking | None
) -> Iterator[Batch]:
    """The held-out batches of this process."""
    return evaluation_batches(
        parts,
        micro_batch=micro_batch,
        rank=process_rank(),
        world_size=launched_processes(),
        masking=masking,
    )


def initial_student(assignment: Assignment) -> PreTrainedModel:
    """The student before its training.

    Raises:
        ModelError: It cannot be built, is too large, or is of a kind that cannot be trained on packed rows.
    """
    recipe, seed = assignment.recipe, assignment.seed
    wanted, trust = recipe.student, assignment.workshop.trust_remote_code
    if wanted.init_from is not None:
        source = assignment.teachers[wanted.init_from.teacher]
        student = student_from_layers(
            load_language_model(source, recipe.task, trust_remote_code=trust),
            wanted.init_from.layers,
            model_type=wanted.init_from.model_type,
            place="student.init_from.layers",
        )
    elif wanted.model is not None:
        head_seed = seed if wanted.new_head else None
        student = load_language_model(wanted.model, recipe.task, trust_remote_code=trust, head_seed=head_seed)
        check_size(student)
    else:
        student = student_from_fields(
            assignment.fields,
            assignment.tokenizer,
            task=recipe.task,
            context=recipe.data.context,
            seed=seed,
        )
    check_forward(student, context=recipe.data.context, name="student")
    if recipe.train.gradient_checkpointing:
        # Named anew within version 5 of transformers, where the old name warns.
        renamed = getattr(student, "activation_checkpointing_enable", None)
        (renamed or student.gradient_checkpointing_enable)({"use_reentrant": False})
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


def num_steps(train: Train, parts: Sequence[PackedRows], seed: int) -> int:
    """Optimizer steps: as given, or as many as the epochs have."""
    if train.steps is not None:
        return train.steps
    assert train.epochs is not None
    stream = BatchStream(
        parts, effective_batch=train.effective_batch, micro_batch=micro_batch_of(train), seed=seed
    )
    return train.epochs * stream.steps_per_epoch


def finish(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    result: FitResult,
    *,
    kept_best: bool,
    parts: Sequence[PackedRows],
) -> None:
    """Save the model, then the report that says that it is whole."""
    save_model(model.cpu(), tokenizer, folder / "model")
    report = TrainingReport(
        parameters=count_parameters(model),
        steps=result.steps,
        tokens_seen=result.tokens,
        tokens_of_text=sum(rows.num_tokens for rows in parts),
        best_step=result.best_step if kept_best else None,
        best_loss=result.best_loss if kept_best else None,
        seconds=round(result.seconds, 1),
        stopped=result.stopped,
    )
    write_json(folder / "report.json", asdict(report))


def micro_batch_of(train: Train) -> int:
    """Rows of one forward."""
    return train.micro_batch or train.effective_batch


def _step(
    assignment: Assignment, student: PreTrainedModel, parts: Sequence[PackedRows], *, epochs: float
) -> StepModule:
    """The student with its objectives, their projections, and the teachers that they ask."""
    recipe = assignment.recipe
    models = {name: _teacher_model(assignment, name) for name in sorted(assignment.asked)}
    configs = {name: model.config for name, (model, _) in models.items()}
    terms = assignment.terms(student.config, configs)
    teachers: dict[str, Teacher] = {}
    left = REMEMBERED_BYTES
    for name, needs in teacher_needs(terms, list(models), classes=recipe.language_task is None).items():
        live = LiveTeacher(*models[name])
        ready = (
            live if recipe.task != "clm" or epochs <= 1 else _remembering(live, needs, recipe, parts, left)
        )
        left -= ready.num_bytes if isinstance(ready, RememberingTeacher) else 0
        teachers[name] = ready
    return StepModule(
        student,
        terms,
        teachers=teachers,
        combination=Combination(recipe.combine.how, recipe.combine.options),
        projections=projections_of(recipe, terms, student.config, configs, seed=assignment.seed)
        if teachers
        else None,
        vocabulary_loss=recipe.engine.vocabulary_loss,
    )


def _teacher_model(assignment: Assignment, name: str) -> tuple[PreTrainedModel, int]:
    """A teacher on its device, and the size of its vocabulary."""
    recipe, trust, place = assignment.recipe, assignment.workshop.trust_remote_code, assignment.teachers[name]
    model = load_language_model(place, recipe.task, trust_remote_code=trust)
    model.to(current_device())  # type: ignore[arg-type]
    check_forward(model, context=recipe.data.context, name=f"teacher {name}")
    return model, vocabulary_size(load_tokenizer(place, trust_remote_code=trust))


def _remembering(
    live: LiveTeacher, needs: Needs, recipe: Recipe, parts: Sequence[PackedRows], room: int
) -> LiveTeacher | RememberingTeacher:
    """The teacher answering from memory, where the rows come often and its answers fit in it.

    What a masked language model reads is masked anew each time, so that nothing can be remembered of it.
    """
    rows, device = sum(len(part) for part in parts), current_device()

    def batches() -> Iterator[Batch]:
        own = evaluation_batches(parts, micro_batch=micro_batch_of(recipe.train))
        return (batch.to(device) for batch in own)

    with autocast(device, recipe.train.precision):
        if rows * RememberingTeacher.row_bytes(live, next(batches()), needs) > room:
            return live
        return RememberingTeacher(live, batches(), rows=rows, needs=needs)

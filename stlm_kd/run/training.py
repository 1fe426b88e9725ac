"""Train one student of a recipe: from its plain values to a Hugging Face folder and a report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stlm_kd.data.batches import BatchStream, PackedRows, evaluation_batches
from stlm_kd.data.tokenizers import load_tokenizer, tokenizer_identity
from stlm_kd.engine import FitResult, FitSettings, current_device, fit
from stlm_kd.engine.update import autocast
from stlm_kd.losses import LABELS
from stlm_kd.models.forward import check_forward, head_of
from stlm_kd.models.load import count_parameters, load_language_model, save_model
from stlm_kd.models.presets import PRESETS
from stlm_kd.models.students import check_size, student_from_fields, student_from_layers
from stlm_kd.objective import COMBINED, Combination, Term
from stlm_kd.recipe import Recipe, hash_of, plain, term_names
from stlm_kd.recipe.schema import Train
from stlm_kd.run.record import write_json
from stlm_kd.run.stages import Json, Key, model_identity
from stlm_kd.run.text import held_out_rows, text_key, training_rows
from stlm_kd.run.workshop import Workshop
from stlm_kd.step import StepModule
from stlm_kd.teachers import LiveTeacher, RememberingTeacher, Teacher
from stlm_kd.vocab.spelling import vocabulary_size

Variant = Literal["student", "no-teacher", "all-data"]
"""The recipe's own student, or one of its controls, which have no teachers and the same number of steps."""

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


def training_key(
    recipe: Recipe,
    variant: Variant,
    seed: int,
    *,
    teachers: Mapping[str, str],
    tokenizer: PreTrainedTokenizerFast,
    trust: bool = False,
) -> Key:
    """Everything that decides the trained weights.

    What the variant does not use is left out: other teachers, objectives or ways to combine leave a control's
    key as it is, and a preset counts by its fields.

    Args:
        recipe: The recipe.
        variant: Which of its students.
        seed: The student's seed.
        teachers: By name, the folder of each teacher that is ready to teach.
        tokenizer: The student's.
        trust: Whether models may run code that they bring.
    """
    train = plain(recipe.train)
    for name in ("log_every", "checkpoint_every"):
        train.pop(name, None)
    identify = cache(partial(model_identity, trust_remote_code=trust))
    asked = asked_teachers(recipe) if variant == "student" else set()
    combines = len(asked) > 1 and COMBINED in {term.teacher for term in variant_terms(recipe, variant)}
    fraction = 1.0 if variant == "all-data" else recipe.data.fraction
    return {
        "student": _body_key(recipe, teachers, identify),
        "tokenizer": tokenizer_identity(tokenizer),
        "teachers": {name: identify(teachers[name]) for name in sorted(asked)},
        "combine": plain(recipe.combine) if combines else None,
        "objectives": [asdict(term) for term in variant_terms(recipe, variant)],
        "train": train,
        "steps_from": recipe.data.fraction if recipe.train.epochs else None,
        "text": text_key(recipe.data.train, fraction),
        "validation": text_key(recipe.data.validation or (), 1.0),
        "context": recipe.data.context,
        "seed": seed,
    }


def _body_key(recipe: Recipe, teachers: Mapping[str, str], identify: Callable[[str], str]) -> Json:
    """What the student is made of: some layers of a model, a whole one, or fields of a configuration."""
    wanted = recipe.student
    if wanted.init_from is not None:
        source = teachers[wanted.init_from.teacher]
        return {"layers": plain(wanted.init_from)["layers"], "of": identify(source)}
    if wanted.model is not None:
        return {"model": identify(wanted.model)}
    return {"fields": dict(_fields(recipe))}


def asked_teachers(recipe: Recipe) -> set[str]:
    """The names of the teachers that the objectives ask."""
    named = {entry.teacher for entry in recipe.objectives if entry.loss != LABELS}
    return {teacher.name for teacher in recipe.teachers} if COMBINED in named else named


def train_student(
    recipe: Recipe,
    variant: Variant,
    seed: int,
    *,
    teachers: Mapping[str, str],
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    workshop: Workshop,
    label: str,
) -> None:
    """Fill a folder with ``model/``, ``report.json`` and ``metrics.jsonl``; its checkpoints stay in it too.

    Args:
        recipe: The recipe.
        variant: Which of its students.
        seed: Of initial weights, order of the data and dropout.
        teachers: By name, the folder of each teacher that is ready to teach (adapted where need be).
        tokenizer: The student's.
        folder: Where an interrupted training finds its checkpoints again.
        workshop: Where shared results lie.
        label: What progress calls this training.
    """
    student = initial_student(recipe, seed, teachers=teachers, tokenizer=tokenizer, workshop=workshop)
    own = training_rows(recipe, tokenizer, workshop)
    parts = training_rows(recipe, tokenizer, workshop, fraction=1.0) if variant == "all-data" else own
    held = held_out_rows(recipe, tokenizer, workshop)
    steps = num_steps(recipe.train, own, seed)
    stream = _stream(recipe.train, parts, seed)
    epochs = steps / stream.steps_per_epoch
    step = StepModule(
        student,
        variant_terms(recipe, variant),
        teachers=_ready(teachers, parts, epochs, recipe, workshop) if variant == "student" else {},
        combination=Combination(recipe.combine.how, recipe.combine.options),
    )
    key = training_key(
        recipe, variant, seed, teachers=teachers, tokenizer=tokenizer, trust=workshop.trust_remote_code
    )
    tracker = workshop.tracker(folder, backends=recipe.tracking, stage=label)
    try:
        result = fit(
            step,
            stream,
            fit_settings(recipe.train, steps, seed),
            folder=folder,
            validation=partial(evaluation_batches, held, micro_batch=_micro_batch(recipe.train))
            if held
            else None,
            tracker=tracker,
            resume=workshop.resume,
            fingerprint=hash_of(dict(key)),
        )
    finally:
        tracker.close()
    finish(student, tokenizer, folder, result, kept_best=recipe.train.keep == "best", parts=parts)


def initial_student(
    recipe: Recipe,
    seed: int,
    *,
    teachers: Mapping[str, str],
    tokenizer: PreTrainedTokenizerFast,
    workshop: Workshop,
) -> PreTrainedModel:
    """The student before its training.

    Raises:
        ModelError: It cannot be built, is too large, or is of a kind that cannot be trained on packed rows.
    """
    wanted, trust = recipe.student, workshop.trust_remote_code
    if wanted.init_from is not None:
        teacher = load_language_model(
            teachers[wanted.init_from.teacher], recipe.task, trust_remote_code=trust
        )
        student = student_from_layers(teacher, wanted.init_from.layers, place="student.init_from.layers")
    elif wanted.model is not None:
        student = check_size(load_language_model(wanted.model, recipe.task, trust_remote_code=trust))
    else:
        student = student_from_fields(
            _fields(recipe), tokenizer, task=recipe.task, context=recipe.data.context, seed=seed
        )
    check_forward(student, context=recipe.data.context, name="student")
    if recipe.train.gradient_checkpointing:
        # Named anew within version 5 of transformers, where the old name warns.
        renamed = getattr(student, "activation_checkpointing_enable", None)
        (renamed or student.gradient_checkpointing_enable)({"use_reentrant": False})
    return student


def _fields(recipe: Recipe) -> Mapping[str, int | float | str | bool]:
    """The student's configuration, where it is built from nothing."""
    wanted = recipe.student
    fields = PRESETS[wanted.preset] if wanted.preset is not None else wanted.architecture
    assert fields is not None
    return fields


def variant_terms(recipe: Recipe, variant: Variant) -> list[Term]:
    """What a variant is trained on: the recipe's objectives, or in a control the labels alone."""
    if variant != "student":
        return [Term(LABELS, LABELS)]
    return [
        Term(
            name=name,
            loss=entry.loss,
            weight=entry.weight,
            on=entry.on,
            teacher=None if entry.loss == LABELS else entry.teacher,
            options=entry.options,
        )
        for name, entry in zip(term_names(recipe), recipe.objectives, strict=True)
    ]


def fit_settings(train: Train, steps: int, seed: int) -> FitSettings:
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
    )


def tenth(steps: int) -> int:
    """Steps between checkpoints where nothing else is said: a crash costs a tenth of the work at most."""
    return max(1, math.ceil(steps / 10))


def num_steps(train: Train, parts: Sequence[PackedRows], seed: int) -> int:
    """Optimizer steps: as given, or as many as the epochs have."""
    if train.steps is not None:
        return train.steps
    assert train.epochs is not None
    return train.epochs * _stream(train, parts, seed).steps_per_epoch


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


def _micro_batch(train: Train) -> int:
    return train.micro_batch or train.effective_batch


def _stream(train: Train, parts: Sequence[PackedRows], seed: int) -> BatchStream:
    return BatchStream(
        parts, effective_batch=train.effective_batch, micro_batch=_micro_batch(train), seed=seed
    )


def _ready(
    folders: Mapping[str, str], parts: Sequence[PackedRows], epochs: float, recipe: Recipe, workshop: Workshop
) -> dict[str, Teacher]:
    """The teachers that the objectives ask, answering from memory where the rows come often and fit in it."""
    context, device = recipe.data.context, current_device()
    rows, left = sum(len(part) for part in parts), REMEMBERED_BYTES
    ready: dict[str, Teacher] = {}
    for name in sorted(asked_teachers(recipe)):
        model = load_language_model(folders[name], recipe.task, trust_remote_code=workshop.trust_remote_code)
        model.to(device)  # type: ignore[arg-type]
        check_forward(model, context=context, name=f"teacher {name}")
        tokenizer = load_tokenizer(folders[name], trust_remote_code=workshop.trust_remote_code)
        live = LiveTeacher(model, vocabulary_size(tokenizer))
        size = rows * context * int(head_of(model).weight.shape[1]) * 4
        if epochs > 1 and size <= left:
            left -= size
            batches = evaluation_batches(parts, micro_batch=_micro_batch(recipe.train))
            with autocast(device, recipe.train.precision):
                ready[name] = RememberingTeacher(live, (batch.to(device) for batch in batches), rows=rows)
        else:
            ready[name] = live
    return ready

"""Vocabulary adaptation of one teacher: initialise new rows, train them, report the quality change."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stlm_kd.adaptation.initialisers import AUTO, INITIALISERS, VocabularyInit, new_rows
from stlm_kd.adaptation.span_distillation import AlignedTokenisations, SpanTeacher, positions_of
from stlm_kd.adaptation.step import SPANS, AdaptationStep, SpanStep
from stlm_kd.artifacts.reports import MEASURES, AdaptationReport, init_words
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.data.token_store import joined
from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.distillation.terms import Term
from stlm_kd.distributed import on_main_process
from stlm_kd.losses import LABELS
from stlm_kd.models.forward import autocast
from stlm_kd.models.load import count_parameters, to_device
from stlm_kd.models.vocabulary import (
    copy_for_vocabulary,
    freeze_all_but_embedding,
    freeze_body,
    plain_embedding,
    replace_embedding,
    replace_vocabulary,
    thaw_norms,
    vocabulary_parameters,
)
from stlm_kd.pipeline.builders.data import (
    BatchSizes,
    PackedText,
    TrainingData,
    batch_sizes,
    build_training_data,
)
from stlm_kd.pipeline.builders.examples import training_examples
from stlm_kd.pipeline.builders.flops import step_shape, training_flops
from stlm_kd.pipeline.builders.models import check_model, load_model
from stlm_kd.pipeline.builders.text import training_stores
from stlm_kd.pipeline.context import RecipeSetup
from stlm_kd.pipeline.stage_keys import adaptation_fraction, adaptation_key
from stlm_kd.pipeline.stages.adaptation_quality import (
    InitLoss,
    Quality,
    init_loss,
    init_positions,
    measurer,
    validation_rows,
)
from stlm_kd.pipeline.stages.student import held_out_of, save_trained
from stlm_kd.pipeline.stages.tokenizer import trimmed_from
from stlm_kd.recipe import Recipe, hash_of
from stlm_kd.recipe.schema.student import CROSS_ENTROPY, SELF_DISTILLATION, Adapt
from stlm_kd.teachers.live import LiveTeacher
from stlm_kd.tracking.metrics import Tracker
from stlm_kd.training import RowScale, TrainingConfig
from stlm_kd.training.loop import fit
from stlm_kd.training.optimizer import trainable_parameters
from stlm_kd.training.processes import current_device
from stlm_kd.training.protocols import FitResult
from stlm_kd.vocabulary.cooccurrence import Integers

_DEFAULT_OBJECTIVES = {False: {CROSS_ENTROPY: 1.0}, True: {SELF_DISTILLATION: 1.0}}
"""The default objectives, for language models (False) and classifiers (True)."""

COPIED = (
    "all copied"  # in place of an initialiser, where the teacher has a row for each of the student's tokens
)

ORIGINAL = "original"  # the name of the unadapted classifier as teacher of its adapted copy


_UNTRAINED = FitResult(
    steps=0, tokens=0, best_step=0, best_loss=None, validation_history=(), seconds=0.0, stopped="done"
)


def adapt_model(setup: RecipeSetup, adapt: Adapt, teacher: str, *, name: str, folder: Path) -> None:
    """Write ``model/`` (with the student's tokenizer), ``report.json`` and ``metrics.jsonl`` to a folder.

    The folder also contains the checkpoints of an interrupted adaptation.

    With no ``tokens`` to train on, the initialised rows are kept.

    Raises:
        ModelError: The teacher cannot process packed rows, or its vocabulary differs from its tokenizer's.
    """
    recipe, tokenizer, context = setup.recipe, setup.tokenizer, setup.context
    trust = context.trust_remote_code
    own = load_tokenizer(teacher, trust_remote_code=trust)
    work = _Work(recipe, tokenizer, context, adapt, teacher, own)
    model = load_model(teacher, recipe, tokenizer=own, trust_remote_code=trust)
    check_model(model, recipe, teacher=name, name=teacher)
    tracker = context.tracker(folder, recipe=recipe, stage=f"adapt {name}")
    try:
        measured = measurer(recipe)
        before = measured(model, own)
        on_itself = adapt.tokens > 0 and SELF_DISTILLATION in (adapt.objective or {})
        teaches_itself = recipe.language_task is None or on_itself
        original = deepcopy(model) if teaches_itself else None
        readers = {ORIGINAL: own} if recipe.language_task is None else {}
        data = build_training_data(work, fraction=adapt.fraction, seed=adapt.seed, readers=readers)
        chosen = _with_new_rows(work, model, data)
        if chosen.losses:
            tracker.note(f"{name}: init {init_words(chosen.name, chosen.losses, chosen.positions)}")
        initialised = measured(model, tokenizer)
        tracker.note(
            f"{name}: {MEASURES[recipe.task]} {before.value:.3f} with its own vocabulary, "
            f"{initialised.value:.3f} with new rows ({chosen.name}){'; training them' * (adapt.tokens > 0)}"
        )
        training = _training_setup(work, model, original, data)
        result = _UNTRAINED if not adapt.tokens else _train(work, training, chosen, name, folder, tracker)
    finally:
        tracker.close()
    trained = initialised if result.best_step == 0 else measured(model, tokenizer)
    report = _report(work, training, chosen, result, before=before, initialised=initialised, trained=trained)
    on_main_process(lambda: save_trained(model, tokenizer, report, folder))


@dataclass(frozen=True, slots=True)
class _Work(RecipeSetup):
    """A teacher to adapt, its settings, and its own tokenizer."""

    adapt: Adapt
    teacher: str
    own: PreTrainedTokenizerFast

    @property
    def sizes(self) -> BatchSizes:
        return batch_sizes(self.adapt.config)


@dataclass(frozen=True, slots=True)
class _TrainingSetup:
    """The training of a teacher with new rows; ``aligned`` is the share of positions in aligned spans."""

    training_data: TrainingData
    settings: TrainingConfig
    step: AdaptationStep
    aligned: float | None


@dataclass(frozen=True, slots=True)
class _ChosenInit:
    """An initialiser with its rows; with ``init: auto``, the losses of all, and on how many positions."""

    name: str
    made: VocabularyInit
    losses: Mapping[str, float] = field(default_factory=dict)
    positions: int | None = None


def _with_new_rows(work: _Work, model: PreTrainedModel, training_data: TrainingData) -> _ChosenInit:
    """Compute the new rows and install them; only they, and the norms if configured, remain trainable."""
    adapt, text = work.adapt, partial(_joined_text, work)
    make = partial(new_rows, model, work.own, work.tokenizer, seed=adapt.seed, text=text)
    copies = trimmed_from(work.recipe) is not None or (adapt.init != AUTO and INITIALISERS[adapt.init].copies)
    copied = make("subword-mean") if copies else None
    if copied is not None and copied.is_exact:
        chosen = _ChosenInit(COPIED, copied)
    elif adapt.init == AUTO:
        chosen = _best_init(work, model, training_data, make)
    else:
        chosen = _ChosenInit(adapt.init, make(adapt.init))
    install_rows(model, chosen.made, work.tokenizer)
    if adapt.norms:
        thaw_norms(model)
    return chosen


def _best_init(
    work: _Work, model: PreTrainedModel, data: TrainingData, make: Callable[[str], VocabularyInit]
) -> _ChosenInit:
    """The initialiser with the lowest loss on the first held-out rows; the model is unchanged."""
    most = init_positions(work.adapt.tokens, len([*INITIALISERS]))
    micro = max(1, min(work.sizes.micro, most // work.recipe.data.context))
    losses: dict[str, float] = {}
    best: _ChosenInit | None = None

    def measure(made: VocabularyInit) -> InitLoss:
        candidate = copy_for_vocabulary(model)
        install_rows(candidate, made, work.tokenizer)
        batches = data.held_out(micro, whole=True) or iter(())
        return init_loss(_step(candidate, None, work.recipe), batches, work.adapt.precision, most=most)

    for name in INITIALISERS:
        made = make(name)
        found = on_main_process(partial(measure, made))
        losses[name] = found.value
        if best is None or found.value < losses[best.name]:
            best = _ChosenInit(name, made, losses, found.positions)
    assert best is not None
    return best


def _training_setup(
    work: _Work, model: PreTrainedModel, original: PreTrainedModel | None, training_data: TrainingData
) -> _TrainingSetup:
    """The training's settings and step; self-distillation on aligned spans if a language model does that."""
    recipe, adapt = work.recipe, work.adapt
    settings = work.context.with_engine(adaptation_settings(adapt, training_data))
    if not isinstance(training_data, PackedText) or original is None:
        return _TrainingSetup(training_data, settings, _step(model, original, recipe), None)
    text = AlignedTokenisations(
        training_data.parts,
        training_stores(replace(work, tokenizer=work.own), fraction=adaptation_fraction(recipe, adapt)),
        work.tokenizer,
        work.own,
        most_old=positions_of(original),
    )
    asked_often = settings.num_steps > training_data.stream(work.sizes, seed=adapt.seed).steps_per_epoch
    step = span_step(model, original, text, adapt, asked_often=asked_often)
    return _TrainingSetup(training_data, settings, step, text.share_in_spans())


def _train(
    work: _Work, training: _TrainingSetup, chosen: _ChosenInit, name: str, folder: Path, tracker: Tracker
) -> FitResult:
    """Train the new rows; the best ones remain in the model."""
    recipe, adapt, context = work.recipe, work.adapt, work.context
    for note in _notes(training.training_data):
        tracker.note(f"{name}: {note}")
    key = adaptation_key(recipe, adapt, work.teacher, work.tokenizer, trust=context.trust_remote_code)
    rows = _validation_rows(work, training)
    return fit(
        training.step,
        training.training_data.stream(work.sizes, seed=adapt.seed),
        replace(training.settings, paced=_row_scales(training.step, chosen.made, adapt)),
        folder=folder,
        validation=_validation(work, training, rows),
        tracker=tracker,
        resume=context.resume,
        fingerprint=hash_of({**key, "validation_rows": rows}),
    )


def _validation_rows(work: _Work, training: _TrainingSetup) -> int | None:
    """How many rows of held-out text a validation reads; None for examples, which are read whole."""
    if not isinstance(training.training_data, PackedText):
        return None
    adapt, steps = work.adapt, training.settings.num_steps
    validations = 1 + math.ceil(steps / adapt.validate_every)
    return validation_rows(adapt.tokens, validations, work.recipe.data.context)


def _validation(
    work: _Work, training: _TrainingSetup, rows: int | None
) -> Callable[[], Iterator[AnyBatch]] | None:
    """The held-out batches of this process, the same at each validation; None without held-out data."""
    data, micro = training.training_data, work.sizes.micro
    if rows is None or not isinstance(data, PackedText):
        return held_out_of(data, micro)
    if not data.held:
        return None
    return lambda: data.held_out(micro, most_rows=rows) or iter(())


def _report(
    work: _Work,
    setup: _TrainingSetup,
    chosen: _ChosenInit,
    result: FitResult,
    *,
    before: Quality,
    initialised: Quality,
    trained: Quality,
) -> AdaptationReport:
    return AdaptationReport(
        teacher=work.teacher,
        task=work.recipe.task,
        init=chosen.name,
        old_vocabulary=len(work.own),
        new_vocabulary=len(work.tokenizer),
        tokens_by_origin=chosen.made.counts,
        before=before.value,
        initialised=initialised.value,
        trained=trained.value,
        held_out=trained.size,
        trained_parameters=count_parameters(setup.step.student, trainable_only=True),
        tokens_seen=result.tokens,
        tokens_of_text=setup.training_data.num_tokens,
        steps=result.steps,
        seconds=round(result.seconds, 1),
        stopped=result.stopped,
        objective={}
        if not result.steps
        else work.adapt.objective or _DEFAULT_OBJECTIVES[work.recipe.language_task is None],
        aligned=setup.aligned,
        flops=_flops(work, setup, steps=result.steps),
        best_step=result.best_step,
        init_losses=chosen.losses,
        init_positions=chosen.positions,
    )


def _flops(work: _Work, setup: _TrainingSetup, *, steps: int) -> int | None:
    """The FLOPs of the training; None for self-distillation, whose teacher reads other rows."""
    if setup.aligned is not None:
        return None
    if not steps:
        return 0
    epoch = setup.training_data.stream(work.sizes, seed=work.adapt.seed).steps_per_epoch
    reading = step_shape(work.recipe, setup.training_data, work.sizes, steps_per_epoch=epoch)
    return training_flops(setup.step, reading, steps=steps, frozen_body=True)


def _notes(training_data: TrainingData) -> tuple[str, ...]:
    """Notes for the user; validation losses are in nats, reports in bits per byte."""
    bits = training_data.bits_of_a_nat if isinstance(training_data, PackedText) else None
    unit = () if bits is None else (f"validation: 1 nat per token is {bits:.3f} bits per byte",)
    return (*training_data.notes, *unit)


def _joined_text(work: _Work) -> tuple[Integers, Integers]:
    """The training text or examples in the new vocabulary: token ids and document boundaries."""
    recipe, tokenizer, fraction = work.recipe, work.tokenizer, adaptation_fraction(work.recipe, work.adapt)
    if recipe.language_task is not None:
        return joined(training_stores(work, fraction=fraction))
    examples = training_examples(recipe, fraction, seed=work.adapt.seed)
    texts = [text for example in examples.texts for text in example]
    rows = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return np.concatenate([np.array(row, np.int64) for row in rows]), np.cumsum([0, *map(len, rows)])


def install_rows(model: PreTrainedModel, made: VocabularyInit, tokenizer: PreTrainedTokenizerFast) -> None:
    """Replace the model's vocabulary by the new rows and freeze everything else."""
    if model.get_output_embeddings() is None:
        replace_embedding(model, made.embedding, tokenizer=tokenizer)
        freeze_all_but_embedding(model)
    else:
        replace_vocabulary(model, made.embedding, made.head, made.head_bias, tokenizer=tokenizer)
        freeze_body(model)


def _step(model: PreTrainedModel, original: PreTrainedModel | None, recipe: Recipe) -> AdaptationStep:
    """Cross-entropy for a language model; for a classifier, distillation from its unadapted self."""
    if original is None:
        return AdaptationStep(model, [Term(LABELS, LABELS)])
    to_device(original, current_device())
    if recipe.task == "regression":
        term = Term("logit_mse", "logit_mse", teacher=ORIGINAL, options={"centred": False})
    else:
        term = Term("forward_kl", "forward_kl", teacher=ORIGINAL)
    return AdaptationStep(model, [term], teachers={ORIGINAL: LiveTeacher(original, name=ORIGINAL)})


def _row_scales(step: AdaptationStep, made: VocabularyInit, adapt: Adapt) -> tuple[RowScale, ...]:
    """Learning-rate multipliers of copied rows in embedding, head and bias; () if all rates are equal."""
    if adapt.old_rows_learning_rate in (None, adapt.learning_rate):
        return ()
    model, scale = step.student, adapt.old_rows_learning_rate / adapt.learning_rate
    classifies = model.get_output_embeddings() is None
    weights = [plain_embedding(model).weight] if classifies else vocabulary_parameters(model)
    rows, known = tuple(made.copied.tolist()), {id(weight) for weight in weights}
    names = [name for name, weight in trainable_parameters(step).items() if id(weight) in known]
    return tuple(RowScale(name, rows, scale) for name in names)


def adaptation_settings(adapt: Adapt, training_data: TrainingData) -> TrainingConfig:
    """The adaptation's settings for the training loop; ``tokens`` is rounded up to whole steps."""
    steps = max(1, math.ceil(adapt.tokens / (adapt.effective_batch * training_data.row_tokens)))
    config = replace(adapt.config, weight_decay=0.0, keep="best")
    return config.with_steps(steps)


def span_step(
    model: PreTrainedModel,
    original: PreTrainedModel,
    text: AlignedTokenisations,
    adapt: Adapt,
    *,
    asked_often: bool,
) -> SpanStep:
    """The training step of self-distillation on aligned spans of the text in both tokenizations.

    If rows are read more than once (``asked_often``), the teacher's outputs are precomputed.
    """
    device = current_device()
    to_device(original, device)
    teacher = SpanTeacher(original, text)
    if asked_often:
        with autocast(device, adapt.precision):
            teacher.remember(batch_sizes(adapt.config).micro)
    given = adapt.objective or {}
    terms = {LABELS: CROSS_ENTROPY, SPANS: SELF_DISTILLATION}
    return SpanStep(model, teacher, {term: given.get(name, 0.0) for term, name in terms.items()})

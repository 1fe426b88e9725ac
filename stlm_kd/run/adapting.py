"""Give one teacher the student's vocabulary, train its new rows, and report what that cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge
from pydantic import AfterValidator, TypeAdapter
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stlm_kd.adaptation import VocabularyInit, new_rows
from stlm_kd.data.labelled import Examples
from stlm_kd.data.tokenizers import load_tokenizer, tokenizer_identity
from stlm_kd.data.tokens import joined
from stlm_kd.engine import FitResult, FitSettings, PacedRows, current_device, fit
from stlm_kd.engine.launched import first_process_runs
from stlm_kd.eval.examples import measure as measure_examples
from stlm_kd.eval.perplexity import measure
from stlm_kd.eval.pseudo_perplexity import measure as measure_pseudo
from stlm_kd.eval.results import Count, Measured
from stlm_kd.losses import LABELS
from stlm_kd.models.load import count_parameters, save_model
from stlm_kd.models.placing import move
from stlm_kd.models.vocabulary import (
    freeze_all_but_embedding,
    freeze_body,
    plain_embedding,
    replace_embedding,
    replace_vocabulary,
    thaw_norms,
    vocabulary_parameters,
)
from stlm_kd.optim import trainable_parameters
from stlm_kd.recipe import Recipe, hash_of, plain
from stlm_kd.recipe.student import CROSS_ENTROPY, SELF_DISTILLATION, Adapt
from stlm_kd.run.adaptation_step import AdaptationStep, span_step
from stlm_kd.run.compute import reading_of, training_flops
from stlm_kd.run.examples import training_examples
from stlm_kd.run.loading import check_model, load_model
from stlm_kd.run.material import (
    BatchSizes,
    HeldOut,
    Material,
    TextMaterial,
    data_key,
    held_out_key,
    held_out_of_recipe,
    material_of,
)
from stlm_kd.run.record import write_json
from stlm_kd.run.saved import AGAIN, read_saved
from stlm_kd.run.stages import Key, model_identity
from stlm_kd.run.text import training_stores
from stlm_kd.run.training import REPORT, held_out_of, tenth
from stlm_kd.run.workshop import Workshop, Zero
from stlm_kd.span_teacher import paired_text, positions_of
from stlm_kd.teachers import LiveTeacher
from stlm_kd.terms import Term
from stlm_kd.vocab.likeness import Integers

MEASURED_BYTES = {"clm": 200_000, "mlm": 8_000}
"""Bytes of held-out text that the report measures, at most; a masked model needs a row for each token."""

MEASURES: dict[str, str] = {
    "clm": "bits per byte",
    "mlm": "pseudo-bits per byte",
    "classification": "accuracy",
    "regression": "Pearson's correlation",
}
"""What says how good a teacher is before and after, by task."""

_USUAL = {False: {CROSS_ENTROPY: 1.0}, True: {SELF_DISTILLATION: 1.0}}
"""What is trained on where nothing is said: of language models, and of classifiers."""

ORIGINAL = "original"
"""What a classifier's own self, as it was, is called while it teaches."""


def _measured_task(task: str) -> str:
    if task not in MEASURES:
        raise ValueError(f"expected one of {', '.join(MEASURES)}")
    return task


@dataclass(frozen=True, slots=True)
class AdaptationReport:
    """What giving a teacher another vocabulary did to it.

    Attributes:
        teacher: Folder or Hub id of the teacher as it was.
        task: What it predicts, and so how it is measured: by ``MEASURES``, on held-out text or examples. Bits
            per byte compare across vocabularies.
        init: The initialiser.
        old_vocabulary, new_vocabulary: Tokens of the two tokenizers.
        tokens_by_origin: How many new tokens got their row in which way.
        before: With the teacher's own vocabulary.
        initialised: With the new rows, untrained.
        trained: At the end.
        held_out: Bytes, or examples, that these three are measured on.
        trained_parameters: Embedding and head; a classifier's embedding; norms where these are trained too.
        tokens_seen: Positions read in training, repeats counted.
        tokens_of_text: Positions of the training text, each once.
        steps: Optimizer steps done.
        seconds: Of training.
        stopped: Why it ended: ``done`` or ``early-stop``.
        objective: What it was trained on, by weight; {} where a version that had one alone adapted it.
        aligned: Of self-distillation, the share of predicted tokens that are in a span which both tokenizers
            share, on a sample of the rows; None without it.
        flops: What it computed (``run.compute``); None where that was not counted, as of self-distillation.
    """

    teacher: str
    task: Annotated[str, AfterValidator(_measured_task)]
    init: str
    old_vocabulary: Count
    new_vocabulary: Annotated[Count, Ge(1)]
    tokens_by_origin: Mapping[str, Count]
    before: Measured
    initialised: Measured
    trained: Measured
    held_out: Count
    trained_parameters: Count
    tokens_seen: Count
    tokens_of_text: Count
    steps: Count
    seconds: Measured
    stopped: str
    objective: Mapping[str, Measured] = field(default_factory=dict)
    aligned: Measured | None = None
    flops: Count | None = None


_REPORTS: TypeAdapter[AdaptationReport] = TypeAdapter(AdaptationReport)


def read_adaptation(folder: Path) -> AdaptationReport:
    """The report of an adapted teacher's folder.

    Raises:
        CheckpointError: It is damaged.
    """
    return read_saved(folder / REPORT, _REPORTS, remedy=AGAIN)


def adaptation_key(
    recipe: Recipe, adapt: Adapt, teacher: str, tokenizer: PreTrainedTokenizerFast, *, trust: bool
) -> Key:
    """Everything that decides the adapted weights; ``teacher`` is its folder or Hub id."""
    return {
        "teacher": model_identity(teacher, trust_remote_code=trust),
        "tokenizer": tokenizer_identity(tokenizer),
        "adapt": {**plain(adapt), "fraction": None},
        "text": data_key(recipe, _fraction(recipe, adapt)),
        "validation": held_out_key(recipe),
        "context": recipe.data.context,
        "task": recipe.task,
        "masked_share": recipe.data.masked_share,
    }


def adapt_model(
    recipe: Recipe,
    adapt: Adapt,
    teacher: str,
    tokenizer: PreTrainedTokenizerFast,
    *,
    name: str,
    folder: Path,
    workshop: Workshop,
) -> None:
    """Fill a folder with ``model/`` (under the student's tokenizer), ``report.json`` and ``metrics.jsonl``.

    Args:
        recipe: Its text, context and trackers.
        adapt: Its settings for this teacher.
        teacher: Folder or Hub id.
        tokenizer: The student's.
        name: The teacher's name in the recipe.
        folder: Where an interrupted adaptation finds its checkpoints again.
        workshop: Where shared results lie.

    Raises:
        ModelError: The teacher is of a kind that cannot be run on packed rows, or of another vocabulary than
            its tokenizer's.
    """
    trust = workshop.trust_remote_code
    own = load_tokenizer(teacher, trust_remote_code=trust)
    model = load_model(teacher, recipe, tokenizer=own, trust_remote_code=trust)
    check_model(model, recipe, name=teacher)
    tracker = workshop.tracker(folder, recipe=recipe, stage=f"adapt {name}")
    try:
        measured = _measurer(recipe)
        before = measured(model, own)
        original = deepcopy(model) if _is_asked_again(recipe, adapt) else None
        made = new_rows(
            model,
            own,
            tokenizer,
            adapt.init,
            seed=adapt.seed,
            text=lambda: _joined_text(recipe, adapt, tokenizer, workshop),
        )
        _give(model, made, tokenizer)
        if adapt.norms:
            thaw_norms(model)
        initialised = measured(model, tokenizer)
        tracker.note(
            f"{name}: {MEASURES[recipe.task]} {before.value:.3f} with its own vocabulary, "
            f"{initialised.value:.3f} with new rows ({adapt.init}); training them"
        )
        material = material_of(
            recipe,
            tokenizer,
            workshop,
            fraction=adapt.fraction,
            seed=adapt.seed,
            readers={ORIGINAL: own} if recipe.language_task is None else {},
        )
        for note in _notes(material):
            tracker.note(f"{name}: {note}")
        settings = adaptation_settings(adapt, material, zero=workshop.zero)
        stream = material.stream(_batches(adapt), seed=adapt.seed)
        if isinstance(material, TextMaterial) and original is not None:
            text = paired_text(
                material.parts,
                training_stores(recipe, own, workshop, fraction=_fraction(recipe, adapt)),
                tokenizer,
                own,
                most_old=positions_of(original),
            )
            step: AdaptationStep = span_step(
                model, original, text, adapt, asked_often=settings.steps > stream.steps_per_epoch
            )
            aligned = text.share_in_spans()
        else:
            step, aligned = _step(model, original, recipe), None
        reading = reading_of(recipe, material, adapt.effective_batch, steps_per_epoch=stream.steps_per_epoch)
        result = fit(
            step,
            stream,
            replace(settings, paced=_paced(step, made, adapt)),
            folder=folder,
            validation=held_out_of(material, _batches(adapt).micro),
            tracker=tracker,
            resume=workshop.resume,
            fingerprint=hash_of(dict(adaptation_key(recipe, adapt, teacher, tokenizer, trust=trust))),
        )
    finally:
        tracker.close()
    trained = measured(model, tokenizer)
    report = AdaptationReport(
        teacher=teacher,
        task=recipe.task,
        init=adapt.init,
        old_vocabulary=len(own),
        new_vocabulary=len(tokenizer),
        tokens_by_origin=made.counts,
        before=before.value,
        initialised=initialised.value,
        trained=trained.value,
        held_out=trained.size,
        trained_parameters=count_parameters(model, trainable_only=True),
        tokens_of_text=material.num_tokens,
        objective=adapt.objective or _USUAL[recipe.language_task is None],
        aligned=aligned,
        flops=training_flops(step, reading, steps=result.steps, frozen_body=True)
        if aligned is None
        else None,
        **_taken(result),
    )
    first_process_runs(lambda: _save(model, tokenizer, report, folder))


def _notes(material: Material) -> tuple[str, ...]:
    """What a user should know before the training; early stops go by nats, reports by bits."""
    bits = material.bits_of_a_nat if isinstance(material, TextMaterial) else None
    unit = () if bits is None else (f"validation: 1 nat per token is {bits:.3f} bits per byte",)
    return (*material.notes, *unit)


def _is_asked_again(recipe: Recipe, adapt: Adapt) -> bool:
    """Whether the teacher as it was says what its new rows are trained on."""
    return recipe.language_task is None or SELF_DISTILLATION in (adapt.objective or {})


def _joined_text(
    recipe: Recipe, adapt: Adapt, tokenizer: PreTrainedTokenizerFast, workshop: Workshop
) -> tuple[Integers, Integers]:
    """The beginning of the training text, or of the examples, in the new vocabulary: ids, and their ends."""
    if recipe.language_task is not None:
        return joined(training_stores(recipe, tokenizer, workshop, fraction=_fraction(recipe, adapt)))
    examples = training_examples(recipe, _fraction(recipe, adapt), seed=adapt.seed)
    texts = [text for example in examples.texts for text in example]
    rows = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return np.concatenate([np.array(row, np.int64) for row in rows]), np.cumsum([0, *map(len, rows)])


def _give(model: PreTrainedModel, made: VocabularyInit, tokenizer: PreTrainedTokenizerFast) -> None:
    """The model with the new rows, and nothing else of it trainable."""
    if model.get_output_embeddings() is None:
        replace_embedding(model, made.embedding, tokenizer=tokenizer)
        freeze_all_but_embedding(model)
    else:
        replace_vocabulary(model, made.embedding, made.head, made.head_bias, tokenizer=tokenizer)
        freeze_body(model)


def _step(model: PreTrainedModel, original: PreTrainedModel | None, recipe: Recipe) -> AdaptationStep:
    """A language model learns from the labels, a classifier what it said of the same examples before."""
    if original is None:
        return AdaptationStep(model, [Term(LABELS, LABELS)])
    move(original, current_device())
    if recipe.task == "regression":
        term = Term("logit_mse", "logit_mse", teacher=ORIGINAL, options={"centred": False})
    else:
        term = Term("forward_kl", "forward_kl", teacher=ORIGINAL)
    return AdaptationStep(model, [term], teachers={ORIGINAL: LiveTeacher(original, name=ORIGINAL)})


def _paced(step: AdaptationStep, made: VocabularyInit, adapt: Adapt) -> tuple[PacedRows, ...]:
    """The copies of old rows, in embedding, head and its bias, where they are trained at another pace."""
    if adapt.old_rows_learning_rate in (None, adapt.learning_rate):
        return ()
    model, pace = step.student, adapt.old_rows_learning_rate / adapt.learning_rate
    classifies = model.get_output_embeddings() is None
    weights = [plain_embedding(model).weight] if classifies else vocabulary_parameters(model)
    rows, known = tuple(made.copied.tolist()), {id(weight) for weight in weights}
    names = [name for name, weight in trainable_parameters(step).items() if id(weight) in known]
    return tuple(PacedRows(name, rows, pace) for name in names)


def _batches(adapt: Adapt) -> BatchSizes:
    return BatchSizes(adapt.effective_batch, adapt.micro_batch or adapt.effective_batch)


def _save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, report: AdaptationReport, folder: Path
) -> None:
    save_model(model.cpu(), tokenizer, folder / "model")
    write_json(folder / REPORT, asdict(report))


def adaptation_settings(adapt: Adapt, material: Material, *, zero: Zero) -> FitSettings:
    """The adaptation's settings as the engine takes them; ``tokens`` is rounded up to whole steps."""
    steps = max(1, math.ceil(adapt.tokens / (adapt.effective_batch * material.row_tokens)))
    return FitSettings(
        steps=steps,
        learning_rate=adapt.learning_rate,
        schedule=adapt.schedule,
        warmup=adapt.warmup,
        weight_decay=0.0,
        precision=adapt.precision,
        validate_every=adapt.validate_every,
        keep="best",
        patience=adapt.patience,
        checkpoint_every=tenth(steps),
        seed=adapt.seed,
        zero=zero,
    )


def _taken(result: FitResult) -> dict[str, Any]:
    return {
        "tokens_seen": result.tokens,
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "stopped": result.stopped,
    }


@dataclass(frozen=True, slots=True)
class _Measured:
    """How good a model is on held-out text or examples, and how much that is, in bytes or examples."""

    value: float
    size: int


def _measurer(recipe: Recipe) -> Callable[[PreTrainedModel, PreTrainedTokenizerFast], _Measured]:
    """Measures a model with its tokenizer, by the first process; what is held out is read once."""
    held = held_out_of_recipe(recipe, most_bytes=MEASURED_BYTES.get(recipe.task))

    def measured(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> _Measured:
        move(model, current_device())
        return first_process_runs(lambda: _measured(model, tokenizer, held, recipe))

    return measured


def _measured(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, held: HeldOut, recipe: Recipe
) -> _Measured:
    """Text with windows of the recipe's context, which every state of the teacher sees."""
    context = recipe.data.context
    if isinstance(held, Examples):
        result = measure_examples(model, tokenizer, held, context=context)
        metric = "pearson" if held.is_regression else "accuracy"
        return _Measured(result.score("examples", metric).value, len(held))
    if recipe.task == "clm":
        loss = measure(model, tokenizer, held, window=context)
        return _Measured(loss.bits_per_byte, loss.bytes)
    pseudo = measure_pseudo(model, tokenizer, held, window=context, tokens=None).as_result()
    size = pseudo.report["scored_bytes"]
    assert isinstance(size, int)
    return _Measured(pseudo.score("text", "pseudo_bits_per_byte").value, size)


def _fraction(recipe: Recipe, adapt: Adapt) -> float:
    return recipe.data.fraction if adapt.fraction is None else adapt.fraction

"""Give one teacher the student's vocabulary, train its new rows, and report what that cost."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast
from typing_extensions import Self

from stlm_kd.adaptation import new_rows
from stlm_kd.data.batches import BatchStream
from stlm_kd.data.tokenizers import load_tokenizer, tokenizer_identity
from stlm_kd.engine import FitResult, FitSettings, current_device, fit
from stlm_kd.engine.launched import first_process_runs, launched_processes, process_rank
from stlm_kd.eval.perplexity import measure
from stlm_kd.eval.pseudo_perplexity import measure as measure_pseudo
from stlm_kd.losses import LABELS
from stlm_kd.models.forward import check_forward
from stlm_kd.models.load import count_parameters, load_language_model, save_model
from stlm_kd.models.vocabulary import freeze_body, replace_vocabulary
from stlm_kd.recipe import Recipe, hash_of, plain
from stlm_kd.recipe.student import Adapt
from stlm_kd.run.record import write_json
from stlm_kd.run.stages import Key, model_identity
from stlm_kd.run.text import (
    held_out,
    held_out_masking,
    held_out_rows,
    text_key,
    training_masking,
    training_rows,
)
from stlm_kd.run.training import held_out_batches, tenth
from stlm_kd.run.workshop import Workshop, Zero
from stlm_kd.step import StepModule
from stlm_kd.terms import Term

MEASURED_BYTES = {"clm": 200_000, "mlm": 8_000}
"""Bytes of held-out text that the report measures, at most; a masked model needs a row for each token."""

BITS: dict[str, str] = {"clm": "bits", "mlm": "pseudo-bits"}
"""What the size of a text under a model of each task is called."""


@dataclass(frozen=True, slots=True)
class AdaptationReport:
    """What giving a teacher another vocabulary did to it. Bits per byte compare across vocabularies.

    Those of a masked language model are pseudo-bits per byte (``eval.pseudo_perplexity``).

    Attributes:
        teacher: Folder or Hub id of the teacher as it was.
        task: What it predicts, and so which bits per byte these are.
        init: The initialiser.
        old_vocabulary, new_vocabulary: Tokens of the two tokenizers.
        tokens_by_origin: How many new tokens got their row in which way.
        bits_per_byte_before: On held-out text, with the teacher's own vocabulary.
        bits_per_byte_initialised: With the new rows, untrained.
        bits_per_byte_trained: At the end.
        held_out_bytes: Of the text that these three are measured on.
        trained_parameters: Embedding and head.
        tokens_seen: Positions read in training, repeats counted.
        tokens_of_text: Positions of the training text, each once.
        steps: Optimizer steps done.
        seconds: Of training.
        stopped: Why it ended: ``done`` or ``early-stop``.
    """

    teacher: str
    task: str
    init: str
    old_vocabulary: int
    new_vocabulary: int
    tokens_by_origin: Mapping[str, int]
    bits_per_byte_before: float
    bits_per_byte_initialised: float
    bits_per_byte_trained: float
    held_out_bytes: int
    trained_parameters: int
    tokens_seen: int
    tokens_of_text: int
    steps: int
    seconds: float
    stopped: str


class AdaptationStep(StepModule):
    """Trains the new rows of a model whose frozen body runs as it will when it teaches: without dropout."""

    def train(self, mode: bool = True) -> Self:
        """As for any step, but the model stays in evaluation mode."""
        super().train(mode)
        self.student.eval()
        return self


def read_adaptation(folder: Path) -> AdaptationReport:
    """The report of an adapted teacher's folder."""
    return AdaptationReport(**json.loads((folder / "report.json").read_text(encoding="utf-8")))


def adaptation_key(
    recipe: Recipe, adapt: Adapt, teacher: str, tokenizer: PreTrainedTokenizerFast, *, trust: bool
) -> Key:
    """Everything that decides the adapted weights; ``teacher`` is its folder or Hub id."""
    return {
        "teacher": model_identity(teacher, trust_remote_code=trust),
        "tokenizer": tokenizer_identity(tokenizer),
        "adapt": {**plain(adapt), "fraction": None},
        "text": text_key(recipe.data.train, _fraction(recipe, adapt)),
        "validation": text_key(recipe.data.validation or (), 1.0),
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
    model = load_language_model(teacher, recipe.task, trust_remote_code=trust)
    check_forward(model, context=recipe.data.context, name=f"teacher {name}")
    own = load_tokenizer(teacher, trust_remote_code=trust)
    tracker = workshop.tracker(folder, backends=recipe.tracking, stage=f"adapt {name}")
    try:
        texts = held_out(recipe, most_bytes=MEASURED_BYTES[recipe.task])
        before = _measured(model, own, texts, recipe)
        made = new_rows(model, own, tokenizer, adapt.init, seed=adapt.seed)
        replace_vocabulary(model, made.embedding, made.head, made.head_bias, tokenizer=tokenizer)
        initialised = _measured(model, tokenizer, texts, recipe)
        bits = BITS[recipe.task]
        tracker.note(
            f"{name}: {before.bits_per_byte:.3f} {bits} per byte with its own vocabulary, "
            f"{initialised.bits_per_byte:.3f} with new rows ({adapt.init}); training them"
        )
        freeze_body(model)
        rows = training_rows(recipe, tokenizer, workshop, fraction=adapt.fraction)
        held = held_out_rows(recipe, tokenizer, workshop)
        micro_batch = adapt.micro_batch or adapt.effective_batch
        result = fit(
            AdaptationStep(model, [Term(LABELS, LABELS)]),
            BatchStream(
                rows,
                effective_batch=adapt.effective_batch,
                micro_batch=micro_batch,
                seed=adapt.seed,
                rank=process_rank(),
                world_size=launched_processes(),
                masking=training_masking(recipe, tokenizer, rows),
            ),
            adaptation_settings(adapt, recipe.data.context, zero=workshop.zero),
            folder=folder,
            validation=partial(held_out_batches, held, micro_batch, held_out_masking(recipe, tokenizer)),
            tracker=tracker,
            resume=workshop.resume,
            fingerprint=hash_of(dict(adaptation_key(recipe, adapt, teacher, tokenizer, trust=trust))),
        )
    finally:
        tracker.close()
    trained = _measured(model, tokenizer, texts, recipe)
    report = AdaptationReport(
        teacher=teacher,
        task=recipe.task,
        init=adapt.init,
        old_vocabulary=len(own),
        new_vocabulary=len(tokenizer),
        tokens_by_origin=made.counts,
        bits_per_byte_before=before.bits_per_byte,
        bits_per_byte_initialised=initialised.bits_per_byte,
        bits_per_byte_trained=trained.bits_per_byte,
        held_out_bytes=trained.bytes,
        trained_parameters=count_parameters(model, trainable_only=True),
        tokens_of_text=sum(part.num_tokens for part in rows),
        **_taken(result),
    )
    first_process_runs(lambda: _save(model, tokenizer, report, folder))


def _save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, report: AdaptationReport, folder: Path
) -> None:
    save_model(model.cpu(), tokenizer, folder / "model")
    write_json(folder / "report.json", asdict(report))


def adaptation_settings(adapt: Adapt, context: int, *, zero: Zero) -> FitSettings:
    """The adaptation's settings as the engine takes them; ``tokens`` is rounded up to whole steps."""
    steps = max(1, math.ceil(adapt.tokens / (adapt.effective_batch * context)))
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
    """The loss of some text, and its size in UTF-8 bytes."""

    bits_per_byte: float
    bytes: int


def _measured(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], recipe: Recipe
) -> _Measured:
    """By the first process, with windows of the recipe's context, which every state of the teacher sees."""
    model.to(current_device())  # type: ignore[arg-type]

    def measured() -> _Measured:
        context = recipe.data.context
        if recipe.task == "clm":
            loss = measure(model, tokenizer, texts, window=context)
            return _Measured(loss.bits_per_byte, loss.bytes)
        pseudo = measure_pseudo(model, tokenizer, texts, window=context, tokens=None).as_result()
        size = pseudo.report["scored_bytes"]
        assert isinstance(size, int)
        return _Measured(pseudo.score("text", "pseudo_bits_per_byte").value, size)

    return first_process_runs(measured)


def _fraction(recipe: Recipe, adapt: Adapt) -> float:
    return recipe.data.fraction if adapt.fraction is None else adapt.fraction

"""How good a teacher is before and after it gets another vocabulary, and the report of that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import Ge
from pydantic import AfterValidator, TypeAdapter
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stlm_kd.data.labelled import Examples
from stlm_kd.engine import current_device
from stlm_kd.engine.launched import first_process_runs
from stlm_kd.eval.examples import measure as measure_examples
from stlm_kd.eval.perplexity import measure
from stlm_kd.eval.pseudo_perplexity import measure as measure_pseudo
from stlm_kd.eval.results import Count, Measured
from stlm_kd.eval.running import common_window
from stlm_kd.models.placing import move
from stlm_kd.recipe import Recipe
from stlm_kd.run.material import held_out_of_recipe
from stlm_kd.run.overlap import HeldOut
from stlm_kd.run.saved import AGAIN, read_saved
from stlm_kd.run.training import REPORT

MEASURED_BYTES = {"clm": 200_000, "mlm": 8_000}
"""Bytes of held-out text that the report measures, at most; a masked model needs a row for each token."""

MEASURES: dict[str, str] = {
    "clm": "bits per byte",
    "mlm": "pseudo-bits per byte",
    "classification": "accuracy",
    "regression": "Pearson's correlation",
}
"""What says how good a teacher is before and after, by task."""


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
        best_step: Whose rows were kept: 0 where no validation was better than the one of the initialised
            rows; None where a version that did not try these adapted it.
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
    best_step: Count | None = None


_REPORTS: TypeAdapter[AdaptationReport] = TypeAdapter(AdaptationReport)


def read_adaptation(folder: Path) -> AdaptationReport:
    """The report of an adapted teacher's folder.

    Raises:
        CheckpointError: It is damaged.
    """
    return read_saved(folder / REPORT, _REPORTS, remedy=AGAIN)


@dataclass(frozen=True, slots=True)
class Quality:
    """How good a model is on held-out text or examples, and how much that is, in bytes or examples."""

    value: float
    size: int


def measurer(recipe: Recipe) -> Callable[[PreTrainedModel, PreTrainedTokenizerFast], Quality]:
    """Measures a model with its tokenizer, by the first process; what is held out is read once."""
    held = held_out_of_recipe(recipe, most_bytes=MEASURED_BYTES.get(recipe.task))

    def measured(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Quality:
        move(model, current_device())
        return first_process_runs(lambda: _measured(model, tokenizer, held, recipe))

    return measured


def _measured(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, held: HeldOut, recipe: Recipe
) -> Quality:
    """Text in the windows of the recipe's suites, which every state of the teacher sees."""
    context = recipe.data.context
    if isinstance(held, Examples):
        result = measure_examples(model, tokenizer, held, context=context)
        metric = "pearson" if held.is_regression else "accuracy"
        return Quality(result.score("examples", metric).value, len(held))
    if recipe.task == "clm":
        loss = measure(model, tokenizer, held, window=common_window("perplexity", [context]))
        return Quality(loss.bits_per_byte, loss.bytes)
    window = common_window("pseudo-perplexity", [context])
    pseudo = measure_pseudo(model, tokenizer, held, window=window, tokens=None).as_result()
    size = pseudo.report["scored_bytes"]
    assert isinstance(size, int)
    return Quality(pseudo.score("text", "pseudo_bits_per_byte").value, size)

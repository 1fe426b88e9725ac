"""How good a teacher is before and after it gets another vocabulary, and the report of that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stlm_kd.data.labelled.examples import Examples
from stlm_kd.distributed import on_main_process
from stlm_kd.eval.classification.scoring import measure as measure_examples
from stlm_kd.eval.language_modeling.perplexity import measure
from stlm_kd.eval.language_modeling.pseudo_perplexity import measure as measure_pseudo
from stlm_kd.eval.runner import common_window
from stlm_kd.models.load import to_device
from stlm_kd.pipeline.builders.data import held_out_of_recipe
from stlm_kd.pipeline.builders.overlap import HeldOut
from stlm_kd.recipe import Recipe
from stlm_kd.training import current_device

MEASURED_BYTES = {"clm": 200_000, "mlm": 8_000}
"""Bytes of held-out text that the report measures, at most; a masked model needs a row for each token."""


@dataclass(frozen=True, slots=True)
class Quality:
    """How good a model is on held-out text or examples, and how much that is, in bytes or examples."""

    value: float
    size: int


def measurer(recipe: Recipe) -> Callable[[PreTrainedModel, PreTrainedTokenizerFast], Quality]:
    """Measures a model with its tokenizer, by the first process; what is held out is read once."""
    held = held_out_of_recipe(recipe, most_bytes=MEASURED_BYTES.get(recipe.task))

    def measured(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Quality:
        to_device(model, current_device())
        return on_main_process(lambda: _measured(model, tokenizer, held, recipe))

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

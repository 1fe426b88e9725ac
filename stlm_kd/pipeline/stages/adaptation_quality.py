"""Quality of a teacher on held-out data, before and after vocabulary adaptation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stlm_kd.data.labelled.examples import Examples
from stlm_kd.distributed import on_main_process
from stlm_kd.eval import SUITES
from stlm_kd.eval.classification.scoring import measure as measure_examples
from stlm_kd.eval.language_modeling.perplexity import perplexity
from stlm_kd.eval.language_modeling.pseudo_perplexity import pseudo_perplexity
from stlm_kd.models.load import to_device
from stlm_kd.pipeline.builders.data import held_out_of_recipe
from stlm_kd.pipeline.builders.overlap import HeldOut
from stlm_kd.recipe import Recipe
from stlm_kd.training.processes import current_device

MEASURED_BYTES = {"clm": 200_000, "mlm": 8_000}
"""Maximum bytes of held-out text to score, by task; a masked model needs one row per token."""


@dataclass(frozen=True, slots=True)
class Quality:
    """A model's score on held-out data, and the size of that data in bytes or examples."""

    value: float
    size: int


def measurer(recipe: Recipe) -> Callable[[PreTrainedModel, PreTrainedTokenizerFast], Quality]:
    """A function that scores a model with its tokenizer on the main process; reads the held-out data once."""
    held = held_out_of_recipe(recipe, most_bytes=MEASURED_BYTES.get(recipe.task))

    def measured(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Quality:
        to_device(model, current_device())
        return on_main_process(lambda: _measured(model, tokenizer, held, recipe))

    return measured


def _measured(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, held: HeldOut, recipe: Recipe
) -> Quality:
    """Score with the windows of the recipe's suites, which are the same before and after adaptation."""
    context = recipe.data.context
    if isinstance(held, Examples):
        result = measure_examples(model, tokenizer, held, context=context)
        metric = "pearson" if held.is_regression else "accuracy"
        return Quality(result.score("examples", metric).value, len(held))
    if recipe.task == "clm":
        window = SUITES["perplexity"].common_window([context])
        result = perplexity(model, tokenizer, held, window=window)
        metric, size = "bits_per_byte", result.report["bytes"]
    else:
        window = SUITES["pseudo-perplexity"].common_window([context])
        result = pseudo_perplexity(model, tokenizer, held, window=window, tokens=None)
        metric, size = "pseudo_bits_per_byte", result.report["scored_bytes"]
    assert isinstance(size, int)
    return Quality(result.score("text", metric).value, size)

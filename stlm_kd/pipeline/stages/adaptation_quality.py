"""Quality of a teacher on held-out data, before and after vocabulary adaptation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stlm_kd.adaptation.step import AdaptationStep
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.data.labelled.examples import Examples
from stlm_kd.distributed import on_main_process
from stlm_kd.eval import SUITES
from stlm_kd.eval.classification.scoring import measure as measure_examples
from stlm_kd.eval.language_modeling.perplexity import perplexity
from stlm_kd.eval.language_modeling.pseudo_perplexity import pseudo_perplexity
from stlm_kd.losses import LABELS
from stlm_kd.models.forward import autocast
from stlm_kd.models.load import to_device
from stlm_kd.pipeline.builders.data import held_out_of_recipe
from stlm_kd.pipeline.builders.overlap import HeldOut
from stlm_kd.recipe import Recipe
from stlm_kd.training.config import Precision
from stlm_kd.training.processes import current_device

MEASURED_BYTES = {"clm": 200_000, "mlm": 8_000}
"""Maximum bytes of held-out text to score, by task; a masked model needs one row per token."""


MOST_INIT_POSITIONS = 65_536
"""Maximum positions on which an initialiser is measured."""


VALIDATION_SHARE = 0.1
"""Validations together cost about this share of training, or what the fewest positions cost."""

FEWEST_VALIDATION_POSITIONS = 8192
"""A validation reads at least so many positions of held-out text, if there are so many."""


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


@dataclass(frozen=True, slots=True)
class InitLoss:
    """A loss before training, in nats per label, and the positions that were read."""

    value: float
    positions: int


def init_positions(tokens: int, initialisers: int) -> int:
    """How many positions each initialiser is measured on: together at most 5 % of the adaptation's cost.

    A position costs one forward here, and in training of ``tokens`` at least two: there, the gradients of the
    inputs pass through the frozen body. Where nothing is trained, the maximum.
    """
    if not tokens:
        return MOST_INIT_POSITIONS
    return min(MOST_INIT_POSITIONS, int(0.05 * 2 * tokens / initialisers))


def validation_rows(tokens: int, validations: int, context: int) -> int:
    """How many rows of held-out text each of an adaptation's validations reads.

    A position costs one forward, and in training of ``tokens`` at least two, as for ``init_positions``.
    """
    most = int(VALIDATION_SHARE * 2 * tokens / validations)
    return math.ceil(max(most, FEWEST_VALIDATION_POSITIONS) / context)


def init_loss(
    step: AdaptationStep, batches: Iterable[AnyBatch], precision: Precision, *, most: int
) -> InitLoss:
    """The loss on the first batches, up to ``most`` positions but at least one; infinite if not finite."""
    device, total, labels, positions = current_device(), 0.0, 0, 0
    step.eval()
    for batch in batches:
        if labels and positions + batch.input_ids.numel() > most:
            break
        valid = step.count(batch)
        with torch.no_grad(), autocast(device, precision):
            sums = step(batch.to(device), dict.fromkeys(valid, 1.0)).sums
        total, labels = total + float(sums[LABELS]), labels + valid[LABELS]
        positions += batch.input_ids.numel()
    value = total / labels if labels else math.inf
    return InitLoss(value if math.isfinite(value) else math.inf, positions)


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

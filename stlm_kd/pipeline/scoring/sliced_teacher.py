"""Bits per byte of a teacher with another vocabulary and untrained rows, kept as a stage."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache, partial
from math import log
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stlm_kd.activity import doing
from stlm_kd.adaptation.initialisers import new_rows
from stlm_kd.artifacts.atomic import read_json, write_json
from stlm_kd.artifacts.results import SuiteResult
from stlm_kd.artifacts.stage_store import Json
from stlm_kd.data.tokenizers import load_tokenizer, tokenizer_identity
from stlm_kd.errors import printable
from stlm_kd.eval import SUITES
from stlm_kd.eval.language_modeling.likelihood import ratio_stderr
from stlm_kd.eval.language_modeling.perplexity import perplexity
from stlm_kd.models.load import load_language_model, to_device
from stlm_kd.models.vocabulary import copy_for_vocabulary
from stlm_kd.pipeline.builders.text import held_out
from stlm_kd.pipeline.context import RunContext
from stlm_kd.pipeline.stage_keys import held_out_key, model_identity
from stlm_kd.pipeline.stages.adaptation import install_rows
from stlm_kd.recipe import Recipe
from stlm_kd.training.processes import current_device

INIT = "subword-mean"
"""How rows are made that are not exact."""

Scorer = Callable[[PreTrainedTokenizerFast | None], SuiteResult]
"""Scores a teacher with a tokenizer; None: with its own vocabulary."""


def teacher_scorer(recipe: Recipe, name: str, model: str, context: RunContext, *, most_bytes: int) -> Scorer:
    """A function that scores a causal teacher on the first ``most_bytes`` bytes of the held-out text.

    Each score is a stage. The model is loaded once, and only if a score is not kept yet.

    Args:
        recipe: Its held-out text and context are used.
        name: The teacher's name in messages.
        model: Its folder or Hub id, before any adaptation.
        context: The run context.
        most_bytes: About how much text is read.
    """
    trust = context.trust_remote_code
    window = SUITES["perplexity"].common_window([recipe.data.context])
    documents = cache(partial(held_out, recipe, most_bytes=most_bytes))

    @cache
    def loaded() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
        whole = load_language_model(model, None, trust_remote_code=trust)
        to_device(whole, current_device())
        return whole, load_tokenizer(model, trust_remote_code=trust)

    def score(tokenizer: PreTrainedTokenizerFast | None) -> SuiteResult:
        what = f"teacher {name}, " + (
            "its own vocabulary" if tokenizer is None else f"{len(tokenizer):,} tokens"
        )

        def build(folder: Path) -> None:
            print(printable(f"scoring {what}"), file=sys.stderr, flush=True)
            with doing(f"scoring {what}"):
                whole, own = loaded()
                scored = whole if tokenizer is None else _sliced(whole, own, tokenizer)
                found = perplexity(scored, tokenizer or own, documents(), window=window)
            write_json(folder / "result.json", found.to_json())

        key: dict[str, Json] = {
            "model": model_identity(model, trust_remote_code=trust),
            "vocabulary": None if tokenizer is None else [INIT, tokenizer_identity(tokenizer)],
            "of": held_out_key(recipe),
            "bytes": most_bytes,
            "window": window,
        }
        stage = context.stages.make("eval", key, build, what=f"bits per byte of {what}")
        return SuiteResult.from_json(read_json(stage / "result.json", nan=True))

    return score


def _sliced(
    whole: PreTrainedModel, own: PreTrainedTokenizerFast, tokenizer: PreTrainedTokenizerFast
) -> PreTrainedModel:
    """A copy with the tokenizer's vocabulary; the whole model is unchanged."""
    made = new_rows(whole, own, tokenizer, INIT, seed=0)
    sliced = copy_for_vocabulary(whole)
    install_rows(sliced, made, tokenizer)
    return sliced


def bits_of(result: SuiteResult) -> tuple[float, float | None]:
    """Bits per byte, with the standard error over blocks of 1 KiB; None if there is only one."""
    return result.score("text", "bits_per_byte").value, ratio_stderr(_blocks(result))


def bits_above(result: SuiteResult, own: SuiteResult) -> tuple[float, float | None]:
    """Bits per byte of a result minus those of another, with the standard error over paired blocks."""
    pairs = [
        (bits - before, size) for (bits, size), (before, _) in zip(_blocks(result), _blocks(own), strict=True)
    ]
    difference = bits_of(result)[0] - bits_of(own)[0]
    return difference, ratio_stderr(pairs)


def _blocks(result: SuiteResult) -> list[tuple[float, int]]:
    """Bits and bytes of each block of the text, which are the same blocks for every tokenizer."""
    blocks = result.report.get("blocks")
    if not isinstance(blocks, dict):
        return []
    nats, sizes = blocks["nats"], blocks["bytes"]
    assert isinstance(nats, list) and isinstance(sizes, list)
    return [
        (value / log(2), size)
        for values, of in zip(nats, sizes, strict=True)
        for value, size in zip(values, of, strict=True)
    ]

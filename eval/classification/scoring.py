"""Score a classifier, or a model of numbers, on labelled examples."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch

from stlm_kd.artifacts.results import Json, SuiteResult
from stlm_kd.data.labelled.batches import EncodedExamples, example_evaluation_batches
from stlm_kd.data.labelled.encoding import encode_texts
from stlm_kd.data.labelled.examples import Examples
from stlm_kd.eval.classification.metrics import classification_scores, regression_scores
from stlm_kd.eval.runner import autocast, evaluating, require_finite
from stlm_kd.models.forward import inputs_of
from stlm_kd.models.positions import num_positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

LONGEST = 512
"""Tokens of an example at most, where nothing else is said and the model has positions for more."""


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    examples: Examples,
    *,
    context: int | None = None,
    batch_size: int = 64,
    precision: Literal["fp32", "bf16"] = "fp32",
    task: str = "examples",
    suite: str | None = None,
) -> SuiteResult:
    """The scores of ``eval.classification``.

    The report also holds each example's label and a hash of all texts, by which results of other models are
    known to be of the same examples.

    Args:
        model: A classifier of the examples' classes, or a model of numbers.
        tokenizer: What it reads by.
        examples: At least one.
        context: Tokens of an example at most; by default ``LONGEST``, or as many as the model has positions
            for if that is fewer.
        batch_size: Examples of one forward pass.
        precision: ``bf16`` runs the model under autocast.
        task: What the scores are called.
        suite: The suite's name; by default ``classification`` or ``regression``, as the labels are.

    Raises:
        ModelError: A logit is not finite.
    """
    logits_NC = logits_of(
        model, tokenizer, examples, context=context, batch_size=batch_size, precision=precision
    )
    ids, labels = examples.ids, examples.labels
    if examples.is_regression:
        suite = suite or "regression"
        result = regression_scores(logits_NC[:, 0], labels, task=task, ids=ids, suite=suite)
    else:
        suite = suite or "classification"
        result = classification_scores(logits_NC, labels, task=task, ids=ids, suite=suite)
    known: dict[str, Json] = {
        "labels": dict(zip(ids, labels.tolist(), strict=True)),
        "texts": hash_of_texts(examples),
    }
    return replace(result, report={**result.report, **known})


def logits_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    examples: Examples,
    *,
    context: int | None = None,
    batch_size: int = 64,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> npt.NDArray[np.float64]:
    """The model's logits of each example, (N, C), in their order; the arguments are those of ``measure``.

    Raises:
        ModelError: A logit is not finite.
    """
    encoded = encode_texts(examples.texts, tokenizer, context=longest_read(model, context))
    logits_NC = np.zeros((len(examples), int(model.config.num_labels or 1)))
    with torch.no_grad(), evaluating(model), autocast(model.device, precision):
        for batch in example_evaluation_batches(
            EncodedExamples(examples.labels, encoded), micro_batch=batch_size
        ):
            found = model(**inputs_of(batch.to(model.device), model)).logits
            require_finite(model, found)
            logits_NC[batch.example_ids.numpy()] = found.to(torch.float64).cpu().numpy()
    return logits_NC


def longest_read(model: PreTrainedModel, context: int | None) -> int:
    """Tokens of an example at most: as asked for, or ``LONGEST``, or as the model has positions for."""
    return context or min(num_positions(model.config) or LONGEST, LONGEST)


def hash_of_texts(examples: Examples) -> str:
    """SHA-256 (hex) of the ids and texts, whatever their order."""
    rows = sorted(zip(examples.ids, examples.texts, strict=True))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

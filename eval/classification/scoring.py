"""Scores a classifier or a regression model on labelled examples."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt

from stlm_kd.artifacts.results import Json, SuiteResult, text_hash
from stlm_kd.data.labelled.batches import EncodedExamples
from stlm_kd.data.labelled.encoding import encode_texts
from stlm_kd.data.labelled.examples import Examples
from stlm_kd.data.sources.sources import hash_of
from stlm_kd.eval.classification.metrics import classification_scores, regression_scores
from stlm_kd.eval.runner import Precision, example_logits
from stlm_kd.eval.suite import register_suite
from stlm_kd.lazy import np, torch
from stlm_kd.models.positions import num_positions

if TYPE_CHECKING:
    import numpy.typing as npt
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

LONGEST = 512
"""Default maximum tokens of an example, for models with more positions."""


@register_suite("classification", tasks=["classification"])
@register_suite("regression", tasks=["regression"])
def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    examples: Examples,
    task: str = "examples",
    suite: str | None = None,
    *,
    context: Annotated[int, Gt(3)] | None = None,
    batch_size: Annotated[int, Gt(0)] = 64,
    precision: Precision = "fp32",
) -> SuiteResult:
    """Accuracy, F1 and Matthews' correlation for classes, or correlations for regression.

    The report also contains each example's label and a hash of all texts, which identify the examples when
    results are compared.

    Args:
        model: A classifier of the examples' classes, or a regression model.
        tokenizer: Its tokenizer.
        examples: At least one.
        task: The task's name in the scores.
        suite: The suite's name; default: ``classification`` or ``regression``, depending on the labels.
        context: Maximum tokens of an example; default: 512, or the model's positions if fewer.
        batch_size: Examples per forward pass.
        precision: ``bf16`` runs the model under autocast.

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
    return replace(result, report={**result.report, **known}, texts={task: hashes_of(examples)})


def logits_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    examples: Examples,
    *,
    context: int | None = None,
    batch_size: int = 64,
    precision: Precision = "fp32",
) -> npt.NDArray[np.float64]:
    """The model's logits for each example, (N, C), in order; arguments and errors as for ``measure``."""
    encoded = encode_texts(examples.texts, tokenizer, context=longest_read(model, context))
    logits_NC = np.zeros((len(examples), int(model.config.num_labels or 1)))
    rows = EncodedExamples(examples.labels, encoded)
    for places, found in example_logits(model, rows, batch_size=batch_size, precision=precision):
        logits_NC[places] = found.to(torch.float64).cpu().numpy()
    return logits_NC


def longest_read(model: PreTrainedModel, context: int | None) -> int:
    """Maximum tokens of an example: ``context``, or ``LONGEST`` limited by the model's positions."""
    return context or min(num_positions(model.config) or LONGEST, LONGEST)


def hashes_of(examples: Examples) -> dict[str, str]:
    """The hash of each example's texts, by its id."""
    return {name: text_hash([*texts]) for name, texts in zip(examples.ids, examples.texts, strict=True)}


def hash_of_texts(examples: Examples) -> str:
    """SHA-256 (hex) of ids and texts, independent of their order."""
    return hash_of(sorted(zip(examples.ids, examples.texts, strict=True)))

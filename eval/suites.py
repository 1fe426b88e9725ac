"""The suites that score a model without fine-tuning it.

Implementations are imported when a suite runs, so that recipes can be validated without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt, Le

from stlm_kd.artifacts.results import SuiteResult
from stlm_kd.eval.interchange.config import HeldOutSource, PairConfig
from stlm_kd.eval.suite import SUITES

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

    from stlm_kd.data.labelled.examples import Examples
    from stlm_kd.eval.interchange.suite import AlignedTeacher

Precision = Literal["fp32", "bf16"]
Text = Literal["held-out", "wikitext"]
Source = Literal["auto", "local", "builtin"]


@SUITES.register("perplexity")
def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    /,
    *,
    on: Text = "held-out",
    window: Annotated[int, Gt(1)] | None = None,
    stride: Annotated[int, Gt(0)] | None = None,
    batch_size: Annotated[int, Gt(0)] = 16,
    precision: Precision = "fp32",
) -> SuiteResult:
    """Bits per byte and perplexity per token of a text; see ``eval.language_modeling.perplexity``.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        documents: The held-out text.
        on: The text to score: held-out, or ``wikitext``: WikiText-2's test text, from a file in
            ``STLM_KD_DATA`` or the Hub.
        window: Tokens in the model's context; default: the recipe's ``data.context``, or the smallest number
            of positions of the models given to ``eval``.
        stride: Tokens by which the window moves; default: half a window.
        batch_size: Maximum windows per forward pass.
        precision: ``bf16`` runs the model under autocast.

    Raises:
        DataError: No text to score.
        MissingResourceError: WikiText is requested and missing.
        ModelError: A masked language model, a tokenizer without a start token, or a window beyond the
            model's positions.
    """
    from stlm_kd.eval.language_modeling import wikitext
    from stlm_kd.eval.language_modeling.perplexity import measure

    documents = wikitext.articles() if on == "wikitext" else documents
    measured = measure(
        model, tokenizer, documents, window=window, stride=stride, batch_size=batch_size, precision=precision
    )
    result = measured.as_result()
    notes = ("perplexity: on WikiText-2's test text",) if on == "wikitext" else ()
    return replace(result, notes=(*notes, *result.notes))


@SUITES.register("pseudo-perplexity")
def pseudo_perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    documents: Sequence[str],
    /,
    *,
    window: Annotated[int, Gt(2)] | None = None,
    tokens: Annotated[int, Gt(0)] | None = 4096,
    seed: Annotated[int, Ge(0)] = 0,
    batch_size: Annotated[int, Gt(0)] = 64,
    precision: Precision = "fp32",
) -> SuiteResult:
    """Pseudo-perplexity and pseudo-bits per byte; see ``eval.language_modeling.pseudo_perplexity``.

    Args:
        model: A masked language model.
        tokenizer: Its tokenizer.
        documents: The held-out text.
        window: Positions per row, including start and end; default: 128, or ``data.context`` or the models'
            positions if fewer.
        tokens: Approximate number of scored tokens, in whole windows drawn from the entire text, since each
            token costs a row; null: all. Models with the same tokenizer and window share the windows.
        seed: Random seed.
        batch_size: Rows per forward pass.
        precision: ``bf16`` runs the model under autocast.

    Raises:
        DataError: No text to score.
        ModelError: A causal model, a tokenizer without mask, start or end token, or a window beyond the
            model's positions.
    """
    from stlm_kd.eval.language_modeling.pseudo_perplexity import measure

    measured = measure(
        model,
        tokenizer,
        documents,
        window=window,
        tokens=tokens,
        seed=seed,
        batch_size=batch_size,
        precision=precision,
    )
    return measured.as_result()


@SUITES.register("masked-loss")
def masked_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    documents: Sequence[str],
    /,
    *,
    share: Annotated[float, Gt(0), Le(1)] = 0.15,
    seed: Annotated[int, Ge(0)] = 0,
    window: Annotated[int, Gt(2)] | None = None,
    batch_size: Annotated[int, Gt(0)] = 16,
    precision: Precision = "fp32",
) -> SuiteResult:
    """Loss and accuracy on masked tokens of the held-out text; see ``eval.language_modeling.masked_loss``.

    Args:
        model: A masked language model.
        tokenizer: Its tokenizer.
        documents: The text.
        share: Fraction of the non-special tokens to mask, drawn uniformly. Models with the same tokenizer and
            window share the masks.
        seed: Random seed.
        window: Positions per row, including start and end; default: 128, or ``data.context`` or the models'
            positions if fewer.
        batch_size: Rows per forward pass.
        precision: ``bf16`` runs the model under autocast.

    Raises:
        DataError: No text to score.
        ModelError: A causal model, a tokenizer without mask, start or end token, or a window beyond the
            model's positions.
    """
    from stlm_kd.eval.language_modeling.masked_loss import measure

    measured = measure(
        model,
        tokenizer,
        documents,
        share=share,
        seed=seed,
        window=window,
        batch_size=batch_size,
        precision=precision,
    )
    return measured.as_result()


@SUITES.register("lm-eval")
def lm_eval(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    /,
    *,
    tasks: tuple[str, ...] = ("stlm",),
    limit: Annotated[int, Gt(0)] | None = None,
    num_fewshot: Annotated[int, Ge(0)] | None = None,
    batch_size: Annotated[int, Gt(0)] = 16,
    precision: Precision = "fp32",
    source: Source = "auto",
) -> SuiteResult:
    """lm-evaluation-harness tasks; see ``eval.harness``. Ignores the documents.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        documents: Unused: the tasks have their own text.
        tasks: Names of tasks or groups; ``stlm`` is BLiMP, HellaSwag, ARC-Easy, WinoGrande and MMLU,
            ``sample_minimal_pairs`` needs no download.
        limit: Maximum examples of each task, for a trial.
        num_fewshot: Examples in the prompt; default: each task's own (0 for those of ``stlm``).
        batch_size: Requests per forward pass.
        precision: ``bf16`` runs the model under autocast.
        source: ``builtin`` reads the Hub or its cache, ``local`` the files in ``STLM_KD_DATA``, and ``auto``
            the first of these that is available.

    Raises:
        ModelError: A masked language model.
        UsageError: A task that lm-eval does not know.
        MissingResourceError: The rows of a task are neither on the Hub, in its cache nor in local files.
    """
    from stlm_kd.eval.harness.evaluate import evaluate

    del documents
    return evaluate(
        model,
        tokenizer,
        tasks=tuple(tasks),
        limit=limit,
        num_fewshot=num_fewshot,
        batch_size=batch_size,
        precision=precision,
        source=source,
    )


@SUITES.register("interchange")
def interchange(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    held: Sequence[str] | Examples,
    teachers: Mapping[str, AlignedTeacher],
    /,
    *,
    alignment: Literal["full", "middle", "late", "first", "last"] | None = None,
    source: HeldOutSource = "other-example",
    positions: Literal["consecutive", "random"] = "consecutive",
    rows: Annotated[int, Gt(1)] = 256,
    context: Annotated[int, Gt(3)] | None = None,
    seed: Annotated[int, Ge(0)] = 0,
) -> SuiteResult:
    """Interchange intervention accuracy of a student with each teacher; see ``eval.interchange.suite``.

    Args:
        model: The student: a language model or a classifier.
        tokenizer: The tokenizer of the student and its teachers.
        held: Held-out text, or labelled examples.
        teachers: By name.
        alignment: Layers to intervene on, one at a time; default: those of the recipe's objective.
        source: Source of the swapped-in hidden states.
        positions: Contiguous or random positions.
        rows: Maximum rows of text, or examples.
        context: Tokens per row or example; default: 128, or the smallest number of positions of all models if
            fewer.
        seed: Random seed.

    Raises:
        DataError: Too little text.
        ModelError: An alignment that these models do not have.
        UsageError: More positions than a model has.
    """
    from stlm_kd.eval.interchange.suite import score_beside_teachers

    pairs = PairConfig(source, positions, rows, seed)
    return score_beside_teachers(
        model, tokenizer, held, teachers, alignment=alignment, asked=pairs, context=context
    )


def _examples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    examples: Examples,
    /,
    *,
    context: Annotated[int, Gt(3)] | None = None,
    batch_size: Annotated[int, Gt(0)] = 64,
    precision: Precision = "fp32",
) -> SuiteResult:
    """Accuracy, F1 and Matthews' correlation for classes, or correlations for regression.

    See ``eval.classification``.

    Args:
        model: A classifier of the examples' classes, or a regression model.
        tokenizer: Its tokenizer.
        examples: Labelled examples.
        context: Maximum tokens of an example; default: 512, or the model's positions if fewer.
        batch_size: Examples per forward pass.
        precision: ``bf16`` runs the model under autocast.

    Raises:
        ModelError: A logit is not finite.
    """
    from stlm_kd.eval.classification.scoring import measure

    return measure(model, tokenizer, examples, context=context, batch_size=batch_size, precision=precision)


for _task in ("classification", "regression"):
    SUITES.register(_task)(_examples)

"""The suites that score a model as it is: rows of the table of suites.

What does their work is imported where they run, so that recipes are checked without it.
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
    """Bits per byte and perplexity per token of a text; see ``eval.perplexity``.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        documents: The held-out text.
        on: Which text: the held-out one, or ``wikitext``: WikiText-2's test text, from a file below
            ``STLM_KD_DATA`` or the Hub.
        window: Tokens that the model sees at once; by default the recipe's ``data.context``, or the smallest
            number of positions of the models that ``eval`` is given.
        stride: Tokens by which the window moves; by default half a window.
        batch_size: Windows per forward pass, at most.
        precision: ``bf16`` runs the model under autocast.

    Raises:
        DataError: No text to score.
        MissingResourceError: WikiText is asked for, and not there.
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
    notes = ("perplexity: of WikiText-2's test text",) if on == "wikitext" else ()
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
    """Pseudo-perplexity and pseudo-bits per byte of the held-out text; see ``eval.pseudo_perplexity``.

    Args:
        model: A masked language model.
        tokenizer: Its tokenizer.
        documents: The text.
        window: Positions of a row, start and end included; by default 128, or ``data.context``, or as many as
            the models have, if that is fewer.
        tokens: About so many tokens are scored, in whole windows drawn from all of the text, since each
            costs a row; null: all. The windows are the same for all models of a tokenizer and a window.
        seed: Of the draw.
        batch_size: Rows per forward pass.
        precision: ``bf16`` runs the model under autocast.

    Raises:
        DataError: No text to score.
        ModelError: A causal model, a tokenizer without mask or ends, or a window beyond the model's
            positions.
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
    """Nats per masked token of the held-out text, and how many of them are found; see ``eval.masked_loss``.

    Args:
        model: A masked language model.
        tokenizer: Its tokenizer.
        documents: The text.
        share: Of the tokens that are not special, so many are masked, drawn uniformly. They are the same for
            all models of a tokenizer and a window.
        seed: Of the draw.
        window: Positions of a row, start and end included; by default 128, or ``data.context``, or as many as
            the models have, if that is fewer.
        batch_size: Rows per forward pass.
        precision: ``bf16`` runs the model under autocast.

    Raises:
        DataError: No text to score.
        ModelError: A causal model, a tokenizer without mask or ends, or a window beyond the model's
            positions.
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
    """lm-eval's tasks, run by lm-eval; see ``eval.harness``. The documents play no part.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        documents: Not used: the tasks bring their own text.
        tasks: Names of tasks or groups; ``stlm`` is BLiMP, HellaSwag, ARC-Easy, WinoGrande and MMLU,
            ``sample_minimal_pairs`` needs no download.
        limit: At most so many examples of each task, for a trial.
        num_fewshot: Examples in the prompt; by default what each task says (0 for those of ``stlm``).
        batch_size: Requests per forward pass.
        precision: ``bf16`` runs the model under autocast.
        source: ``builtin`` reads the Hub or its cache, ``local`` the files below ``STLM_KD_DATA``, and
            ``auto`` the first of these that is there.

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
    """How often a student says what its teacher says after the same intervention; see ``eval.beside``.

    Args:
        model: The student: a language model or a classifier.
        tokenizer: Its tokenizer, and its teachers'.
        held: Held-out text, or labelled examples.
        teachers: By name.
        alignment: Which layers are exchanged, one at a time; by default those of the recipe's objective.
        source: Where the other states come from.
        positions: A run of neighbours, or any.
        rows: Rows of the text, or examples, at most.
        context: Tokens of a row or example; by default 128, or as many as all models have positions for if
            that is fewer.
        seed: Of all that is drawn.

    Raises:
        DataError: Too little text.
        ModelError: An alignment that these models do not have.
        UsageError: More positions than a model has.
    """
    from stlm_kd.eval.interchange.suite import score_beside_teachers

    asked = PairConfig(source, positions, rows, seed)
    return score_beside_teachers(
        model, tokenizer, held, teachers, alignment=alignment, asked=asked, context=context
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
    """Accuracy, F1 and Matthews' correlation of classes, or correlations of numbers; see ``eval.examples``.

    Args:
        model: A classifier of the examples' classes, or a model of numbers.
        tokenizer: What it reads by.
        examples: Labelled ones.
        context: Tokens of an example at most; by default 512, or as many as the model has positions for if
            that is fewer.
        batch_size: Examples of one forward pass.
        precision: ``bf16`` runs the model under autocast.

    Raises:
        ModelError: A logit is not finite.
    """
    from stlm_kd.eval.classification.scoring import measure

    return measure(model, tokenizer, examples, context=context, batch_size=batch_size, precision=precision)


for _task in ("classification", "regression"):
    SUITES.register(_task)(_examples)

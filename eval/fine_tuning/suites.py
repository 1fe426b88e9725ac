"""The suites that score fine-tuned models: rows of the table of suites that say what is to be fine-tuned.

Their keyword-only arguments are their options in recipes, as those of any suite.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Le

from stlm_kd.eval.fine_tuning import conll2003 as conll
from stlm_kd.eval.fine_tuning import glue as benchmark
from stlm_kd.eval.fine_tuning import squad as questions
from stlm_kd.eval.fine_tuning.base import FineTuneJob, Precision, Source
from stlm_kd.eval.fine_tuning.glue import OFFICIAL, GlueName, Preset
from stlm_kd.eval.suite import SUITES

FINE_TUNED = frozenset({benchmark.SUITE, conll.SUITE, questions.SUITE})
"""The suites whose rows give ``FineTuneJob``s: language models and bodies are fine-tuned, then scored."""


@SUITES.register(benchmark.SUITE)
def glue(
    *,
    tasks: tuple[GlueName, ...] = OFFICIAL,
    seeds: Annotated[int, Gt(0)] = 3,
    preset: Preset = "study",
    fraction: Annotated[float, Gt(0), Le(1)] | None = None,
    epochs: Annotated[int, Gt(0)] | None = None,
    steps: Annotated[int, Gt(0)] | None = None,
    learning_rate: Annotated[float, Gt(0)] | None = None,
    effective_batch: Annotated[int, Gt(0)] | None = None,
    micro_batch: Annotated[int, Gt(0)] | None = None,
    context: Annotated[int, Ge(4)] | None = None,
    precision: Precision = "fp32",
    source: Source = "auto",
) -> tuple[FineTuneJob, ...]:
    """GLUE: a copy of the model with a fresh head is fine-tuned for each task and seed, and scored.

    Args:
        tasks: Of GLUE; or ``sample-acceptability``, ``sample-sentiment``: synthetic, without a download.
        seeds: How many: 1, 2, … The drawn examples, the head, their order and dropout follow them, in all
            models alike.
        preset: Whose settings: ``study`` or ``few-shot``; see ``eval.glue.settings_of``.
        fraction: The share of the training examples, of each class the same; by default the study's.
        epochs: In place of the study's.
        steps: Optimizer steps in place of epochs, for a trial.
        learning_rate: In place of the study's.
        effective_batch: Examples of an optimizer step, in place of the study's.
        micro_batch: Examples of a forward pass at most; by default those of a step.
        context: Tokens of an example at most; by default 128, or as many as the model has positions for.
        precision: ``bf16`` runs the model under autocast, in training and in scoring.
        source: ``local`` reads files below ``STLM_KD_DATA``, ``hub`` the Hub or its cache, ``auto`` either.

    Raises:
        UsageError: A task of which the preset knows no epochs, where none are given.
    """
    chosen = dict.fromkeys(tasks)
    settings = {
        task: benchmark.settings_of(
            task,
            preset,
            epochs=epochs,
            steps=steps,
            learning_rate=learning_rate,
            effective_batch=effective_batch,
            micro_batch=micro_batch,
            precision=precision,
        )
        for task in chosen
    }
    share = benchmark.fraction_of(preset) if fraction is None else fraction
    return tuple(
        FineTuneJob(benchmark.SUITE, task, seed, share, context, source, settings[task])
        for task in chosen
        for seed in range(1, seeds + 1)
    )


@SUITES.register(conll.SUITE)
def ner(
    *,
    seeds: Annotated[int, Gt(0)] = 3,
    fraction: Annotated[float, Gt(0), Le(1)] = 1.0,
    epochs: Annotated[int, Gt(0)] | None = None,
    steps: Annotated[int, Gt(0)] | None = None,
    learning_rate: Annotated[float, Gt(0)] | None = None,
    effective_batch: Annotated[int, Gt(0)] | None = None,
    micro_batch: Annotated[int, Gt(0)] | None = None,
    context: Annotated[int, Ge(4)] | None = None,
    precision: Precision = "fp32",
    source: Source = "auto",
) -> tuple[FineTuneJob, ...]:
    """CoNLL-2003: a copy of the model with a head on each word is fine-tuned for each seed, and scored.

    Args:
        seeds: How many: 1, 2, … The head, the drawn examples, their order and dropout follow them.
        fraction: The share of the training examples.
        epochs: In place of the study's.
        steps: Optimizer steps in place of epochs, for a trial.
        learning_rate: In place of the study's.
        effective_batch: Examples of an optimizer step, in place of the study's.
        micro_batch: Examples of a forward pass at most; by default those of a step.
        context: Tokens of a sentence at most; by default 256, or as many as the model has positions for.
        precision: ``bf16`` runs the model under autocast, in training and in scoring.
        source: ``local`` reads files below ``STLM_KD_DATA``, ``hub`` the Hub or its cache, ``auto`` either.
    """
    settings = conll.STUDY.with_given(
        epochs=epochs,
        steps=steps,
        learning_rate=learning_rate,
        effective_batch=effective_batch,
        micro_batch=micro_batch,
        precision=precision,
    )
    return tuple(
        FineTuneJob(conll.SUITE, conll.TASK, seed, fraction, context, source, settings)
        for seed in range(1, seeds + 1)
    )


@SUITES.register(questions.SUITE)
def squad(
    *,
    seeds: Annotated[int, Gt(0)] = 3,
    fraction: Annotated[float, Gt(0), Le(1)] = 1.0,
    epochs: Annotated[int, Gt(0)] | None = None,
    steps: Annotated[int, Gt(0)] | None = None,
    learning_rate: Annotated[float, Gt(0)] | None = None,
    effective_batch: Annotated[int, Gt(0)] | None = None,
    micro_batch: Annotated[int, Gt(0)] | None = None,
    context: Annotated[int, Ge(4)] | None = None,
    stride: Annotated[int, Gt(0)] = questions.STRIDE,
    precision: Precision = "fp32",
    source: Source = "auto",
) -> tuple[FineTuneJob, ...]:
    """SQuAD v1.1: a copy of the model that finds spans is fine-tuned for each seed, and scored.

    Args:
        seeds: How many: 1, 2, … The head, the drawn examples, their order and dropout follow them.
        fraction: The share of the training examples.
        epochs: In place of the study's.
        steps: Optimizer steps in place of epochs, for a trial.
        learning_rate: In place of the study's.
        effective_batch: Examples of an optimizer step, in place of the study's.
        micro_batch: Examples of a forward pass at most; by default those of a step.
        context: Tokens of a window at most; by default 384, or as many as the model has positions for.
        stride: Tokens of a passage that neighbouring windows share.
        precision: ``bf16`` runs the model under autocast, in training and in scoring.
        source: ``local`` reads files below ``STLM_KD_DATA``, ``hub`` the Hub or its cache, ``auto`` either.
    """
    settings = questions.STUDY.with_given(
        epochs=epochs,
        steps=steps,
        learning_rate=learning_rate,
        effective_batch=effective_batch,
        micro_batch=micro_batch,
        precision=precision,
    )
    return tuple(
        FineTuneJob(questions.SUITE, questions.TASK, seed, fraction, context, source, settings, stride)
        for seed in range(1, seeds + 1)
    )

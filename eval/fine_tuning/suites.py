"""The suites that fine-tune a model and score it.

Their keyword-only arguments are their options in recipes, as for any suite.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Le

from stlm_kd.eval.fine_tuning import conll2003 as conll
from stlm_kd.eval.fine_tuning import glue as benchmark
from stlm_kd.eval.fine_tuning import squad as questions
from stlm_kd.eval.fine_tuning.base import FineTuneJob, Precision, Source
from stlm_kd.eval.fine_tuning.conll2003_task import conll_tasks
from stlm_kd.eval.fine_tuning.entities import seqeval
from stlm_kd.eval.fine_tuning.glue import OFFICIAL, GlueName, Preset
from stlm_kd.eval.fine_tuning.glue_task import glue_tasks
from stlm_kd.eval.fine_tuning.squad_task import squad_tasks
from stlm_kd.eval.suite import LANGUAGE_MODELS, FineTuning, register_suite


@register_suite(
    benchmark.SUITE,
    tasks=LANGUAGE_MODELS,
    reads_held_out=lambda options: False,
    fine_tuning=FineTuning(glue_tasks, benchmark.average),
)
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
    """GLUE: fine-tunes a copy of the model with a new head for each task and seed, and scores it.

    Args:
        tasks: GLUE tasks; or ``sample-acceptability``, ``sample-sentiment``: synthetic, without a download.
        seeds: Number of seeds: 1, 2, … A seed determines the drawn examples, the head, the order and dropout,
            and is shared by all models.
        preset: The settings: ``study`` or ``few-shot``; see ``eval.fine_tuning.glue.settings_of``.
        fraction: Fraction of the training examples of each class; default: the study's.
        epochs: Instead of the study's.
        steps: Optimizer steps instead of epochs, for a trial.
        learning_rate: Instead of the study's.
        effective_batch: Examples per optimizer step, instead of the study's.
        micro_batch: Maximum examples per forward pass; default: those of a step.
        context: Maximum tokens of an example; default: 128, or the model's positions if fewer.
        precision: ``bf16`` runs the model under autocast, in training and in scoring.
        source: ``local`` reads files in ``STLM_KD_DATA``, ``hub`` the Hub or its cache, ``auto`` either.

    Raises:
        UsageError: The preset has no epochs for a task, and none are given.
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


@register_suite(
    conll.SUITE,
    tasks=LANGUAGE_MODELS,
    reads_held_out=lambda options: False,
    requirements=lambda options: (seqeval,),
    fine_tuning=FineTuning(conll_tasks),
)
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
    """CoNLL-2003: fine-tunes a copy of the model as a token classifier for each seed, and scores it.

    Args:
        seeds: Number of seeds: 1, 2, … A seed determines the head, the drawn examples, the order and dropout.
        fraction: Fraction of the training examples.
        epochs: Instead of the study's.
        steps: Optimizer steps instead of epochs, for a trial.
        learning_rate: Instead of the study's.
        effective_batch: Examples per optimizer step, instead of the study's.
        micro_batch: Maximum examples per forward pass; default: those of a step.
        context: Maximum tokens of a sentence; default: 256, or the model's positions if fewer.
        precision: ``bf16`` runs the model under autocast, in training and in scoring.
        source: ``local`` reads files in ``STLM_KD_DATA``, ``hub`` the Hub or its cache, ``auto`` either.
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


@register_suite(
    questions.SUITE,
    tasks=LANGUAGE_MODELS,
    reads_held_out=lambda options: False,
    fine_tuning=FineTuning(squad_tasks),
)
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
    """SQuAD v1.1: fine-tunes a copy of the model with a span head for each seed, and scores it.

    Args:
        seeds: Number of seeds: 1, 2, … A seed determines the head, the drawn examples, the order and dropout.
        fraction: Fraction of the training examples.
        epochs: Instead of the study's.
        steps: Optimizer steps instead of epochs, for a trial.
        learning_rate: Instead of the study's.
        effective_batch: Examples per optimizer step, instead of the study's.
        micro_batch: Maximum examples per forward pass; default: those of a step.
        context: Maximum tokens of a window; default: 384, or the model's positions if fewer.
        stride: Passage tokens shared by adjacent windows.
        precision: ``bf16`` runs the model under autocast, in training and in scoring.
        source: ``local`` reads files in ``STLM_KD_DATA``, ``hub`` the Hub or its cache, ``auto`` either.
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

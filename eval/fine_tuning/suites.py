"""The suites that fine-tune a model and score it.

Their keyword-only arguments and the fields of ``FineTuningOptions`` are their options in recipes.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

from annotated_types import Gt, Le

from stlm_kd.eval.fine_tuning.base import FineTuneJob, FineTuningOptions, with_fine_tuning_options
from stlm_kd.eval.fine_tuning.conll2003 import STUDY as CONLL_STUDY
from stlm_kd.eval.fine_tuning.conll2003 import TASK as CONLL_TASK
from stlm_kd.eval.fine_tuning.conll2003 import Conll2003
from stlm_kd.eval.fine_tuning.glue import OFFICIAL, Glue, GlueName, Preset, settings_of
from stlm_kd.eval.fine_tuning.squad import STRIDE, Squad
from stlm_kd.eval.fine_tuning.squad import STUDY as SQUAD_STUDY
from stlm_kd.eval.fine_tuning.squad import TASK as SQUAD_TASK
from stlm_kd.eval.suite import LANGUAGE_MODELS, register_suite

Fraction = Annotated[float, Gt(0), Le(1)]
register = partial(
    register_suite, tasks=LANGUAGE_MODELS, reads_held_out=lambda options: False, fine_tunes=True
)
"""Decorator for suites that fine-tune language models on data of their own."""


@register(Glue.suite)
@with_fine_tuning_options
def glue(
    options: FineTuningOptions,
    /,
    *,
    tasks: tuple[GlueName, ...] = OFFICIAL,
    preset: Preset = "study",
    fraction: Fraction | None = None,
) -> tuple[FineTuneJob, ...]:
    """GLUE: fine-tunes a copy of the model with a new head for each task and seed, and scores it.

    Args:
        options: Seeds, settings instead of the study's, source.
        tasks: GLUE tasks; or ``sample-acceptability``, ``sample-sentiment``: synthetic, without a download.
        preset: The settings: ``study`` or ``few-shot``; see ``eval.fine_tuning.glue.settings_of``.
        fraction: Fraction of the training examples of each class; default: the study's.

    Raises:
        UsageError: The preset has no epochs for a task, and none are given.
    """
    share = fraction or (0.1 if preset == "few-shot" else 1.0)
    has_length = options.epochs is not None or options.steps is not None
    studies = {task: settings_of(task, preset, has_length=has_length) for task in tasks}
    return tuple(
        job for task, study in studies.items() for job in options.jobs(Glue, task, study, fraction=share)
    )


@register(Conll2003.suite)
@with_fine_tuning_options
def ner(options: FineTuningOptions, /, *, fraction: Fraction = 1.0) -> tuple[FineTuneJob, ...]:
    """CoNLL-2003: fine-tunes a copy of the model as a token classifier for each seed, and scores it.

    Args:
        options: Seeds, settings instead of the study's, source.
        fraction: Fraction of the training examples.
    """
    return options.jobs(Conll2003, CONLL_TASK, CONLL_STUDY, fraction=fraction)


@register(Squad.suite)
@with_fine_tuning_options
def squad(
    options: FineTuningOptions, /, *, fraction: Fraction = 1.0, stride: Annotated[int, Gt(0)] = STRIDE
) -> tuple[FineTuneJob, ...]:
    """SQuAD v1.1: fine-tunes a copy of the model with a span head for each seed, and scores it.

    Args:
        options: Seeds, settings instead of the study's, source.
        fraction: Fraction of the training examples.
        stride: Passage tokens shared by adjacent windows.
    """
    return options.jobs(Squad, SQUAD_TASK, SQUAD_STUDY, fraction=fraction, stride=stride)

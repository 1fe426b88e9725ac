"""GLUE: its tasks, the studies' fine-tuning settings, and its scores.

Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding", 2019.
Test labels are hidden, so the development sets are scored, as in the studies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from stlm_kd.artifacts.results import Score, SuiteResult
from stlm_kd.data.labelled.examples import Examples
from stlm_kd.errors import DataError, UsageError
from stlm_kd.eval.classification.scoring import measure
from stlm_kd.eval.fine_tuning.base import Precision, Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SUITE: Final = "glue"
AVERAGE: Final = "average"

GlueName = Literal[
    "cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli",
    "sample-acceptability", "sample-sentiment",
]  # fmt: skip
Preset = Literal["study", "few-shot"]

CONTEXT: Final = 128
"""Maximum tokens of an example, in both studies."""


@dataclass(frozen=True, slots=True)
class GlueTask:
    """A task.

    Attributes:
        text: The columns of a text, or of a pair.
        labels: The class names in order; () for regression.
        metrics: GLUE's metrics for it.
        scored: The scored parts, each with its split.
        sample: The corresponding task of the synthetic text generator; None for GLUE's own tasks.
        numbers: For regression, the range of the labels.
    """

    text: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    scored: Mapping[str, str] = field(default_factory=dict)
    sample: str | None = None
    numbers: tuple[float, float] | None = None


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")

TASKS: Final[Mapping[str, GlueTask]] = {
    "cola": GlueTask(("sentence",), ("unacceptable", "acceptable"), ("matthews",)),
    "sst2": GlueTask(("sentence",), ("negative", "positive"), ("accuracy",)),
    "mrpc": GlueTask(_PAIR, ("not_equivalent", "equivalent"), ("f1", "accuracy")),
    "qqp": GlueTask(("question1", "question2"), ("not_duplicate", "duplicate"), ("f1", "accuracy")),
    "stsb": GlueTask(_PAIR, (), ("pearson", "spearman"), numbers=(0.0, 5.0)),
    "mnli": GlueTask(
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        ("accuracy",),
        {"mnli": "validation_matched", "mnli-mm": "validation_mismatched"},
    ),
    "qnli": GlueTask(("question", "sentence"), _ENTAILMENT, ("accuracy",)),
    "rte": GlueTask(_PAIR, _ENTAILMENT, ("accuracy",)),
    "wnli": GlueTask(_PAIR, ("not_entailment", "entailment"), ("accuracy",)),
    "sample-acceptability": GlueTask(
        ("sentence",), ("unacceptable", "acceptable"), ("matthews",), sample="acceptability"
    ),
    "sample-sentiment": GlueTask(
        ("sentence",), ("negative", "positive"), ("accuracy",), sample="sentiment"
    ),
}  # fmt: skip

OFFICIAL: Final[tuple[GlueName, ...]] = (
    "cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli",
)  # fmt: skip

_FEW_SHOT_EPOCHS = {
    "sst2": 50, "mrpc": 150, "cola": 30, "qnli": 30, "sample-sentiment": 50, "sample-acceptability": 30,
}  # fmt: skip
"""Starshak, "Few-Shot Causal Distillation", section 5.3; synthetic tasks as the tasks they imitate."""


def scored_parts(name: str) -> Mapping[str, str]:
    """The scored parts of a task, with their splits."""
    return TASKS[name].scored or {name: "validation"}


def check_labels(examples: Examples, task: str) -> None:
    """Refuse regression labels outside the task's range.

    Raises:
        DataError: A label is outside; the message names the first.
    """
    allowed = TASKS[task].numbers
    if allowed is None:
        return
    outside = np.flatnonzero((examples.labels < allowed[0]) | (examples.labels > allowed[1]))
    if len(outside):
        raise DataError(
            f"{len(outside)} of {len(examples)} labels are outside {allowed[0]:g} to {allowed[1]:g} (the "
            f"first: {examples.labels[outside[0]]:g}, of example {examples.ids[outside[0]]}); bring them to "
            "the scale of the task"
        )


def fraction_of(preset: Preset) -> float:
    """The fraction of the training examples that a study uses."""
    return 0.1 if preset == "few-shot" else 1.0


def settings_of(
    name: str,
    preset: Preset,
    *,
    epochs: int | None,
    steps: int | None,
    learning_rate: float | None,
    effective_batch: int | None,
    micro_batch: int | None,
    precision: Precision,
) -> Settings:
    """A study's settings for a task, with the given values replaced.

    ``study`` has 25 epochs for RTE and CoLA and 3 otherwise (Wu et al., "Causal Distillation for Language
    Models", 2022, A.3); other settings are not published and follow transformers' example ``run_glue``.
    ``few-shot`` is table 2 of Starshak's study, BertAdam included.

    Raises:
        UsageError: The study does not include the task, and neither epochs nor steps are given.
    """
    if preset == "study":
        known: int | None = 25 if name in ("rte", "cola") else 3
        own = Settings(epochs=0)
    else:
        known = _FEW_SHOT_EPOCHS.get(name)
        own = Settings(
            epochs=0, effective_batch=16, warmup=0.1, weight_decay=0.01, eps=1e-6, bias_correction=False
        )
    if epochs is None and steps is None and known is None:
        raise UsageError(
            f"glue {name}: the few-shot study has epochs for {', '.join(sorted(_FEW_SHOT_EPOCHS))} only; "
            "give epochs, or leave the task out"
        )
    return replace(own, epochs=known or 1).with_given(
        epochs=epochs,
        steps=steps,
        learning_rate=learning_rate,
        effective_batch=effective_batch,
        micro_batch=micro_batch,
        precision=precision,
    )


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    examples: Examples,
    *,
    task: str,
    part: str,
    context: int,
    precision: Precision,
) -> SuiteResult:
    """The scores of a model that was fine-tuned on a task, in GLUE's metrics.

    Args:
        model: The fine-tuned model.
        tokenizer: Its tokenizer.
        examples: Examples of the part.
        task: The task's name.
        part: The scored part of the task, which names the scores.
        context: Maximum tokens of an example.
        precision: See ``eval.classification.scoring.measure``.

    Raises:
        DataError: A logit is not finite.
    """
    found = measure(model, tokenizer, examples, context=context, precision=precision, task=part, suite=SUITE)
    scores = tuple(found.score(part, metric) for metric in TASKS[task].metrics)
    return replace(found, scores=scores)


def average(results: Sequence[SuiteResult]) -> SuiteResult:
    """The mean over tasks for one fine-tuning seed, where each task is the mean of its scores.

    As in GLUE, F1 and accuracy of MRPC and QQP, both correlations of STS-B and both parts of MNLI are
    averaged first. The standard error treats tasks as independent, and the scores of one task as fully
    correlated.
    """
    by_part: dict[str, list[Score]] = {}
    for result in results:
        for one in result.scores:
            by_part.setdefault(one.task, []).append(one)
    names = [name for name in TASKS if all(part in by_part for part in scored_parts(name))]
    tasks = [[one for part in scored_parts(name) for one in by_part[part]] for name in names]
    errors = [[one.stderr for one in scores if one.stderr is not None] for scores in tasks]
    known = all(len(found) == len(scores) for found, scores in zip(errors, tasks, strict=True))
    stderr = math.sqrt(sum(fmean(found) ** 2 for found in errors)) / len(tasks) if known else None
    value = fmean(fmean(one.value for one in scores) for scores in tasks)
    total = sum(scores[0].examples for scores in tasks)
    how = f"{AVERAGE}: the mean over {', '.join(names)}, each the mean of its metrics"
    return SuiteResult(SUITE, (Score(SUITE, AVERAGE, value, stderr, total),), notes=(how,))

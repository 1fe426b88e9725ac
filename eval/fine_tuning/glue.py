"""GLUE: its tasks, how the studies fine-tune on them, and its scores.

Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding", 2019.
Test sets hide their labels, so that the development sets are scored, as the studies do.
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
"""Tokens of an example at most, in both studies."""


@dataclass(frozen=True, slots=True)
class GlueTask:
    """A task.

    Attributes:
        text: The columns of a text, or of a pair.
        labels: The names of the classes in order; none of numbers.
        metrics: Those that GLUE scores it by.
        scored: The parts that are scored, each with the split that it is.
        sample: The task of the generator of synthetic text that it is; None of GLUE's own.
        numbers: Of a regression, the least and the largest label that there is.
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
"""Starshak, "Few-Shot Causal Distillation", section 5.3; the synthetic tasks as those they are like."""


def scored_parts(name: str) -> Mapping[str, str]:
    """The parts of a task that are scored, with their splits."""
    return TASKS[name].scored or {name: "validation"}


def check_labels(examples: Examples, task: str) -> None:
    """Refuse numbers that are no label of a regression.

    Raises:
        DataError: There are some; the message names the first.
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
    """The share of the training examples that a study trains on."""
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
    """A study's settings for a task, with what is given in place of its own.

    ``study`` has 25 epochs for RTE and CoLA and 3 otherwise (Wu et al., "Causal Distillation for Language
    Models", 2022, A.3); it does not say the rest, which is that of transformers' example ``run_glue``.
    ``few-shot`` is table 2 of Starshak's study, BertAdam included.

    Raises:
        UsageError: The study trains on no such task, and neither epochs nor steps are given.
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
        tokenizer: What it reads by.
        examples: Of the part.
        task: Its name.
        part: Which of the task's parts is scored, by whose name its scores are called.
        context: Tokens of an example at most.
        precision: As of ``eval.examples.measure``.

    Raises:
        DataError: A logit is not finite.
    """
    found = measure(model, tokenizer, examples, context=context, precision=precision, task=part, suite=SUITE)
    scores = tuple(found.score(part, metric) for metric in TASKS[task].metrics)
    return replace(found, scores=scores)


def average(results: Sequence[SuiteResult]) -> SuiteResult:
    """The mean over tasks of the fine-tunings of one seed, each task being the mean of its scores.

    As GLUE does it: F1 and accuracy of MRPC and QQP, both correlations of STS-B and both parts of MNLI are
    averaged first. The standard error takes tasks for independent, and the scores of one task for one.
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

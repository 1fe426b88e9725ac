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

from stlm_kd.artifacts.results import Score, SuiteResult
from stlm_kd.data.labelled.batches import EncodedExamples
from stlm_kd.data.labelled.encoding import encode_texts
from stlm_kd.data.labelled.examples import (
    Examples,
    LabelledSource,
    draw_fraction,
    fingerprint,
    known_examples,
)
from stlm_kd.errors import DataError, UsageError
from stlm_kd.eval.classification.scoring import measure
from stlm_kd.eval.fine_tuning.base import FINE_TUNING, FineTuneTask
from stlm_kd.eval.fine_tuning.benchmark_data import VALIDATION, Wanted
from stlm_kd.lazy import np, torch
from stlm_kd.sharing.data_sets.named import TRAIN
from stlm_kd.training.config import TrainingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from stlm_kd.artifacts.stage_store import Json

SUITE: Final = "glue"

GlueName = Literal[
    "cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli",
    "sample-acceptability", "sample-sentiment",
]  # fmt: skip
Preset = Literal["study", "few-shot"]


@dataclass(frozen=True, slots=True)
class GlueTask:
    """A task: the columns of its text or pair, its class names in order, and GLUE's metrics for it.

    ``labels`` is () for regression, where ``numbers`` is the range. ``scored`` are the scored parts, each
    with its split. ``sample`` is the task of the synthetic text generator; None for GLUE's own tasks.
    """

    text: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    scored: Mapping[str, str] = field(default_factory=dict)
    sample: str | None = None
    numbers: tuple[float, float] = (-math.inf, math.inf)


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

_FEW_SHOT = replace(
    FINE_TUNING, effective_batch=16, warmup=0.1, weight_decay=0.01, eps=1e-6, bias_correction=False
)


def scored_parts(name: str) -> Mapping[str, str]:
    """The scored parts of a task, with their splits."""
    return TASKS[name].scored or {name: VALIDATION}


def settings_of(task: str, preset: Preset, *, has_length: bool) -> TrainingConfig:
    """A study's settings for a task.

    ``study`` has 25 epochs for RTE and CoLA and 3 otherwise (Wu et al., "Causal Distillation for Language
    Models", 2022, A.3); other settings are not published and follow transformers' example ``run_glue``.
    ``few-shot`` is table 2 of Starshak's study, BertAdam included.

    Raises UsageError if the study has no epochs for the task, unless epochs or steps are given
    (``has_length``).
    """
    if preset == "study":
        return replace(FINE_TUNING, epochs=25 if task in ("rte", "cola") else 3)
    if not has_length and task not in _FEW_SHOT_EPOCHS:
        raise UsageError(
            f"glue {task}: the few-shot study has epochs for {', '.join(sorted(_FEW_SHOT_EPOCHS))} only; "
            "give epochs, or leave the task out"
        )
    return replace(_FEW_SHOT, epochs=_FEW_SHOT_EPOCHS.get(task, 1))


@dataclass(frozen=True)
class Glue(FineTuneTask[Examples]):
    """A GLUE task, or a synthetic one, as a fine-tuning task."""

    suite = SUITE
    hub = "nyu-mll/glue"
    context = 128

    @property
    def _labels(self) -> tuple[str, ...]:
        return TASKS[self.job.task].labels

    @property
    def unit(self) -> str:
        return "nats/example" if self._labels else "squared error"

    @property
    def place(self) -> str:
        return f"{SUITE} {self.job.task}"

    @property
    def parts(self) -> Mapping[str, str]:
        return scored_parts(self.job.task)

    @property
    def notes(self) -> tuple[str, ...]:
        return ("sample tasks are synthetic",) if self.found is None else self.found.notes

    @classmethod
    def wanted(cls, task: str) -> Wanted | None:
        if TASKS[task].sample is not None:
            return None
        return Wanted(SUITE, task, (cls.hub, task), (TRAIN, *scored_parts(task).values()))

    @classmethod
    def average(cls, results: Sequence[SuiteResult]) -> SuiteResult:
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
        how = f"average: the mean over {', '.join(names)}, each the mean of its metrics"
        return SuiteResult(SUITE, (Score(SUITE, "average", value, stderr, total),), notes=(how,))

    def examples_key(self) -> Json:
        parts: dict[str, Json] = {
            name: fingerprint(self._source(split)) for name, split in self.parts.items()
        }
        return [fingerprint(self._source(TRAIN)), parts, list(self._labels)]

    def _source(self, split: str) -> LabelledSource:
        task = TASKS[self.job.task]
        if self.found is None:
            return LabelledSource(sample=task.sample, split=split)
        path = self.found.file(split)
        if path is not None:
            return LabelledSource(path=path, text=task.text)
        dataset, name = self.found.hub
        return LabelledSource(hub=dataset, name=name, split=split, text=task.text)

    def load(self, split: str) -> Examples:
        source = self._source(split)
        found = known_examples((source,), (fingerprint(source),), self._labels, not self._labels)
        least, most = TASKS[self.job.task].numbers
        outside = np.flatnonzero((found.labels < least) | (found.labels > most))
        if len(outside):
            raise DataError(
                f"{len(outside)} of {len(found)} labels are outside {least:g} to {most:g} (the "
                f"first: {found.labels[outside[0]]:g}, of example {found.ids[outside[0]]}); bring them to "
                "the scale of the task"
            )
        return found

    def drawn(self) -> Examples:
        found = self.read(TRAIN)
        if self.job.fraction == 1.0:
            return found
        return draw_fraction(found, self.job.fraction, seed=self.job.seed, place=self.place)

    def model(self, name: str, tokenizer: PreTrainedTokenizerFast, *, trust: bool) -> PreTrainedModel:
        from stlm_kd.models.heads.classifiers import load_classifier

        return load_classifier(
            name,
            self._labels,
            tokenizer=tokenizer,
            trust_remote_code=trust,
            head_seed=self.job.seed,
            dtype=torch.float32,
        )

    def check_model(self, model: PreTrainedModel, *, context: int, name: str) -> None:
        from stlm_kd.models.heads.classifiers import check_classifier

        check_classifier(model, context=context, name=name)

    def encoded(
        self, tokenizer: PreTrainedTokenizerFast, *, context: int, multiple: int
    ) -> tuple[EncodedExamples, tuple[str, ...]]:
        drawn = self.drawn()
        texts = encode_texts(drawn.texts, tokenizer, context=context, multiple=multiple)
        return EncodedExamples(drawn.labels, texts), texts.notes

    def head(self, model: PreTrainedModel) -> str:
        from stlm_kd.models.heads.classifiers import head_place

        place = head_place(model)
        return "all tokens" if place == "several" else f"the {place} token"

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        data: Examples,
        *,
        part: str,
        context: int,
    ) -> SuiteResult:
        found = measure(
            model,
            tokenizer,
            data,
            context=context,
            precision=self.job.settings.precision,
            task=part,
            suite=SUITE,
        )
        scores = tuple(found.score(part, metric) for metric in TASKS[self.job.task].metrics)
        return replace(found, scores=scores)

"""The fine-tuning tasks of the suite ``glue``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from stlm_kd.artifacts.results import SuiteResult
from stlm_kd.artifacts.stage_store import Json
from stlm_kd.data.labelled.batches import EncodedExamples
from stlm_kd.data.labelled.encoding import encode_texts
from stlm_kd.data.labelled.examples import Examples, LabelledSource, draw_fraction, fingerprint, read_examples
from stlm_kd.errors import DataError
from stlm_kd.eval.fine_tuning import glue
from stlm_kd.eval.fine_tuning.base import FineTuneJob
from stlm_kd.eval.fine_tuning.benchmark_data import TRAIN, Found, Wanted, locate
from stlm_kd.eval.fine_tuning.tasks import FineTuneTask, TrainingRows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

HUB = "nyu-mll/glue"


@dataclass(frozen=True)
class GlueFineTuneTask:
    """A GLUE task.

    Attributes:
        job: The task, seed and settings.
        train: The training examples.
        scored: The scored parts, by name.
        notes: Notes on the data for readers of the scores.
    """

    job: FineTuneJob
    train: LabelledSource
    scored: Mapping[str, LabelledSource]
    notes: tuple[str, ...]

    @property
    def unit(self) -> str:
        return "nats/example" if self._labels else "squared error"

    @property
    def context(self) -> int:
        return glue.CONTEXT

    @property
    def _labels(self) -> tuple[str, ...]:
        return glue.TASKS[self.job.task].labels

    def examples_key(self) -> Json:
        parts: dict[str, Json] = {name: fingerprint(source) for name, source in self.scored.items()}
        return [fingerprint(self.train), parts, list(self._labels)]

    def check(self) -> None:
        """Read the examples and draw the fraction.

        Raises:
            DataError: A label is not among the task's, or the fraction leaves a class without examples.
            MissingResourceError: A file or data set is missing.
        """
        self._examples()
        for source in self.scored.values():
            self._read(source)

    def model(
        self, name: str, tokenizer: PreTrainedTokenizerFast, *, context: int, trust: bool
    ) -> PreTrainedModel:
        from stlm_kd.models.heads.classifiers import check_classifier, load_classifier

        model = load_classifier(
            name,
            self._labels,
            tokenizer=tokenizer,
            trust_remote_code=trust,
            head_seed=self.job.seed,
            dtype=torch.float32,
        )
        check_classifier(model, context=context, name=name)
        return model

    def training_rows(
        self, tokenizer: PreTrainedTokenizerFast, *, context: int, multiple: int
    ) -> TrainingRows:
        found = self._examples()
        texts = encode_texts(found.texts, tokenizer, context=context, multiple=multiple)
        note = f"{texts.truncated} of {len(found)} training examples are longer than {context} tokens and cut"
        return TrainingRows(EncodedExamples(found.labels, texts), (note,) if texts.truncated else ())

    def head(self, model: PreTrainedModel) -> str:
        from stlm_kd.models.heads.classifiers import head_place

        place = head_place(model)
        return "all tokens" if place == "several" else f"the {place} token"

    def scores(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, context: int
    ) -> list[SuiteResult]:
        task, precision = self.job.task, self.job.settings.precision
        return [
            glue.score(
                model,
                tokenizer,
                self._read(source),
                task=task,
                part=part,
                context=context,
                precision=precision,
            )
            for part, source in self.scored.items()
        ]

    def _examples(self) -> Examples:
        """The fraction of the training examples, drawn with the seed."""
        found, job = self._read(self.train), self.job
        if job.fraction == 1.0:
            return found
        return draw_fraction(found, job.fraction, seed=job.seed, place=f"{job.suite} {job.task}")

    def _read(self, source: LabelledSource) -> Examples:
        try:
            found = _known_examples(source, fingerprint(source), self._labels)
            glue.check_labels(found, self.job.task)
            return found
        except DataError as error:
            raise DataError(f"{self.job.suite} {self.job.task}: {error}") from error


@lru_cache(maxsize=4)
def _known_examples(source: LabelledSource, content: str, labels: tuple[str, ...]) -> Examples:
    """The examples of a source, cached by its content within a command; no labels: numbers."""
    return read_examples(source, labels=labels, regression=not labels)


def glue_tasks(jobs: Sequence[FineTuneJob]) -> list[FineTuneTask]:
    """The task of each fine-tuning job, after locating the data of all tasks.

    Raises:
        MissingResourceError: Data is missing; the message lists the tasks and the searched locations.
    """
    return [_glue_task(job, found) for job, found in _found(jobs)]


def _found(jobs: Sequence[FineTuneJob]) -> list[tuple[FineTuneJob, Found | None]]:
    """Each job with the location of its data; None for generated text."""
    wanted = {
        job.task: Wanted(
            job.suite,
            job.task,
            f"{job.suite}/{job.task}",
            (HUB, job.task),
            (TRAIN, *glue.scored_parts(job.task).values()),
        )
        for job in jobs
        if glue.TASKS[job.task].sample is None
    }
    places = locate(list(wanted.values()), jobs[0].source) if wanted else {}
    return [(job, places.get(job.task)) for job in jobs]


def _glue_task(job: FineTuneJob, found: Found | None) -> GlueFineTuneTask:
    task = glue.TASKS[job.task]
    parts = glue.scored_parts(job.task)

    def source(split: str) -> LabelledSource:
        if found is None:
            return LabelledSource(sample=task.sample, split=split)
        if found.files is not None:
            return LabelledSource(path=found.files[split], text=task.text)
        return LabelledSource(hub=found.hub[0], name=found.hub[1], split=split, text=task.text)

    notes = ("sample tasks are synthetic",) if found is None else found.notes
    return GlueFineTuneTask(job, source(TRAIN), {part: source(split) for part, split in parts.items()}, notes)

"""The fine-tuning task of the suite ``squad``: SQuAD v1.1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from stlm_kd.artifacts.results import SuiteResult
from stlm_kd.artifacts.stage_store import Json
from stlm_kd.data.labelled.question_answering import (
    Question,
    digest,
    draw_questions,
    encode_windows,
    read_questions,
)
from stlm_kd.errors import DataError
from stlm_kd.eval.fine_tuning import squad
from stlm_kd.eval.fine_tuning.base import FineTuneJob
from stlm_kd.eval.fine_tuning.benchmark_data import TRAIN, Found
from stlm_kd.eval.fine_tuning.tasks import SCORED, FineTuneTask, TrainingRows, found_splits

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class SquadFineTuneTask:
    """SQuAD v1.1.

    Attributes:
        job: The job's seed and settings.
        found: The location of the splits.
    """

    job: FineTuneJob
    found: Found

    @property
    def notes(self) -> tuple[str, ...]:
        return self.found.notes

    @property
    def unit(self) -> str:
        return "nats/end"

    @property
    def context(self) -> int:
        return squad.CONTEXT

    @property
    def _stride(self) -> int:
        assert self.job.stride is not None
        return self.job.stride

    def examples_key(self) -> Json:
        return [digest(self._read(TRAIN), in_order=True), digest(self._read(SCORED))]

    def check(self) -> None:
        """Read the questions.

        Raises:
            DataError: A question is malformed.
            MissingResourceError: A file is missing.
        """
        for split in (TRAIN, SCORED):
            self._read(split)

    def model(
        self, name: str, tokenizer: PreTrainedTokenizerFast, *, context: int, trust: bool
    ) -> PreTrainedModel:
        from stlm_kd.models.heads.tokens import SPAN, load_token_classifier

        return load_token_classifier(
            name, SPAN, tokenizer=tokenizer, trust_remote_code=trust, head_seed=self.job.seed
        )

    def training_rows(
        self, tokenizer: PreTrainedTokenizerFast, *, context: int, multiple: int
    ) -> TrainingRows:
        drawn = draw_questions(self._read(TRAIN), self.job.fraction, seed=self.job.seed)
        windows = encode_windows(drawn, tokenizer, context=context, stride=self._stride, multiple=multiple)
        return TrainingRows(windows, (f"{len(drawn)} questions in {len(windows)} windows",))

    def head(self, model: PreTrainedModel) -> str:
        return "every token"

    def scores(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, context: int
    ) -> list[SuiteResult]:
        return [
            squad.score(
                model,
                tokenizer,
                self._read(SCORED),
                context=context,
                stride=self._stride,
                precision=self.job.settings.precision,
            )
        ]

    def _read(self, split: str) -> tuple[Question, ...]:
        files: Mapping[str, str] = self.found.files or {}
        return _questions(files.get(split), self.found.hub[0], split)


@lru_cache(maxsize=2)
def _questions(path: str | None, dataset: str, split: str) -> tuple[Question, ...]:
    """The questions of a split, cached within a command."""
    try:
        if path is not None:
            return read_questions(path=path)
        return read_questions(dataset=dataset, split=split)
    except DataError as error:
        raise DataError(f"{squad.SUITE}: {error}") from error


def squad_tasks(jobs: Sequence[FineTuneJob]) -> list[FineTuneTask]:
    """The task of each fine-tuning job.

    Raises:
        MissingResourceError: The data is missing; the message lists the searched locations.
    """
    found = found_splits(squad.SUITE, squad.TASK, squad.HUB, jobs)
    return [SquadFineTuneTask(job, found) for job in jobs]

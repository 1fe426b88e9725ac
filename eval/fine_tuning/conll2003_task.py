"""The fine-tuning task of the suite ``ner``: CoNLL-2003."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from stlm_kd.artifacts.results import SuiteResult
from stlm_kd.artifacts.stage_store import Json
from stlm_kd.data.labelled.token_labels import Sentences, encode_words, read_sentences
from stlm_kd.errors import DataError
from stlm_kd.eval.fine_tuning import conll2003
from stlm_kd.eval.fine_tuning.base import FineTuneJob
from stlm_kd.eval.fine_tuning.benchmark_data import TRAIN, Found
from stlm_kd.eval.fine_tuning.entities import seqeval
from stlm_kd.eval.fine_tuning.tasks import SCORED, FineTuneTask, TrainingRows, found_splits

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class ConllFineTuneTask:
    """CoNLL-2003.

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
        return "nats/word"

    @property
    def context(self) -> int:
        return conll2003.CONTEXT

    def examples_key(self) -> Json:
        return [self._read(TRAIN).digest(in_order=True), self._read(SCORED).digest()]

    def check(self) -> None:
        """Check seqeval and the data.

        Raises:
            DataError: A tag is not among the task's, or the fraction leaves no entity.
            MissingResourceError: seqeval is not installed, or a file is missing.
        """
        seqeval()
        drawn = self._drawn()
        if not any(tag for tags in drawn.tags for tag in tags):
            raise DataError(
                f"{conll2003.SUITE}: {self.job.fraction:g} of the sentences ({len(drawn)}) leaves no "
                "entity; draw a larger fraction"
            )
        self._read(SCORED)

    def model(
        self, name: str, tokenizer: PreTrainedTokenizerFast, *, context: int, trust: bool
    ) -> PreTrainedModel:
        from stlm_kd.models.heads.tokens import load_token_classifier

        return load_token_classifier(
            name, conll2003.TAGS, tokenizer=tokenizer, trust_remote_code=trust, head_seed=self.job.seed
        )

    def training_rows(
        self, tokenizer: PreTrainedTokenizerFast, *, context: int, multiple: int
    ) -> TrainingRows:
        encoded = encode_words(self._drawn(), tokenizer, context=context, multiple=multiple)
        notes = (
            (f"{encoded.unread} words have no token within {context} positions",) if encoded.unread else ()
        )
        return TrainingRows(encoded, notes)

    def head(self, model: PreTrainedModel) -> str:
        return "each word's first token"

    def scores(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, context: int
    ) -> list[SuiteResult]:
        precision = self.job.settings.precision
        return [conll2003.score(model, tokenizer, self._read(SCORED), context=context, precision=precision)]

    def _drawn(self) -> Sentences:
        """The fraction of the training sentences, drawn with the seed."""
        return self._read(TRAIN).draw(self.job.fraction, seed=self.job.seed)

    def _read(self, split: str) -> Sentences:
        files: Mapping[str, str] = self.found.files or {}
        return _sentences(files.get(split), self.found.hub[0], split)


@lru_cache(maxsize=2)
def _sentences(path: str | None, dataset: str, split: str) -> Sentences:
    """The sentences of a split, cached within a command."""
    try:
        if path is not None:
            return read_sentences(conll2003.TAGS, path=path)
        return read_sentences(conll2003.TAGS, dataset=dataset, split=split)
    except DataError as error:
        raise DataError(f"{conll2003.SUITE}: {error}") from error


def conll_tasks(jobs: Sequence[FineTuneJob]) -> list[FineTuneTask]:
    """The task of each fine-tuning job.

    Raises:
        MissingResourceError: The data is missing; the message lists the searched locations.
    """
    found = found_splits(conll2003.SUITE, conll2003.TASK, conll2003.HUB, jobs)
    return [ConllFineTuneTask(job, found) for job in jobs]

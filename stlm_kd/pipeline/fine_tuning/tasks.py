"""What the fine-tunings of a suite have to do with: examples to train on, a head, parts that are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stlm_kd.artifacts.results import SuiteResult
from stlm_kd.artifacts.stage_store import Json
from stlm_kd.data.labelled.batches import Tokenised
from stlm_kd.eval.fine_tuning.base import FineTuneJob
from stlm_kd.eval.fine_tuning.benchmark_data import TRAIN, Found, Wanted, locate
from stlm_kd.pipeline.builders.data import BatchSizes, Stream, example_stream

SCORED = "validation"
"""The split that suites of a single task score."""


class Reading(Protocol):
    """The examples that one fine-tuning trains on."""

    @property
    def num_rows(self) -> int:
        """Each once."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of them."""

    def stream(self, sizes: BatchSizes, *, seed: int) -> Stream:
        """The training batches of this process."""


@dataclass(frozen=True, slots=True)
class TokenisedReading:
    """Examples that are tokenised already."""

    encoded: Tokenised
    notes: tuple[str, ...]

    @property
    def num_rows(self) -> int:
        return len(self.encoded)

    def stream(self, sizes: BatchSizes, *, seed: int) -> Stream:
        return example_stream(self.encoded, sizes, seed=seed)


class FineTuneTask(Protocol):
    """One fine-tuning, as whoever trains and scores it sees it."""

    @property
    def job(self) -> FineTuneJob:
        """Which, and how."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the scores must know of the data."""

    @property
    def unit(self) -> str:
        """Of the loss on labels."""

    @property
    def context(self) -> int:
        """Tokens of an example at most, where the tuning does not say and the model has so many positions."""

    def examples_key(self) -> Json:
        """What identifies the examples that are trained on and scored."""

    def check(self) -> None:
        """Read the training examples and draw the share, so that a fault shows before anything is trained."""

    def model(
        self, name: str, tokenizer: PreTrainedTokenizerFast, *, context: int, trust: bool
    ) -> PreTrainedModel:
        """The model with a fresh head of the tuning's seed, in evaluation mode."""

    def training_data(self, tokenizer: PreTrainedTokenizerFast, *, context: int) -> Reading:
        """The examples to train on."""

    def head(self, model: PreTrainedModel) -> str:
        """What the head reads, in words."""

    def scores(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, context: int
    ) -> list[SuiteResult]:
        """One result for each part that is scored."""


def found_splits(suite: str, task: str, hub: str, jobs: Sequence[FineTuneJob]) -> Found:
    """Where the two splits of a suite's only task are.

    Raises:
        MissingResourceError: The data is not there; the message says where it may lie.
    """
    return locate([Wanted(suite, task, task, (hub, None), (TRAIN, SCORED))], jobs[0].source)[task]

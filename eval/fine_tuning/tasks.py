"""The interface of fine-tuning tasks: training examples, model with head, scored parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from stlm_kd.artifacts.results import SuiteResult
from stlm_kd.artifacts.stage_store import Json
from stlm_kd.data.labelled.batches import Tokenised
from stlm_kd.eval.fine_tuning.base import FineTuneJob
from stlm_kd.eval.fine_tuning.benchmark_data import TRAIN, Found, Wanted, locate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SCORED = "validation"
"""The split that suites of a single task score."""


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """The tokenised examples that one fine-tuning trains on, and notes on them for the user."""

    encoded: Tokenised
    notes: tuple[str, ...]


class FineTuneTask(Protocol):
    """One fine-tuning: its data, model and scores."""

    @property
    def job(self) -> FineTuneJob:
        """The task, seed and settings."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the data for readers of the scores."""

    @property
    def unit(self) -> str:
        """The unit of the training loss."""

    @property
    def context(self) -> int:
        """The default maximum tokens per example, if the model has as many positions."""

    def examples_key(self) -> Json:
        """A key that identifies the training and scored examples."""

    def check(self) -> None:
        """Read the examples and draw the fraction, to find faults before training."""

    def model(
        self, name: str, tokenizer: PreTrainedTokenizerFast, *, context: int, trust: bool
    ) -> PreTrainedModel:
        """Load the model with a new head initialised with the job's seed, in evaluation mode."""

    def training_rows(
        self, tokenizer: PreTrainedTokenizerFast, *, context: int, multiple: int
    ) -> TrainingRows:
        """The training rows; those of a batch are padded to a multiple of so many positions."""

    def head(self, model: PreTrainedModel) -> str:
        """The inputs of the head, in words."""

    def scores(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, context: int
    ) -> list[SuiteResult]:
        """Score the fine-tuned model; one result per scored part."""


def found_splits(suite: str, task: str, hub: str, jobs: Sequence[FineTuneJob]) -> Found:
    """Locate the two splits of a suite with a single task.

    Raises:
        MissingResourceError: The data is missing; the message lists the searched locations.
    """
    return locate([Wanted(suite, task, task, (hub, None), (TRAIN, SCORED))], jobs[0].source)[task]

"""What the fine-tuning suites share: their options, their jobs, and the task that a job works on.

Such a suite returns ``FineTuneJob``s instead of scores. The caller fine-tunes a copy of the model for each,
with the common training loop, and the job's task scores it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Generic, TypeVar, get_type_hints

from annotated_types import Ge, Gt

from stlm_kd.artifacts.results import SuiteResult
from stlm_kd.data.sources.sources import hash_of
from stlm_kd.errors import DataError, UsageError
from stlm_kd.eval.fine_tuning.benchmark_data import VALIDATION, Found, Source, Wanted, locate
from stlm_kd.eval.pins import SuiteData, data_of, require_named
from stlm_kd.training.config import Precision, TrainingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from stlm_kd.artifacts.stage_store import Json
    from stlm_kd.data.labelled.batches import Tokenised

Data = TypeVar("Data")

FINE_TUNING: Final = TrainingConfig(
    learning_rate=2e-5, schedule="linear", warmup=0.0, weight_decay=0.0, betas=(0.9, 0.999)
)
"""The settings that the studies share."""

_REPORTED: Final = (
    "epochs", "steps", "learning_rate", "effective_batch", "micro_batch", "warmup", "weight_decay", "eps",
    "bias_correction", "precision",
)  # fmt: skip
"""The settings that differ between studies or are options, for keys and reports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuningOptions:
    """The options of every fine-tuning suite.

    Attributes:
        seeds: Number of seeds: 1, 2, … A seed determines the drawn examples, the head, the order and dropout,
            and is shared by all models.
        epochs: Instead of the study's.
        steps: Optimizer steps instead of epochs, for a trial.
        learning_rate: Instead of the study's.
        effective_batch: Examples per optimizer step, instead of the study's.
        micro_batch: Maximum examples per forward pass; default: those of a step.
        context: Maximum tokens of an example; default: the study's, or the model's positions if fewer.
        precision: ``bf16`` runs the model under autocast, in training and in scoring.
        source: ``local`` reads files in ``STLM_KD_DATA``, ``hub`` the Hub or its cache, ``auto`` either.
        hub: The data set at another revision, such as ``nyu-mll/glue@main``; then only the Hub is read.
    """

    seeds: Annotated[int, Gt(0)] = 3
    epochs: Annotated[int, Gt(0)] | None = None
    steps: Annotated[int, Gt(0)] | None = None
    learning_rate: Annotated[float, Gt(0)] | None = None
    effective_batch: Annotated[int, Gt(0)] | None = None
    micro_batch: Annotated[int, Gt(0)] | None = None
    context: Annotated[int, Ge(4)] | None = None
    precision: Precision = "fp32"
    source: Source = "auto"
    hub: str | None = None

    def jobs(
        self,
        benchmark: type[FineTuneTask[Any]],
        task: str,
        study: TrainingConfig,
        *,
        fraction: float,
        stride: int | None = None,
    ) -> tuple[FineTuneJob, ...]:
        """One job for each seed, with the study's settings unless an option replaces them.

        Raises:
            UsageError: ``hub`` names another data set than the suite's, or ``source`` is ``local``.
        """
        require_named({benchmark.hub}, self.hub, suite=benchmark.suite)
        if self.hub is not None and self.source == "local":
            raise UsageError(f"{benchmark.suite}: hub with source: local; leave one of them out")
        settings = replace(
            study,
            epochs=self.epochs or study.epochs,
            steps=self.steps,
            learning_rate=self.learning_rate or study.learning_rate,
            effective_batch=self.effective_batch or study.effective_batch,
            micro_batch=self.micro_batch,
            precision=self.precision,
        )
        return tuple(
            FineTuneJob(
                benchmark, task, seed, fraction, self.context, self.source, settings, stride, self.hub
            )
            for seed in range(1, self.seeds + 1)
        )


def with_fine_tuning_options(
    suite: Callable[..., tuple[FineTuneJob, ...]],
) -> Callable[..., tuple[FineTuneJob, ...]]:
    """Give a suite, whose first argument they are, ``FineTuningOptions``' fields as keyword arguments."""
    hints = get_type_hints(FineTuningOptions, include_extras=True)

    @wraps(suite)
    def expanded(**options: Any) -> tuple[FineTuneJob, ...]:
        shared = {name: options.pop(name) for name in hints.keys() & options.keys()}
        return suite(FineTuningOptions(**shared), **options)

    own = [one for one in signature(suite).parameters.values() if one.kind is Parameter.KEYWORD_ONLY]
    shared = [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name])
        for field in fields(FineTuningOptions)
    ]
    expanded.__signature__ = Signature([*own, *shared])  # type: ignore[attr-defined]  # read by inspect
    return expanded


@dataclass(frozen=True, slots=True)
class FineTuneJob:
    """One fine-tuning: the task of a suite, and how to train for it.

    ``benchmark`` is the class of the suite's tasks. ``seed`` is that of the new head, the drawn examples,
    their order and dropout. ``fraction`` of the training examples are drawn; for text classification, of each
    class. ``context`` is the maximum tokens of an example; None: the suite's default, or the model's
    positions if fewer. ``stride`` tokens are shared by adjacent windows, for suites that read long texts in
    windows. ``dataset`` is the suite's data set at a revision; None: at the default one.
    """

    benchmark: type[FineTuneTask[Any]]
    task: str
    seed: int
    fraction: float
    context: int | None
    source: Source
    settings: TrainingConfig
    stride: int | None = None
    dataset: str | None = None

    @property
    def wanted(self) -> Wanted | None:
        """The data that its task requires; None if its examples are generated."""
        wanted = self.benchmark.wanted(self.task)
        if wanted is None or self.dataset is None:
            return wanted
        return replace(wanted, hub=(self.dataset, wanted.hub[1]))

    @property
    def suite(self) -> str:
        return self.benchmark.suite

    def reported_settings(self) -> dict[str, Any]:
        """The settings that depend on study and options, for keys and reports."""
        return {name: getattr(self.settings, name) for name in _REPORTED}


@dataclass(frozen=True)
class FineTuneTask(ABC, Generic[Data]):
    """The task of a fine-tuning job, one class for each benchmark; ``found`` is None for generated data."""

    job: FineTuneJob
    found: Found | None

    suite: ClassVar[str]
    hub: ClassVar[str]
    """The data set on the Hub."""
    context: ClassVar[int]
    """The default maximum tokens per example, if the model has as many positions."""

    @property
    @abstractmethod
    def unit(self) -> str:
        """The unit of the training loss."""

    @property
    def place(self) -> str:
        """The task's name in messages."""
        return self.suite

    @property
    def parts(self) -> Mapping[str, str]:
        """The scored parts, with their splits."""
        return {self.job.task: VALIDATION}

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the data for readers of the scores."""
        return self.found.notes if self.found else ()

    @classmethod
    def wanted(cls, task: str) -> Wanted | None:
        """The data that a task requires; None if its examples are generated."""
        return Wanted(cls.suite, task, (cls.hub, None))

    @classmethod
    def average(cls, results: Sequence[SuiteResult]) -> SuiteResult | None:
        """The average over several tasks of one seed; None if the suite has none."""

    @abstractmethod
    def examples_key(self) -> Json:
        """A key that identifies the training and scored examples."""

    def data(self) -> SuiteData:
        """The data that it reads, located but not read; errors as ``stlm_kd.eval.pins.data_of``."""
        wanted = self.job.wanted
        if self.found is None or wanted is None:
            return SuiteData(local=hash_of([self.examples_key()]))
        files = [Path(file) for file in (self.found.files or {}).values()]
        return data_of(wanted.hub[0], files, is_whole=not self.found.notes)

    def check(self) -> None:
        """Read and draw the examples, to find faults before training; errors as ``read`` and ``drawn``."""
        self.drawn()
        for split in self.parts.values():
            self.read(split)

    @abstractmethod
    def model(self, name: str, tokenizer: PreTrainedTokenizerFast, *, trust: bool) -> PreTrainedModel:
        """Load the model with a new head initialised with the job's seed, in evaluation mode."""

    def check_model(self, model: PreTrainedModel, *, context: int, name: str) -> None:
        """Check a model of ``model`` on rows of ``context`` tokens; ModelError, with ``name``, on a fault."""

    @abstractmethod
    def encoded(
        self, tokenizer: PreTrainedTokenizerFast, *, context: int, multiple: int
    ) -> tuple[Tokenised, tuple[str, ...]]:
        """The drawn training examples, rows padded to a multiple of ``multiple``, and notes on them."""

    @abstractmethod
    def head(self, model: PreTrainedModel) -> str:
        """The inputs of the head, in words."""

    def scores(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, context: int
    ) -> list[SuiteResult]:
        """Score the fine-tuned model; one result per scored part."""
        return [
            self.score(model, tokenizer, self.read(split), part=part, context=context)
            for part, split in self.parts.items()
        ]

    @abstractmethod
    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        data: Data,
        *,
        part: str,
        context: int,
    ) -> SuiteResult:
        """Score the model on one part, which names the scores; DataError if a logit is not finite."""

    @abstractmethod
    def drawn(self) -> Data:
        """The fraction of the training examples, drawn with the seed; DataError if it leaves too little."""

    def read(self, split: str) -> Data:
        """The examples of a split; DataError, naming the task, or MissingResourceError."""
        try:
            return self.load(split)
        except DataError as error:
            raise DataError(f"{self.place}: {error}") from error

    @abstractmethod
    def load(self, split: str) -> Data:
        """The examples of a split, cached within a command."""


def tasks_of(jobs: Sequence[FineTuneJob]) -> list[FineTuneTask[Any]]:
    """The task of each job, after locating all data; a MissingResourceError lists all that is missing."""
    benchmark = jobs[0].benchmark
    wanted = {job.task: one for job in jobs if (one := job.wanted) is not None}
    found = locate([*wanted.values()], jobs[0].source) if wanted else {}
    return [benchmark(job, found.get(job.task)) for job in jobs]

"""What trainings and adaptations report of themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import Ge
from pydantic import AfterValidator, TypeAdapter

from stlm_kd.artifacts.json_io import AGAIN, read_saved
from stlm_kd.artifacts.results import Count, Measured

MEASURES: dict[str, str] = {
    "clm": "bits per byte",
    "mlm": "pseudo-bits per byte",
    "classification": "accuracy",
    "regression": "Pearson's correlation",
}
"""What says how good a teacher is before and after, by task."""


def _measured_task(task: str) -> str:
    if task not in MEASURES:
        raise ValueError(f"expected one of {', '.join(MEASURES)}")
    return task


@dataclass(frozen=True, slots=True)
class AdaptationReport:
    """What giving a teacher another vocabulary did to it.

    Attributes:
        teacher: Folder or Hub id of the teacher as it was.
        task: What it predicts, and so how it is measured: by ``MEASURES``, on held-out text or examples. Bits
            per byte compare across vocabularies.
        init: The initialiser.
        old_vocabulary, new_vocabulary: Tokens of the two tokenizers.
        tokens_by_origin: How many new tokens got their row in which way.
        before: With the teacher's own vocabulary.
        initialised: With the new rows, untrained.
        trained: At the end.
        held_out: Bytes, or examples, that these three are measured on.
        trained_parameters: Embedding and head; a classifier's embedding; norms where these are trained too.
        tokens_seen: Positions read in training, repeats counted.
        tokens_of_text: Positions of the training text, each once.
        steps: Optimizer steps done.
        seconds: Of training.
        stopped: Why it ended: ``done`` or ``early-stop``.
        objective: What it was trained on, by weight; {} where a version that had one alone adapted it.
        aligned: Of self-distillation, the share of predicted tokens that are in a span which both tokenizers
            share, on a sample of the rows; None without it.
        flops: What it computed (``run.compute``); None where that was not counted, as of self-distillation.
        best_step: Whose rows were kept: 0 where no validation was better than the one of the initialised
            rows; None where a version that did not try these adapted it.
    """

    teacher: str
    task: Annotated[str, AfterValidator(_measured_task)]
    init: str
    old_vocabulary: Count
    new_vocabulary: Annotated[Count, Ge(1)]
    tokens_by_origin: Mapping[str, Count]
    before: Measured
    initialised: Measured
    trained: Measured
    held_out: Count
    trained_parameters: Count
    tokens_seen: Count
    tokens_of_text: Count
    steps: Count
    seconds: Measured
    stopped: str
    objective: Mapping[str, Measured] = field(default_factory=dict)
    aligned: Measured | None = None
    flops: Count | None = None
    best_step: Count | None = None


_ADAPTATIONS: TypeAdapter[AdaptationReport] = TypeAdapter(AdaptationReport)


def read_adaptation(folder: Path) -> AdaptationReport:
    """The report of an adapted teacher's folder.

    Raises:
        CheckpointError: It is damaged.
    """
    return read_saved(folder / REPORT, _ADAPTATIONS, remedy=AGAIN)


REPORT = "report.json"
"""In the folder of a training, or of an adaptation: what it took."""


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What training a model took.

    Attributes:
        parameters: Of the model, shared ones once.
        steps: Optimizer steps done.
        tokens_seen: Positions read, repeats counted.
        tokens_of_text: Positions of the training text, each once.
        best_step: Whose weights were kept; None for the last.
        best_loss: Held-out loss there, nats per token of the student's vocabulary.
        seconds: Of training.
        stopped: Why it ended.
        flops: What it computed (``run.compute``); None where that was not counted.
    """

    parameters: Count
    steps: Count
    tokens_seen: Count
    tokens_of_text: Count
    best_step: Count | None
    best_loss: Measured | None
    seconds: Measured
    stopped: str
    flops: Count | None = None


_TRAININGS: TypeAdapter[TrainingReport] = TypeAdapter(TrainingReport)


def read_report(folder: Path) -> TrainingReport:
    """The report of a finished training.

    Raises:
        CheckpointError: It is damaged.
    """
    return read_saved(folder / REPORT, _TRAININGS, remedy=AGAIN)

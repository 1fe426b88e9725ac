"""Reports of trainings and adaptations."""

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
"""The quality metric of a teacher before and after adaptation, by task."""


def _measured_task(task: str) -> str:
    if task not in MEASURES:
        raise ValueError(f"expected one of {', '.join(MEASURES)}")
    return task


@dataclass(frozen=True, slots=True)
class AdaptationReport:
    """The report of a vocabulary adaptation.

    Attributes:
        teacher: Folder or Hub id of the original teacher.
        task: The teacher's task, which determines the metric in ``MEASURES`` on held-out text or examples.
            Bits per byte are comparable across vocabularies.
        init: The initialiser.
        old_vocabulary, new_vocabulary: Vocabulary sizes of the two tokenizers.
        tokens_by_origin: Number of new tokens by origin of their row.
        before: Metric with the teacher's own vocabulary.
        initialised: Metric with the new rows, before training.
        trained: Metric after training.
        held_out: Bytes or examples that the three metrics are measured on.
        trained_parameters: Trained parameters: embedding and head, or a classifier's embedding; and norms if
            these are trained.
        tokens_seen: Training positions, repeats counted.
        tokens_of_text: Positions of the training text, each counted once.
        steps: Completed optimizer steps.
        seconds: Training time.
        stopped: Why the training ended: ``done`` or ``early-stop``.
        objective: Training objectives with weights; {} from versions with a single objective.
        aligned: For self-distillation, the share of predicted tokens in spans that both tokenizers share, on
            a sample of the rows; otherwise None.
        flops: Training FLOPs (``pipeline.builders.flops``); None if not counted, as for self-distillation.
        best_step: The step of the kept rows; 0 for the initialised rows; None from versions that did not
            validate these.
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
    """Read the report of an adaptation.

    Raises:
        CheckpointError: The report is damaged.
    """
    return read_saved(folder / REPORT, _ADAPTATIONS, remedy=AGAIN)


REPORT = "report.json"
"""The report's file name in the folder of a training or adaptation."""


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """The report of a training.

    Attributes:
        parameters: Parameters of the model, shared ones counted once.
        steps: Completed optimizer steps.
        tokens_seen: Training positions, repeats counted.
        tokens_of_text: Positions of the training text, each counted once.
        best_step: The step of the kept weights; None for the last.
        best_loss: Held-out loss at that step, nats per token of the student's vocabulary.
        seconds: Training time.
        stopped: Why the training ended.
        flops: Training FLOPs (``pipeline.builders.flops``); None if not counted.
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
    """Read the report of a finished training.

    Raises:
        CheckpointError: The report is damaged.
    """
    return read_saved(folder / REPORT, _TRAININGS, remedy=AGAIN)

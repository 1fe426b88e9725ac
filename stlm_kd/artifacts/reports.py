"""Reports of trainings and adaptations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import Ge
from pydantic import AfterValidator, TypeAdapter

from stlm_kd.artifacts.integrity import refuse_changed
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
    """The report of a vocabulary adaptation; ``old_vocabulary`` and ``new_vocabulary`` are sizes.

    Attributes:
        task: Determines the metric in ``MEASURES``; bits per byte are comparable across vocabularies.
        tokens_by_origin: Number of new tokens by origin of their row.
        before: Metric with the teacher's own vocabulary.
        initialised: Metric with the new rows, before training.
        held_out: Bytes or examples that the three metrics are measured on.
        tokens_seen: Training positions, repeats counted; in ``tokens_of_text`` each once.
        stopped: Why the training ended: ``done`` or ``early-stop``.
        objective: Training objectives with weights; {} from versions with a single objective.
        aligned: For self-distillation, the share of predicted tokens in spans that both tokenizers share, on
            a sample of the rows; otherwise None.
        flops: Training FLOPs (``pipeline.builders.flops``); None if not counted, as for self-distillation.
        best_step: The step of the kept rows; 0 for the initialised rows; None from versions that did not
            validate these.
        init_losses: With ``init: auto``, the held-out loss in nats per label of each initialiser's rows
            before training, of which ``init`` is the lowest.
        init_positions: The positions that each of these was measured on.
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
    init_losses: Mapping[str, Measured] = field(default_factory=dict)
    init_positions: Count | None = None


def init_words(chosen: str, losses: Mapping[str, float], positions: int | None) -> str:
    """What ``init: auto`` chose, and from what."""
    found = ", ".join(f"{name} {losses[name]:.3f}" for name in sorted(losses, key=losses.__getitem__))
    return f"auto: {chosen}; nats per label on {positions or 0:,} held-out positions: {found}"


_ADAPTATIONS: TypeAdapter[AdaptationReport] = TypeAdapter(AdaptationReport)


def read_adaptation(folder: Path) -> AdaptationReport:
    """Read the report of an adaptation."""
    refuse_changed(folder / REPORT)
    return read_saved(folder / REPORT, _ADAPTATIONS, remedy=AGAIN)


REPORT = "report.json"  # the report's file name in the folder of a training or adaptation


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """The report of a training.

    Attributes:
        tokens_seen: Training positions, repeats counted; in ``tokens_of_text`` each once.
        best_step: The step of the kept weights; None for the last.
        best_loss: Held-out loss at that step, nats per token of the student's vocabulary.
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
    """Read the report of a finished training."""
    refuse_changed(folder / REPORT)
    return read_saved(folder / REPORT, _TRAININGS, remedy=AGAIN)

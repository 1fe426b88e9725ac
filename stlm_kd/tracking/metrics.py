"""Metrics of a training run, and the trackers that receive them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """A logged optimizer step.

    Attributes:
        step: Completed optimizer steps, counted from 1.
        loss: The weighted sum of the losses, over all micro-batches and processes.
        losses: Each term by name, unweighted, per valid token (``labels`` in nats).
        grad_norm: Global gradient norm before clipping.
        tokens: Non-padding positions seen since step 1, over all processes.
        tokens_per_second: Non-padding positions per second of training since the last logged step.
        seconds: Time since step 1, without the time between interruption and resumption.
        seconds_left: Estimated time until the last step.
        measures: Additional metrics of this step, as ``group/name``.
    """

    step: int
    steps: int
    loss: float
    losses: Mapping[str, float]
    learning_rate: float
    grad_norm: float
    tokens: int
    tokens_per_second: float
    seconds: float
    seconds_left: float
    measures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ValidationMetrics:
    """One pass over the validation data after ``step`` optimizer steps: each term per valid token."""

    step: int
    steps: int
    losses: Mapping[str, float]
    is_best: bool


class Tracker:
    """Receives the progress and metrics of a training run; by default, drops them."""

    title: str = "training"
    """The stage, in all processes, for messages about what they do."""

    def stage(self, name: str) -> None:
        """Start a stage ("adapt bert", "student seed 1")."""

    def rewind(self, step: int) -> None:
        """Resume the stage after ``step`` steps (0: from the beginning) and discard later entries."""

    def step(self, metrics: StepMetrics) -> None:
        """Record an optimizer step."""

    def validation(self, metrics: ValidationMetrics) -> None:
        """Record a validation."""

    def note(self, message: str) -> None:
        """Record a note for the reader."""

    def close(self) -> None:
        """Close the tracker."""


class Trackers(Tracker):
    """Several trackers as one; empty on all but the main process."""

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self.trackers = tuple(trackers)

    def stage(self, name: str) -> None:
        self.title = name
        for tracker in self.trackers:
            tracker.stage(name)

    def rewind(self, step: int) -> None:
        for tracker in self.trackers:
            tracker.rewind(step)

    def step(self, metrics: StepMetrics) -> None:
        for tracker in self.trackers:
            tracker.step(metrics)

    def validation(self, metrics: ValidationMetrics) -> None:
        for tracker in self.trackers:
            tracker.validation(metrics)

    def note(self, message: str) -> None:
        for tracker in self.trackers:
            tracker.note(message)

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.close()


UNITS: dict[str, str] = {
    "clm": "nats/tok",
    "mlm": "nats/tok",
    "classification": "nats/example",
    "regression": "squared error",
}
"""The unit of the loss on labels, by task."""

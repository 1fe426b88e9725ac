"""What one line of a training run says, and who may listen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """One optimizer step that is logged.

    Attributes:
        step: Optimizer steps done, counted from 1.
        steps: Optimizer steps in all.
        loss: The weighted sum that was minimised at this step, over all micro-batches and processes.
        losses: Each term by name, unweighted, per valid token (``labels`` in nats).
        learning_rate: That of this step.
        grad_norm: Euclidean norm of all gradients before clipping.
        tokens: Positions without padding seen since step 1, over all processes.
        tokens_per_second: Positions without padding per second of training since the last logged step.
        seconds: Since step 1, without the time between an interruption and its resumption.
        seconds_left: Until the last step, at the pace so far.
        measures: What was measured at this step beside the terms, as ``group/name``.
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


class Tracker(Protocol):
    """Listens to a training run."""

    def stage(self, name: str) -> None:
        """What follows belongs to this stage ("adapt bert", "student seed 1")."""

    def rewind(self, step: int) -> None:
        """The stage goes on after ``step`` steps (0: from its beginning): forget what was said later."""

    def step(self, metrics: StepMetrics) -> None:
        """One optimizer step was done."""

    def validation(self, metrics: ValidationMetrics) -> None:
        """The validation data was scored."""

    def note(self, message: str) -> None:
        """Something that a reader should know."""

    def close(self) -> None:
        """Nothing follows."""


class Trackers:
    """Several trackers as one; an empty one says nothing, as on every process but the first."""

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self.trackers = tuple(trackers)

    def stage(self, name: str) -> None:
        """Pass it on."""
        for tracker in self.trackers:
            tracker.stage(name)

    def rewind(self, step: int) -> None:
        """Pass it on."""
        for tracker in self.trackers:
            tracker.rewind(step)

    def step(self, metrics: StepMetrics) -> None:
        """Pass it on."""
        for tracker in self.trackers:
            tracker.step(metrics)

    def validation(self, metrics: ValidationMetrics) -> None:
        """Pass it on."""
        for tracker in self.trackers:
            tracker.validation(metrics)

    def note(self, message: str) -> None:
        """Pass it on."""
        for tracker in self.trackers:
            tracker.note(message)

    def close(self) -> None:
        """Close all."""
        for tracker in self.trackers:
            tracker.close()


UNITS: dict[str, str] = {
    "clm": "nats/tok",
    "mlm": "nats/tok",
    "classification": "nats/example",
    "regression": "squared error",
}
"""The unit of the loss on labels, by task."""

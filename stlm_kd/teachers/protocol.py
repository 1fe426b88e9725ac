"""What every teacher is: an answer to a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.models.outputs import ModelOutputs, OutputSpec
from stlm_kd.teachers.targets import Distribution


@dataclass(frozen=True, slots=True)
class TeacherOutput:
    """What a teacher says of a batch.

    Attributes:
        distribution: Over the outcomes at each token; None where it was not needed.
        observed: States and maps, and what its distribution was made from.
    """

    distribution: Distribution | None
    observed: ModelOutputs


class Teacher(Protocol):
    """Answers a batch. It hangs outside the engine: nothing of it is trained, wrapped or saved."""

    def __call__(self, batch: AnyBatch, needs: OutputSpec) -> TeacherOutput:
        """What is needed of the batch, (B, T, …) each; the head's input stands for a distribution."""
        ...

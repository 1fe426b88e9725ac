"""The protocol of teachers and their output on a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.models.outputs import ModelOutputs, OutputSpec
from stlm_kd.teachers.targets import Distribution


@dataclass(frozen=True, slots=True)
class TeacherOutput:
    """A teacher's outputs on a batch.

    ``distribution`` is that of each token, None if not requested; ``observed`` are hidden states, attention
    maps, and the logits or head inputs behind the distribution.
    """

    distribution: Distribution | None
    observed: ModelOutputs


class Teacher(Protocol):
    """Computes outputs on a batch. Lives outside the engine: it is never trained, wrapped or saved."""

    def __call__(self, batch: AnyBatch, needs: OutputSpec) -> TeacherOutput:
        """The requested outputs, (B, T, …) each; requesting the head's input yields a distribution."""
        ...

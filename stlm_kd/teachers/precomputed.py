"""A teacher whose outputs on one data set are computed once, before the training."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stlm_kd.activity import doing
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.models.outputs import ModelOutputs, OutputSpec
from stlm_kd.teachers.live import LiveTeacher
from stlm_kd.teachers.protocol import TeacherOutput


class PrecomputedTeacher:
    """Precomputes the teacher's outputs for one data set, in the calling precision, and keeps them in memory.

    For data that is read many times and fits in memory. All rows are computed at the start and in data order,
    so outputs depend neither on the training step nor on a resume. Each of the ``rows`` is in exactly one
    batch, and ``example_ids`` are below their number; ``needs`` are all outputs that will be requested.
    """

    def __init__(
        self, teacher: LiveTeacher, batches: Iterable[AnyBatch], *, rows: int, needs: OutputSpec
    ) -> None:
        self._teacher = teacher
        self.num_rows = rows
        kept: ModelOutputs | None = None
        with doing("precomputing a teacher's outputs", unit="row", total=rows) as progress:
            for batch in batches:
                found = teacher(batch, needs).observed
                if kept is None:
                    kept = found.each(lambda part: part.new_empty(rows, *part.shape[1:]))
                for target, part in zip(_parts(kept), _parts(found), strict=True):
                    target[batch.example_ids] = part
                progress.advance(len(batch.example_ids))
        assert kept is not None
        self._known = kept

    @staticmethod
    def row_bytes(teacher: LiveTeacher, batch: AnyBatch, needs: OutputSpec) -> int:
        """Memory of one row's outputs in bytes, measured on one batch."""
        return _bytes(teacher(batch, needs).observed) // len(batch.example_ids)

    @property
    def model(self) -> PreTrainedModel:
        """The model that was run."""
        return self._teacher.model

    @property
    def num_bytes(self) -> int:
        """Memory of all stored outputs in bytes."""
        return _bytes(self._known)

    def whole_head(self) -> AbstractContextManager[None]:
        """As ``LiveTeacher.whole_head``."""
        return self._teacher.whole_head()

    @torch.no_grad()
    def __call__(self, batch: AnyBatch, needs: OutputSpec) -> TeacherOutput:
        device = batch.input_ids.device
        known = self._known.each(lambda part: part[batch.example_ids.to(part.device)].to(device))
        return self._teacher.output(known)


def _parts(observed: ModelOutputs) -> list[Tensor]:
    single = [part for part in (observed.head_input, observed.logits) if part is not None]
    return [*single, *observed.states.values(), *observed.maps.values()]


def _bytes(observed: ModelOutputs) -> int:
    return sum(part.numel() * part.element_size() for part in _parts(observed))

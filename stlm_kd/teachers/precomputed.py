"""A teacher whose outputs on one data set are computed once, before the training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import islice

import torch
from torch import Tensor, distributed
from transformers import PreTrainedModel

from stlm_kd.activity import doing
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.distributed import are_together, launched_processes, process_rank, wait_for_all
from stlm_kd.models.outputs import ModelOutputs, OutputSpec
from stlm_kd.teachers.live import LiveTeacher
from stlm_kd.teachers.protocol import TeacherOutput


class PrecomputedTeacher:
    """Precomputes the teacher's outputs for one data set, in the calling precision, and keeps them in memory.

    For data that is read many times and fits in memory. All rows are computed at the start and in data order,
    so outputs depend neither on the training step nor on a resume. Each of the ``rows`` is in exactly one
    batch, and ``example_ids`` are below their number; ``needs`` are all outputs that will be requested. The
    batches are moved to the ``device``, if one is given, and the outputs stay there.

    Several processes get the same batches and divide them, each whole, so that the outputs are those of one
    process bit for bit; then all have all outputs. Each runs the teacher equally often.
    """

    def __init__(
        self,
        teacher: LiveTeacher,
        batches: Iterable[AnyBatch],
        *,
        rows: int,
        needs: OutputSpec,
        device: torch.device | None = None,
    ) -> None:
        self._teacher = teacher
        self.num_rows = rows
        rank, size = (process_rank(), launched_processes()) if are_together() else (0, 1)
        kept: ModelOutputs | None = None
        with doing("precomputing a teacher's outputs", unit="row", total=-(-rows // size)) as progress:
            for batch, is_own in _divided(batches, rank, size):
                found = teacher(batch if device is None else batch.to(device), needs).observed
                if kept is None:
                    kept = found.each(lambda part: part.new_zeros(rows, *part.shape[1:]))
                if is_own:
                    for target, part in zip(_parts(kept), _parts(found), strict=True):
                        target[batch.example_ids] = part
                progress.advance(len(batch.example_ids))
        assert kept is not None
        if size > 1:
            _gather(kept)
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


def _divided(batches: Iterable[AnyBatch], rank: int, size: int) -> Iterator[tuple[AnyBatch, bool]]:
    """Every ``size``-th batch, and whether it is this process's; as many in all processes.

    In the last round those without a batch of their own get another one's.
    """
    left = iter(batches)
    while together := [*islice(left, size)]:
        yield (together[rank], True) if rank < len(together) else (together[0], False)


def _gather(observed: ModelOutputs) -> None:
    """Sum the bytes over all processes, in place: each row is 0 in all but one."""
    wait_for_all()
    for part in _parts(observed):
        distributed.all_reduce(part.view(-1).view(torch.uint8))


def _parts(observed: ModelOutputs) -> list[Tensor]:
    single = [part for part in (observed.head_input, observed.logits) if part is not None]
    return [*single, *observed.states.values(), *observed.maps.values()]


def _bytes(observed: ModelOutputs) -> int:
    return sum(part.numel() * part.element_size() for part in _parts(observed))

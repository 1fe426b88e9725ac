"""Teachers: frozen models that answer a batch with a distribution, hidden states and attention maps.

Shapes: B rows, T positions, D the teacher's width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stlm_kd.data.examples import AnyBatch
from stlm_kd.distributions import Dense, Distribution, Logits
from stlm_kd.interventions import Plan
from stlm_kd.interventions.passes import Rerun
from stlm_kd.models.forward import head_of, inputs_of
from stlm_kd.models.observing import Needs, Observed, observe
from stlm_kd.models.placing import move


@dataclass(frozen=True, slots=True)
class TeacherOutput:
    """What a teacher says of a batch.

    Attributes:
        distribution: Over the outcomes at each token; None where it was not needed.
        observed: States and maps, and what its distribution was made from.
    """

    distribution: Distribution | None
    observed: Observed


class Teacher(Protocol):
    """Answers a batch. It hangs outside the engine: nothing of it is trained, wrapped or saved."""

    def __call__(self, batch: AnyBatch, needs: Needs) -> TeacherOutput:
        """What is needed of the batch, (B, T, …) each; the head's input stands for a distribution."""
        ...


class LiveTeacher:
    """Runs the model on every batch, no deeper than what is needed.

    Args:
        model: A language model, or a classifier.
        vocabulary: The size of a language model's tokenizer, beyond which its head is padding.
        name: By which examples hold what its own tokenizer reads.
        offload: Whether its weights are on the device of a batch only while it is asked, but for those of
            embedding and head, which project what it said; between they are where they are now.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: int | None = None,
        *,
        name: str = "",
        offload: bool = False,
    ) -> None:
        self.model: PreTrainedModel = model.eval().requires_grad_(False)
        self.vocabulary = vocabulary
        self.name = name
        self.offload = offload
        stays = {id(weight) for layer in _outer(model) for weight in layer.parameters()}
        self._resting = [(weight, weight.data) for weight in model.parameters() if id(weight) not in stays]

    @torch.no_grad()
    def __call__(self, batch: AnyBatch, needs: Needs) -> TeacherOutput:
        """See ``Teacher``."""
        with self._on(batch.input_ids.device):
            return self.output(observe(self.model, inputs_of(batch, self.model, reader=self.name), needs))

    @contextmanager
    def _on(self, device: torch.device) -> Iterator[None]:
        """While it is entered, the whole model is on the device."""
        if not self.offload:
            if self.model.device != device:
                move(self.model, device)
            yield
            return
        for layer in _outer(self.model):
            layer.to(device)
        for buffer in self.model.buffers():
            buffer.data = buffer.data.to(device)
        try:
            for weight, resting in self._resting:
                weight.data = _moved(resting, device)
            yield
        finally:
            for weight, resting in self._resting:  # nothing is copied back: they never change
                weight.data = resting

    def part(self, plan: Plan, layers: tuple[int, ...]) -> Rerun:
        """Its part in an intervention on these of its layers."""
        return Rerun(self.model, layers, plan, reader=self.name)

    @torch.no_grad()
    def after(self, batch: AnyBatch, base: TeacherOutput, part: Rerun, needs: Needs) -> TeacherOutput:
        """What it says of a batch after an intervention.

        Args:
            batch: The base.
            base: What it said of it, with what its part needs.
            part: Its own, as ``part`` made it.
            needs: What to read.
        """
        with self._on(batch.input_ids.device):
            return self.output(part.after(batch, base.observed, needs))

    def output(self, observed: Observed) -> TeacherOutput:
        """What was observed of the model, with its head."""
        if observed.head_input is not None:
            assert self.vocabulary is not None
            dense = Dense(observed.head_input, head_of(self.model), self.vocabulary)
            return TeacherOutput(dense, observed)
        return TeacherOutput(None if observed.logits is None else Logits(observed.logits), observed)


def _outer(model: PreTrainedModel) -> list[nn.Module]:
    """Embedding and head."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    return [layer for layer in layers if layer is not None]


def _moved(weight: Tensor, device: torch.device) -> Tensor:
    return weight.to(device, non_blocking=True)


class RememberingTeacher:
    """Knows its answers for one data set by heart: each row was run once, before the training.

    For data that is read many times and fits in memory. All rows are run at the start and in their own order,
    so that an answer does not depend on when it is asked, nor on a resume.

    Args:
        teacher: Asked here, in the precision that surrounds this call.
        batches: At least one; each row of the data in exactly one of them.
        rows: How many rows there are; ``example_ids`` are below it.
        needs: All that will ever be asked for.
    """

    def __init__(self, teacher: LiveTeacher, batches: Iterable[AnyBatch], *, rows: int, needs: Needs) -> None:
        self._teacher = teacher
        self.num_rows = rows
        kept: Observed | None = None
        for batch in batches:
            found = teacher(batch, needs).observed
            if kept is None:
                kept = _each(found, lambda part: part.new_empty(rows, *part.shape[1:]))
            for target, part in zip(_parts(kept), _parts(found), strict=True):
                target[batch.example_ids] = part
        assert kept is not None
        self._known = kept

    @staticmethod
    def row_bytes(teacher: LiveTeacher, batch: AnyBatch, needs: Needs) -> int:
        """What one row's answer takes in memory, after asking for a batch."""
        return _bytes(teacher(batch, needs).observed) // len(batch.example_ids)

    @property
    def model(self) -> PreTrainedModel:
        """What was run."""
        return self._teacher.model

    @property
    def num_bytes(self) -> int:
        """What all it knows takes in memory."""
        return _bytes(self._known)

    @torch.no_grad()
    def __call__(self, batch: AnyBatch, needs: Needs) -> TeacherOutput:
        """See ``Teacher``; all that is known is given."""
        device = batch.input_ids.device
        known = _each(self._known, lambda part: part[batch.example_ids.to(part.device)].to(device))
        return self._teacher.output(known)


def _each(observed: Observed, change: Callable[[Tensor], Tensor]) -> Observed:
    """The same with every tensor changed."""
    return Observed(
        head_input=None if observed.head_input is None else change(observed.head_input),
        logits=None if observed.logits is None else change(observed.logits),
        states={site: change(state) for site, state in observed.states.items()},
        maps={layer: change(maps) for layer, maps in observed.maps.items()},
    )


def _parts(observed: Observed) -> list[Tensor]:
    single = [part for part in (observed.head_input, observed.logits) if part is not None]
    return [*single, *observed.states.values(), *observed.maps.values()]


def _bytes(observed: Observed) -> int:
    return sum(part.numel() * part.element_size() for part in _parts(observed))

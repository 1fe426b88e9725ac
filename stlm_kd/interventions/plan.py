"""What is exchanged in one micro-batch: at which places of which layers, and by what.

Shapes: B rows, T positions, P places, D width of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from stlm_kd.data.batch import Batch
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.interventions.spec import Intervention


@dataclass(frozen=True, slots=True)
class Positions:
    """P positions of a batch: ``rows`` and ``positions``, (P,) int64 each; no place comes twice."""

    rows: Tensor
    positions: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device) -> Positions:
        """The same places on a device."""
        return Positions(
            self.rows.to(device, non_blocking=True), self.positions.to(device, non_blocking=True)
        )


@dataclass(frozen=True, slots=True)
class OwnStates:
    """States of the base batch itself, of other rows: no further run is needed."""

    places: Positions

    def to(self, device: torch.device) -> OwnStates:
        """The same on a device."""
        return OwnStates(self.places.to(device))


@dataclass(frozen=True, slots=True)
class OtherStates:
    """States of another batch, which has to be run."""

    batch: AnyBatch
    places: Positions

    def to(self, device: torch.device) -> OtherStates:
        """The same on a device."""
        return OtherStates(self.batch.to(device), self.places.to(device))


@dataclass(frozen=True, slots=True)
class Noise:
    """h ← share · h + (1 - share) · y with random y, without a source.

    Attributes:
        shares: (P,), in [0, 1].
        map: What a teacher's later layers of one alignment get: the same y, or y and what the block adds to
            the base there.
        noise: y is drawn for each place; with the mean and deviation that the batch has at this layer; or it
            is a token's embedding.
        draw: Standard normal numbers, (P, D), for a width; the same ones whenever it is the same.
        tokens: Ids, (P,).
    """

    shares: Tensor
    map: Literal["same", "residual"]
    noise: Literal["normal", "matched", "token-embedding"]
    draw: Callable[[int], Tensor]
    tokens: Tensor

    def to(self, device: torch.device) -> Noise:
        """The same on a device, on which the numbers arrive once they are drawn."""
        return replace(
            self,
            shares=self.shares.to(device, non_blocking=True),
            tokens=self.tokens.to(device, non_blocking=True),
            draw=lambda width: self.draw(width).to(device, non_blocking=True),
        )


@dataclass(frozen=True, slots=True)
class Tokens:
    """No state is exchanged; other tokens are read: ids, (P,)."""

    ids: Tensor

    def to(self, device: torch.device) -> Tokens:
        """The same on a device."""
        return Tokens(self.ids.to(device, non_blocking=True))


@dataclass(frozen=True, slots=True)
class Joined:
    """States of several kinds of source: the places of one part after the other."""

    parts: tuple[OwnStates | OtherStates, ...]

    def to(self, device: torch.device) -> Joined:
        """The same on a device."""
        return Joined(tuple(part.to(device) for part in self.parts))


Source = OwnStates | OtherStates | Joined | Noise | Tokens


def parts_of(source: OwnStates | OtherStates | Joined) -> tuple[OwnStates | OtherStates, ...]:
    """What a source of states is made of."""
    return source.parts if isinstance(source, Joined) else (source,)


@dataclass(frozen=True, slots=True)
class Plan:
    """An intervention on one micro-batch, the same for the student and all teachers.

    The i-th place gets what is at the i-th place of the source.

    Attributes:
        student_layer: Whose state is overwritten in the student.
        teacher_layers: By teacher, those that are in it; ascending.
        source_site: The source's state that is copied: the output of the layer, or its input.
        base: Where.
        source: By what.
        touched: What may change: in a causal model a document's positions from the first place on, else all;
            (B, T) bool, or (B,) of examples.
        exact_dropout: Whether the student's passes share no dropout.
    """

    student_layer: int
    teacher_layers: Mapping[str, tuple[int, ...]]
    source_site: Literal["block-output", "block-input"]
    base: Positions
    source: Source
    touched: Tensor
    exact_dropout: bool = False

    def layers(self, teacher: str | None) -> tuple[int, ...]:
        """The layers that are overwritten in a teacher, or (None) in the student; ascending."""
        return (self.student_layer,) if teacher is None else self.teacher_layers[teacher]

    def to(self, device: torch.device) -> Plan:
        """The same plan on a device."""
        return replace(
            self,
            base=self.base.to(device),
            source=self.source.to(device),
            touched=self.touched.to(device, non_blocking=True),
        )


def plan_of(
    intervention: Intervention,
    student_layer: int,
    base: Positions,
    source: Source,
    batch: AnyBatch,
    *,
    causal: bool,
) -> Plan:
    """The plan for places that are chosen; all of it on the CPU.

    Args:
        intervention: Whose layers are overwritten.
        student_layer: One of them.
        base: Places of the batch that are attended.
        source: As many places.
        batch: The base.
        causal: Whether earlier positions do not see later ones.
    """
    return Plan(
        student_layer=student_layer,
        teacher_layers={name: layers[student_layer] for name, layers in intervention.layers.items()},
        source_site=intervention.source_site,
        base=base,
        source=source,
        touched=_touched(base, batch, causal=causal),
        exact_dropout=intervention.exact_dropout,
    )


def _touched(base: Positions, batch: AnyBatch, *, causal: bool) -> Tensor:
    if not isinstance(batch, Batch):
        return torch.ones(len(batch.example_ids), dtype=torch.bool)
    if not causal:
        return torch.ones(batch.input_ids.shape, dtype=torch.bool)
    begun_BT = torch.zeros(batch.input_ids.shape, dtype=torch.int64)
    documents_BT = batch.document_ids
    begun_BT[base.rows, base.positions] = documents_BT[base.rows, base.positions]
    return begun_BT.cummax(dim=1).values.eq(documents_BT) & (documents_BT > 0)

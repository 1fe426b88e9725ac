"""The intervention on one micro-batch: positions, layers and sources.

Shapes: B rows, T positions, P exchanged positions, D width of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import Self

from stlm_kd.data.batch import Batch
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class Movable:
    """A dataclass whose tensors move to a device together."""

    __slots__ = ()

    def to(self, device: torch.device) -> Self:
        """The same on a device, without waiting for the copies."""
        own: Any = self
        moved: Self = replace(
            own, **{one.name: _moved(getattr(own, one.name), device) for one in fields(own)}
        )
        return moved


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, tuple):
        return tuple(_moved(each, device) for each in value)
    return value.to(device) if hasattr(value, "to") else value


@dataclass(frozen=True, slots=True)
class Positions(Movable):
    """P distinct positions of a batch: ``rows`` and ``positions``, (P,) int64 each."""

    rows: Tensor
    positions: Tensor

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class OwnStates(Movable):
    """Hidden states of other rows of the base batch: no further forward pass is needed."""

    places: Positions


@dataclass(frozen=True, slots=True)
class OtherStates(Movable):
    """Hidden states of another batch, which needs a forward pass."""

    batch: AnyBatch
    places: Positions


@dataclass(frozen=True, slots=True)
class Noise(Movable):
    """h ← share · h + (1 - share) · y with random y, without a source.

    ``shares``, (P,), are in [0, 1]. y is standard normal; normal with the batch's mean and deviation at this
    layer; or the embedding of ``tokens`` (P,). ``draw`` takes a width D to standard normal numbers, (P, D),
    always the same. ``map``: further teacher layers aligned with the same student layer get the same y, or y
    plus the block's residual on the base.
    """

    shares: Tensor
    map: Literal["same", "residual"]
    noise: Literal["normal", "matched", "token-embedding"]
    draw: Callable[[int], Tensor]
    tokens: Tensor

    def to(self, device: torch.device) -> Noise:
        """The same on a device; the noise is moved when it is drawn."""
        moved = Movable.to(self, device)
        return replace(moved, draw=lambda width: self.draw(width).to(device, non_blocking=True))


@dataclass(frozen=True, slots=True)
class Tokens(Movable):
    """Replaces input tokens instead of hidden states: ids, (P,)."""

    ids: Tensor


@dataclass(frozen=True, slots=True)
class Joined(Movable):
    """Concatenation of several sources of hidden states."""

    parts: tuple[OwnStates | OtherStates, ...]


Source = OwnStates | OtherStates | Joined | Noise | Tokens


def parts_of(source: OwnStates | OtherStates | Joined) -> tuple[OwnStates | OtherStates, ...]:
    """The parts of a source of hidden states."""
    return source.parts if isinstance(source, Joined) else (source,)


@dataclass(frozen=True, slots=True)
class Plan(Movable):
    """An intervention on one micro-batch, the same for the student and all teachers.

    The i-th ``base`` position receives the i-th value of ``source``, in the layers named, which ascend.
    ``source_site``: the source's output of that layer is copied, or its input. ``touched`` are the positions
    that may change: in a causal model those of a document from its first exchanged position on, otherwise
    all; (B, T) bool, or (B,) for examples. ``exact_dropout``: the student's passes draw dropout
    independently.
    """

    student_layer: int
    teacher_layers: Mapping[str, tuple[int, ...]]
    source_site: Literal["block-output", "block-input"]
    base: Positions
    source: Source
    touched: Tensor
    exact_dropout: bool = False

    def layers(self, teacher: str | None) -> tuple[int, ...]:
        """The overwritten layers of a teacher, or of the student (None); ascending."""
        return (self.student_layer,) if teacher is None else self.teacher_layers[teacher]


def affected(base: Positions, batch: AnyBatch, *, causal: bool) -> Tensor:
    """``Plan.touched`` of the base positions of a batch on the CPU."""
    if not isinstance(batch, Batch):
        return torch.ones(len(batch.example_ids), dtype=torch.bool)
    if not causal:
        return torch.ones(batch.input_ids.shape, dtype=torch.bool)
    begun_BT = torch.zeros(batch.input_ids.shape, dtype=torch.int64)
    documents_BT = batch.document_ids
    begun_BT[base.rows, base.positions] = documents_BT[base.rows, base.positions]
    return begun_BT.cummax(dim=1).values.eq(documents_BT) & (documents_BT > 0)

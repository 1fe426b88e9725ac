"""Rows of token ids: a micro-batch as tensors, and the flat arrays behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from stlm_kd.data.dealing import sources_within
from stlm_kd.lazy import np, torch

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor


if TYPE_CHECKING:
    from stlm_kd.data.labelled.batches import AnyBatch

Integers: TypeAlias = "npt.NDArray[np.int64]"

B = TypeVar("B", bound="AnyBatch")

IGNORED = -100
"""The label of a position without a prediction target."""


@dataclass(frozen=True, slots=True, eq=False)
class Sources:
    """For each row of a micro-batch, the row of the same optimizer step that is its intervention source.

    ``rows``, (B,): index of a row of the micro-batch; from B on, of ``outside``, the source rows that are in
    other micro-batches (None without any); ``NO_SOURCE`` where the step has no other row.
    """

    rows: Integers
    outside: AnyBatch | None


@dataclass(frozen=True, slots=True)
class Batch:
    """B rows of T positions; a row may hold several documents.

    Attributes:
        input_ids: Token ids, (B, T) int64. Padding positions hold any valid id.
        attention_mask: (B, T) bool, False on padding.
        labels: (B, T) int64, the target of *this* position, or ``IGNORED``: the next token of the same
            document for causal models (already shifted, nothing shifts later), the original token for
            masked ones.
        document_ids: (B, T) int64, the number of the position's document within its row, counted from 1;
            0 on padding. No position attends to another document.
        position_ids: (B, T) int64, counted from 0 at each document's first position of the row.
        example_ids: (B,) int64, the row's number in its data set: stable over epochs, shuffles and ranks.
        sources: Intervention sources, where a step's rows are paired; stays on the CPU.
        origin: The same batch on the CPU, if it was moved from there.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    document_ids: Tensor
    position_ids: Tensor
    example_ids: Tensor
    sources: Sources | None = field(default=None, repr=False, compare=False)
    origin: Batch | None = field(default=None, init=False, repr=False, compare=False)

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        tensors = (getattr(self, name).to(device, non_blocking=True) for name in TENSORS)
        moved = Batch(*tensors)
        object.__setattr__(moved, "sources", self.sources)
        object.__setattr__(moved, "origin", self if self.input_ids.is_cpu else self.origin)
        return moved

    def num_tokens(self) -> int:
        """Positions that are not padding."""
        return int(self.attention_mask.sum())


TENSORS = tuple(own.name for own in fields(Batch) if own.type == "Tensor")
"""The tensors of a ``Batch``, in order."""


def batches_with_sources(
    batch: Callable[[Integers], B], groups: Sequence[Integers], source: Integers
) -> list[B]:
    """The micro-batches of an optimizer step whose rows are sources of each other.

    ``batch`` reads rows of the step by their indices; ``groups`` has those of each micro-batch, ``source``
    the index of each row's source.
    """
    found = []
    for own in groups:
        rows, outside = sources_within(own, source)
        others = batch(outside) if len(outside) else None
        found.append(replace(batch(own), sources=Sources(rows, others)))
    return found


@dataclass(frozen=True, slots=True)
class FlatRows:
    """Rows of ``context`` positions, one after the other: (rows * context,) int64 each, as in ``Batch``."""

    context: int
    input_ids: Integers
    labels: Integers
    document_ids: Integers
    position_ids: Integers

    @classmethod
    def padding(cls, rows: int, context: int, pad_id: int) -> FlatRows:
        """Rows of padding only."""
        arrays = cls(context, *np.zeros((4, rows * context), np.int64))
        arrays.clear(slice(None), pad_id=pad_id)
        return arrays

    def clear(self, places: npt.NDArray[np.bool_] | slice, *, pad_id: int) -> None:
        """Make these positions padding."""
        self.input_ids[places] = pad_id
        self.labels[places] = IGNORED
        self.document_ids[places] = 0
        self.position_ids[places] = 0

    def put(self, rows: Integers, other: FlatRows) -> None:
        """Write the rows of ``other`` into these rows, in order."""
        for mine, theirs in zip(self._arrays(), other._arrays(), strict=True):
            mine[rows] = theirs

    def select(self, rows: Integers) -> FlatRows:
        """A copy of these rows, in this order."""
        return FlatRows(self.context, *(mine[rows].reshape(-1) for mine in self._arrays()))

    def _arrays(self) -> list[Integers]:
        """Views of the arrays, (rows, context) each."""
        flat = (self.input_ids, self.labels, self.document_ids, self.position_ids)
        return [array.reshape(-1, self.context) for array in flat]

    def batch(self, example_ids: Integers) -> Batch:
        """A batch of tensors that share the arrays' memory."""
        shape = (len(example_ids), self.context)
        document_ids = torch.from_numpy(self.document_ids).view(shape)
        return Batch(
            input_ids=torch.from_numpy(self.input_ids).view(shape),
            attention_mask=document_ids > 0,
            labels=torch.from_numpy(self.labels).view(shape),
            document_ids=document_ids,
            position_ids=torch.from_numpy(self.position_ids).view(shape),
            example_ids=torch.from_numpy(example_ids),
        )

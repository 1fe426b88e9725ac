"""One micro-batch of token ids, and how attention is confined to its documents."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

IGNORED = -100
"""The label of a position that predicts nothing."""


@dataclass(frozen=True, slots=True)
class Batch:
    """B rows of T positions; a row may hold several documents.

    Attributes:
        input_ids: Token ids, (B, T) int64. Padding positions hold any valid id.
        attention_mask: (B, T) bool, False on padding.
        labels: (B, T) int64, what *this* position has to predict (the next token of the same document for
            causal models: already shifted, nothing shifts later), or ``IGNORED``.
        document_ids: (B, T) int64, which document of its row a position belongs to, counted from 1;
            0 on padding. No position attends to another document.
        position_ids: (B, T) int64, counted from 0 at each document's first position of the row.
        example_ids: (B,) int64, the row's number in its data set: stable over epochs, shuffles and ranks.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    document_ids: Tensor
    position_ids: Tensor
    example_ids: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return Batch(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})

    def num_tokens(self) -> int:
        """Positions that are not padding."""
        return int(self.attention_mask.sum())

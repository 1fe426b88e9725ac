"""The domains of training rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Domains:
    """The domain of each data source; rows are numbered consecutively, source by source.

    A row contains documents of one source only, so all its tokens have the same domain.

    Attributes:
        names: Domain of each source; sources may share a domain.
        rows: Number of rows of each source.

    >>> Domains(("news", "prose"), (2, 3)).of(torch.tensor([0, 4, 2, -1])).tolist()
    [0, 1, 1, 0]
    """

    names: tuple[str, ...]
    rows: tuple[int, ...]

    def of(self, example_ids_B: Tensor) -> Tensor:
        """Index into ``names`` of each row's source, (B,) int64; arbitrary for a row of padding."""
        ends = torch.tensor(self.rows, device=example_ids_B.device).cumsum(0)
        return torch.bucketize(example_ids_B, ends, right=True).clamp(max=len(self.names) - 1)

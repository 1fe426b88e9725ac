"""Of which domain the rows of a text are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Domains:
    """The domain of each source of a text, whose rows are numbered one source after the other.

    A row holds documents of one source only, so that the row's domain is that of all its tokens.

    Attributes:
        names: Of each source; several may have the same.
        rows: How many rows each has.

    >>> Domains(("news", "prose"), (2, 3)).of(torch.tensor([0, 4, 2, -1])).tolist()
    [0, 1, 1, 0]
    """

    names: tuple[str, ...]
    rows: tuple[int, ...]

    def of(self, example_ids_B: Tensor) -> Tensor:
        """The place in ``names`` of each row's source, (B,) int64; of a row of padding, any."""
        ends = torch.tensor(self.rows, device=example_ids_B.device).cumsum(0)
        return torch.bucketize(example_ids_B, ends, right=True).clamp(max=len(self.names) - 1)

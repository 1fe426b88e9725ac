"""Learning-rate multipliers for rows of weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from stlm_kd.training.config import RowScale


class Pacing:
    """Scales the optimizer's updates of some rows.

    AdamW updates elements independently, and its steps and decay are proportional to the learning rate, so
    scaling an update is equivalent to scaling the learning rate. The rows' gradients count in the norm for
    clipping.

    Args:
        weights: Trained weights by name.
        paces: Rows of some of them, with multipliers.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], paces: Sequence[RowScale]) -> None:
        self.names = tuple(paced.weight for paced in paces)
        self._parts = [
            (weights[paced.weight], torch.tensor(paced.rows, device=weights[paced.weight].device), paced.pace)
            for paced in paces
        ]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Scale the single optimizer step performed in this context."""
        before = [weight.detach()[rows] for weight, rows, _ in self._parts]
        yield
        with torch.no_grad():
            for (weight, rows, pace), old in zip(self._parts, before, strict=True):
                weight[rows] = old if pace == 0 else old.lerp(weight[rows], pace)

"""Learning-rate multipliers for rows of weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class RowScale:
    """Rows of a weight and the multiplier of their learning rate.

    Attributes:
        weight: The weight's name in the step module.
        rows: Indices into its first dimension.
        pace: The multiplier; 0 leaves the rows unchanged, bit for bit.
    """

    weight: str
    rows: tuple[int, ...]
    pace: float


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

"""Rows of weights with a learning rate of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class RowScale:
    """Some rows of a weight, and by what their learning rate is multiplied.

    Attributes:
        weight: Its name in the step module.
        rows: Indices into its first dimension.
        pace: 1 is as fast as everything else; 0 leaves the rows as they are, bit for bit.
    """

    weight: str
    rows: tuple[int, ...]
    pace: float


class Pacing:
    """Lets some rows take a part of each move of an optimizer.

    AdamW moves each element by itself, and its steps and its decay are proportional to the learning rate, so
    a part of the move is the move of another learning rate. The rows' gradients count in the norm that all
    are clipped by.

    Args:
        weights: By name, where they stay while they are trained.
        paces: Rows of some of them.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], paces: Sequence[RowScale]) -> None:
        self.names = tuple(paced.weight for paced in paces)
        self._parts = [
            (weights[paced.weight], torch.tensor(paced.rows, device=weights[paced.weight].device), paced.pace)
            for paced in paces
        ]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """To the one move of the weights that is made while this is entered."""
        before = [weight.detach()[rows] for weight, rows, _ in self._parts]
        yield
        with torch.no_grad():
            for (weight, rows, pace), old in zip(self._parts, before, strict=True):
                weight[rows] = old if pace == 0 else old.lerp(weight[rows], pace)

"""Numbers that change while a model is trained, as functions of how much of the training is done."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Shape = Literal["linear", "cosine"]


@dataclass(frozen=True, slots=True)
class Ramp:
    """From one value to another: ``first`` until ``begin``, ``last`` from ``end`` on.

    Attributes:
        shape: ``linear``, or ``cosine``: half a period, flat at both ends.
        first, last: The two values.
        begin, end: Shares of the optimizer steps, 0 ≤ begin < end ≤ 1.

    >>> [Ramp("linear", 1.0, 0.0, 0.0, 0.5).at(step / 4) for step in range(4)]
    [1.0, 0.5, 0.0, 0.0]
    """

    shape: Shape
    first: float
    last: float
    begin: float = 0.0
    end: float = 1.0

    def at(self, progress: float) -> float:
        """The value when a share of the training, 0 to 1, is done."""
        done = min(max((progress - self.begin) / (self.end - self.begin), 0.0), 1.0)
        if self.shape == "cosine":
            done = 0.5 * (1.0 - math.cos(math.pi * done))
        return self.first + done * (self.last - self.first)

    def largest(self) -> float:
        """The largest value that it takes."""
        return max(self.first, self.last)


@dataclass(frozen=True, slots=True)
class Steps:
    """Values that hold from a share of the optimizer steps on: (share, value), the first share 0, ascending.

    >>> Steps(((0.0, 1.0), (0.5, 0.1))).at(0.5)
    0.1
    """

    values: tuple[tuple[float, float], ...]

    def at(self, progress: float) -> float:
        """The value when a share of the training, 0 to 1, is done."""
        return [value for begin, value in self.values if begin <= progress][-1]

    def largest(self) -> float:
        """The largest value that it takes."""
        return max(value for _, value in self.values)


Schedule = Ramp | Steps
Number = float | Schedule
"""A number, or one that changes while a model is trained."""


def at(number: Number, progress: float) -> float:
    """What a number is when a share of the training, 0 to 1, is done."""
    return number.at(progress) if isinstance(number, (Ramp, Steps)) else number


def is_ever_above_zero(number: Number) -> bool:
    """Whether it is above 0 at some time."""
    return (number.largest() if isinstance(number, (Ramp, Steps)) else number) > 0

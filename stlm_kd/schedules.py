"""Schedules: numbers as functions of the training progress, 0 to 1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Shape = Literal["linear", "cosine"]


@dataclass(frozen=True, slots=True)
class Ramp:
    """Interpolation between two values: ``first`` until ``begin``, ``last`` from ``end`` on.

    The times are fractions of the optimizer steps, 0 ≤ begin < end ≤ 1; ``cosine`` is half a period, flat at
    both ends.

    >>> [Ramp("linear", 1.0, 0.0, 0.0, 0.5).at(step / 4) for step in range(4)]
    [1.0, 0.5, 0.0, 0.0]
    """

    shape: Shape
    first: float
    last: float
    begin: float = 0.0
    end: float = 1.0

    def at(self, progress: float) -> float:
        """The value at a training progress of 0 to 1."""
        done = min(max((progress - self.begin) / (self.end - self.begin), 0.0), 1.0)
        if self.shape == "cosine":
            done = 0.5 * (1.0 - math.cos(math.pi * done))
        return self.first + done * (self.last - self.first)


@dataclass(frozen=True, slots=True)
class Steps:
    """Piecewise-constant schedule: pairs (fraction of the optimizer steps, value), ascending from fraction 0.

    >>> Steps(((0.0, 1.0), (0.5, 0.1))).at(0.5)
    0.1
    """

    values: tuple[tuple[float, float], ...]

    def at(self, progress: float) -> float:
        """The value at a training progress of 0 to 1."""
        return [value for begin, value in self.values if begin <= progress][-1]


Schedule = Ramp | Steps
Number = float | Schedule
"""A constant or a schedule."""


def at(number: Number, progress: float) -> float:
    """The value of a number or schedule at a training progress of 0 to 1."""
    return number.at(progress) if isinstance(number, (Ramp, Steps)) else number


def is_ever_above_zero(number: Number) -> bool:
    """Whether the number or schedule is above 0 at any time."""
    if isinstance(number, Ramp):
        return max(number.first, number.last) > 0
    return any(value > 0 for _, value in number.values) if isinstance(number, Steps) else number > 0

"""Means and confidence intervals over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from stlm_kd.artifacts.results import measurable
from stlm_kd.statistics import deviations_wide


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds and the ``half_width`` of its 95 % interval (Student's t), None for one seed."""

    mean: float
    half_width: float | None
    values: tuple[float, ...]

    def __str__(self) -> str:
        if self.half_width is None:
            return f"{self.mean:.4f}"
        return f"{self.mean:.4f} ± {self.half_width:.4f}"


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of independent values with its 95 % interval; no interval if a value is not finite.

    >>> str(estimate([1.0, 2.0, 3.0]))
    '2.0000 ± 2.4841'
    """
    count = len(values)
    if count < 2 or not all(map(measurable, values)):
        return Estimate(fmean(values), None, tuple(values))
    return Estimate(fmean(values), deviations_wide(count) * stdev(values), tuple(values))

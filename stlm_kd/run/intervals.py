"""Means and confidence intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy import stats

from stlm_kd.eval.results import measurable

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds; ``half_width`` of its 95 % interval (Student's t), None where there is one seed."""

    mean: float
    half_width: float | None
    values: tuple[float, ...]

    def __str__(self) -> str:
        if self.half_width is None:
            return f"{self.mean:.4f}"
        return f"{self.mean:.4f} ± {self.half_width:.4f}"


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of independent values with its 95 % interval; none of the latter where a value is not finite.

    >>> str(estimate([1.0, 2.0, 3.0]))
    '2.0000 ± 2.4841'
    """
    count = len(values)
    if count < 2 or not all(map(measurable, values)):
        return Estimate(fmean(values), None, tuple(values))
    t = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))
    return Estimate(fmean(values), t * stdev(values) / math.sqrt(count), tuple(values))


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """The mean of first - second, seed by seed."""
    return estimate([a - b for a, b in zip(first, second, strict=True)])

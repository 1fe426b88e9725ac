"""Metrics, and the estimate of one over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from stlm_kd.artifacts.results import measurable
from stlm_kd.statistics import deviations_wide

MEASURES_TEXT = {
    "perplexity": "bits_per_byte",
    "pseudo-perplexity": "pseudo_bits_per_byte",
    "masked-loss": "masked_loss",
    "classification": "accuracy",
    "regression": "pearson",
}
"""Suites that score a model on the held-out text or examples, and their main metric."""

BITS_PER_BYTE = {"bits_per_byte", "pseudo_bits_per_byte"}
"""Metrics that are ratios of sums over a text (nats and bytes)."""

PER_TOKEN = {"perplexity", "pseudo_perplexity"}
"""Metrics hidden from tables: not comparable across vocabularies, unlike bits per byte."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A column of the table: one metric of one task; ``entry`` is the label of the suite's result."""

    suite: str
    entry: str
    task: str
    metric: str
    higher_is_better: bool

    @property
    def name(self) -> str:
        """The metric's name, with the task where a suite has several, and the label of the result."""
        name = self.metric if self.suite in MEASURES_TEXT else f"{self.task} {self.metric}"
        return f"{name} ({self.entry})" if self.entry else name

    @property
    def label(self) -> str:
        """The column heading: the name and the direction."""
        return f"{self.name} {'↑' if self.higher_is_better else '↓'}"


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

"""The smallest difference of each metric that matters: below it, models count as equivalent."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from stlm_kd.comparison.metrics import Metric
from stlm_kd.errors import UsageError, did_you_mean

SHOWN = 0.00005
"""The smallest value visible in four decimals; a smaller difference matters in no metric."""

SHARES = (
    "accuracy", "acc", "acc_norm", "exact_match", "em", "f1", "macro_f1", "token_f1", "entity_f1",
    "entity_macro_f1", "masked_accuracy", "same_class", "interchange_accuracy", "agreement", "lime_overlap",
    "integrated_gradients_overlap", "average",
)  # fmt: skip
"""Metrics from 0 to 1, except that GLUE's average includes correlations."""

CORRELATIONS = (
    "kappa", "matthews", "mcc", "pearson", "spearman", "lime_correlation",
    "integrated_gradients_correlation",
)  # fmt: skip
"""Metrics from -1 to 1."""

DEFAULTS: Mapping[str, float] = {
    **dict.fromkeys(SHARES, 0.01),
    **dict.fromkeys(CORRELATIONS, 0.02),
    **dict.fromkeys(("bits_per_byte", "pseudo_bits_per_byte"), 0.01),
    **dict.fromkeys(("masked_loss", "kl", "js"), 0.01),
}
"""One point of accuracy, F1 or agreement; .02 for a correlation or kappa; .01 bits per byte; .01 nats."""


@dataclass(frozen=True, slots=True)
class Smallest:
    """The smallest difference that matters, by metric; ``DEFAULTS`` apply to metrics without one.

    Attributes:
        by_name: By metric name, such as ``accuracy`` or ``blimp acc``.
        every: For all other metrics; None: ``DEFAULTS``, or ``SHOWN`` for a metric without a default.
    """

    by_name: Mapping[str, float] = field(default_factory=dict)
    every: float | None = None

    def of(self, metric: Metric) -> float:
        """The threshold of a metric, in the metric's unit.

        >>> accuracy = Metric("classification", "", "examples", "accuracy", True)
        >>> Smallest().of(accuracy), Smallest(every=0.1).of(accuracy), Smallest({"accuracy": 0}).of(accuracy)
        (0.01, 0.1, 5e-05)
        """
        given = self.by_name.get(metric.name, self.by_name.get(metric.metric, self.every))
        return max(DEFAULTS.get(metric.metric, 0.0) if given is None else given, SHOWN)

    def require_known(self, names: Collection[str]) -> None:
        """Raise ``UsageError`` for a metric that no result has."""
        for name in self.by_name:
            if name not in names:
                raise UsageError(f"--smallest {name}=…: no run or file has it{did_you_mean(name, names)}")

    @classmethod
    def read(cls, values: Sequence[str]) -> Smallest:
        """Parse ``METRIC=NUMBER`` for one metric, or ``NUMBER`` for all metrics that are not named.

        Raises ``UsageError`` if a value is neither, or a metric is given twice.

        >>> Smallest.read(["accuracy=.02", "0.1"])
        Smallest(by_name={'accuracy': 0.02}, every=0.1)
        """
        found: dict[str, float] = {}
        for value in values:
            name, _, number = value.rpartition("=")
            if name in found:
                raise UsageError(f"--smallest {value}: given twice; give each metric one number")
            try:
                found[name] = float(number)
            except ValueError:
                found[name] = math.nan
            if not 0 <= found[name] < math.inf:
                raise UsageError(
                    f"--smallest {value}: expected METRIC=NUMBER or NUMBER, at least 0, as accuracy=.01"
                )
        return cls({name: size for name, size in found.items() if name}, found.get(""))

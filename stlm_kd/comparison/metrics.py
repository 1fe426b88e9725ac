"""The metrics of a run's rows: which exist, and their values over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stlm_kd.artifacts.results import Row, Score, SuiteResult
from stlm_kd.comparison.average import averaged
from stlm_kd.comparison.intervals import Estimate, estimate

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
    def label(self) -> str:
        """The column heading."""
        name = self.metric if self.suite in MEASURES_TEXT else f"{self.task} {self.metric}"
        name += f" ({self.entry})" if self.entry else ""
        return f"{name} {'↑' if self.higher_is_better else '↓'}"


def metrics_of(rows: Iterable[Row]) -> list[Metric]:
    """The requested metrics, without parts of groups and without perplexities per token."""
    found: dict[Metric, None] = {}
    for row in rows:
        for suites in row.scores:
            for suite in suites:
                for score in suite.scores:
                    if score.part_of is None and score.metric not in PER_TOKEN:
                        found[_metric(suite, score)] = None
    return list(found)


def _metric(suite: SuiteResult, score: Score) -> Metric:
    return Metric(suite.suite, suite.label, score.task, score.metric, score.higher_is_better)


def values(row: Row, metric: Metric) -> list[float]:
    """The metric for each seed; [] where the row has no such score."""
    return [score.value for score in scores_of(row, metric)]


def spread(row: Row, metric: Metric) -> Estimate | None:
    """Mean over seeds with its interval, or a single model's score with its standard error; None if none."""
    found = values(row, metric)
    if len(found) != 1:
        return estimate(found) if found else None
    score = _score(row.scores[0], metric)
    return Estimate(found[0], None if score is None else score.stderr, tuple(found))


def _score(suites: Sequence[SuiteResult], metric: Metric) -> Score | None:
    """The score of a metric, averaged over fine-tunings."""
    for suite in averaged([suite for suite in suites if suite.suite == metric.suite]):
        for score in suite.scores:
            if _metric(suite, score) == metric:
                return score
    return None


def scores_of(row: Row, metric: Metric) -> list[Score]:
    """The metric's score for each seed that has it."""
    found = [_score(suites, metric) for suites in row.scores]
    return [score for score in found if score is not None]

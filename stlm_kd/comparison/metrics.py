"""The metrics of rows: which exist, and their values over seeds and fine-tunings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev, variance

from stlm_kd.artifacts.results import Row, Score, SuiteResult, measurable
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


def metrics_of(rows: Iterable[Row]) -> list[Metric]:
    """The requested metrics, without parts of groups and without perplexities per token."""
    results = (result for row in rows for seed in row.scores for result in seed)
    found = (
        _metric(result, score)
        for result in results
        for score in result.scores
        if score.part_of is None and score.metric not in PER_TOKEN
    )
    return list(dict.fromkeys(found))


def results_of(row: Row, metric: Metric) -> list[list[SuiteResult]]:
    """The results that contain the metric, for each seed in order."""
    return [[result for result in seed if _score(result, metric)] for seed in row.scores]


def all_results(row: Row, metric: Metric) -> list[SuiteResult]:
    """The results that contain the metric, of all seeds."""
    return [result for seed in results_of(row, metric) for result in seed]


def scores_of(row: Row, metric: Metric) -> list[Score]:
    """The metric's score for each seed that has it, averaged over fine-tunings."""
    seeds = ([score for result in seed if (score := _score(result, metric))] for seed in row.scores)
    return [_mean_score(scores) for scores in seeds if scores]


def values(row: Row, metric: Metric) -> list[float]:
    """The metric for each seed that has it, averaged over fine-tunings."""
    return [score.value for score in scores_of(row, metric)]


def complete_values(row: Row, metric: Metric) -> list[float]:
    """As ``values``; [] unless all seeds have the metric."""
    found = values(row, metric)
    return found if len(found) == len(row.scores) else []


def _metric(result: SuiteResult, score: Score) -> Metric:
    return Metric(result.suite, result.label, score.task, score.metric, score.higher_is_better)


def _score(result: SuiteResult, metric: Metric) -> Score | None:
    return next((score for score in result.scores if _metric(result, score) == metric), None)


def averaged(results: Sequence[SuiteResult]) -> list[SuiteResult]:
    """One result for each suite and label; several fine-tunings become their mean, without examples.

    The standard error of the mean combines the examples, which all fine-tunings share, and the variation
    between fine-tunings: the square root of the mean squared standard error plus the variance divided by the
    number of fine-tunings. A note says so. A single result is returned unchanged.
    """
    groups: dict[tuple[str, str], list[SuiteResult]] = {}
    for result in results:
        groups.setdefault((result.suite, result.label), []).append(result)
    return [found[0] if len(found) == 1 else _mean(found) for found in groups.values()]


def _mean(results: Sequence[SuiteResult]) -> SuiteResult:
    found: dict[tuple[str, str], list[Score]] = {}
    for result in results:
        for score in result.scores:
            found.setdefault((score.task, score.metric), []).append(score)
    most = max(map(len, found.values()))
    notes = list(dict.fromkeys(note for result in results for note in result.notes))
    if most > 1:
        notes.append(
            f"{results[0].suite}: means over {most} fine-tunings ± standard error over these and examples"
        )
    scores = tuple(_mean_score(scores) for scores in found.values())
    return SuiteResult(results[0].suite, scores, notes=tuple(notes), label=results[0].label)


def _mean_score(scores: Sequence[Score]) -> Score:
    if len(scores) == 1:
        return scores[0]
    numbers = [score.value for score in scores]
    squares = [score.stderr**2 for score in scores if score.stderr is not None]
    between = variance(numbers) / len(numbers)
    stderr = math.sqrt(fmean(squares) + between) if len(squares) == len(scores) else None
    degenerate = next((score.degenerate for score in scores if score.degenerate), None)
    return replace(scores[0], value=fmean(numbers), stderr=stderr, degenerate=degenerate)


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


def spread(row: Row, metric: Metric) -> Estimate | None:
    """Mean over seeds with its interval, or a single model's score with its standard error; None if none."""
    found = scores_of(row, metric)
    if len(found) == 1:
        return Estimate(found[0].value, found[0].stderr, (found[0].value,))
    return estimate([score.value for score in found]) if found else None

"""The difference of two rows in one metric, over seeds, over examples, or over both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
import pandas as pd

from stlm_kd.artifacts.results import Row, measurable
from stlm_kd.comparison.metrics import Metric
from stlm_kd.comparison.pairing import NotPaired, PairedExamples, Pairing, ResampledDifference
from stlm_kd.comparison.results_table import ResultsTable
from stlm_kd.statistics import (
    Difference,
    McNemar,
    by_noises,
    equivalence_p,
    from_resamples,
    mcnemar,
    over_seeds,
    paired_bootstrap,
    resampled_stderr,
)


@dataclass(frozen=True, slots=True)
class Sample:
    """A row's metric for each seed, and the lines of the table that the values come from."""

    values: tuple[float, ...]
    results: pd.DataFrame

    @property
    def repeats(self) -> tuple[float, ...]:
        """The values that vary at random: over seeds, or over the fine-tunings of one model."""
        return self.values if len(self.values) > 1 else tuple(self.results["value"])

    @property
    def is_tuned_again(self) -> bool:
        """Whether the repeats are fine-tunings of one model."""
        return len(self.values) == 1 and len(self.results) > 1


@dataclass(frozen=True, slots=True)
class DifferenceEstimate:
    """The estimated difference of two rows in a metric.

    Attributes:
        mean: The first's mean over seeds minus the second's.
        difference: With its interval and p; None if no noise estimate is available.
        noise: The sources of variance in the interval: seeds, fine-tunings of one model, examples.
        num_examples: Number of paired examples; 0 if none are.
        of_examples: The paired bootstrap over examples alone, with the metric averaged over seeds.
        mcnemar: For a right/wrong metric, McNemar's test for each pair of models.
        equivalence_p: The p-value of a difference at least as large as the smallest that matters.
    """

    mean: float
    difference: Difference | None
    noise: str
    num_examples: int = 0
    of_examples: Difference | None = None
    mcnemar: tuple[McNemar, ...] = ()
    equivalence_p: float | None = None


def sample_of(table: ResultsTable, row: Row, metric: Metric, seeds: Sequence[int] | None = None) -> Sample:
    """The values of the given seeds (None: all), and the lines behind them."""
    values = table.complete_values(row, metric)
    chosen = values if seeds is None else [values[row.seeds.index(seed)] for seed in seeds]
    return Sample(tuple(chosen), table.results_of(row, metric, seeds))


def difference_between(
    first: Sample,
    second: Sample,
    joined: Pairing,
    *,
    are_paired: bool,
    smallest: float,
) -> DifferenceEstimate:
    """The first minus the second, with all known sources of variance.

    If either side has several seeds, or is one model with several fine-tunings, uses ``over_seeds``;
    fine-tunings are averaged within seeds. If both are single models, uses the paired bootstrap over
    examples, and for a right/wrong metric the larger of its p and McNemar's. Unpaired examples use the
    standard errors of both scores as if independent, which overestimates the variance if the models err on
    the same examples.

    Args:
        first: One row's values, over seeds or for a single model.
        second: The other row's; for the same seeds if paired.
        joined: Their examples.
        are_paired: Whether both have the same seeds, in the same order.
        smallest: The smallest difference that matters.
    """
    mean = fmean(first.values) - fmean(second.values)
    if isinstance(joined, PairedExamples):
        found = _of_joined(mean, joined)
    elif isinstance(joined, ResampledDifference):
        drawn = from_resamples(mean, joined.drawn, examples=joined.examples)
        found = DifferenceEstimate(mean, drawn, "examples", joined.examples, drawn)
    else:
        found = DifferenceEstimate(mean, None, "none")
    stderr = _stderr(first, second, joined)
    freedom = found.num_examples - 1 if found.num_examples else math.inf
    ours, theirs = first.repeats, second.repeats
    if len(ours) > 1 or len(theirs) > 1:
        if len(first.values) == len(second.values) == 1:
            tunings = [[*side.results["fine_tuning"]] for side in (first, second)]
            are_paired = tunings[0] == tunings[1] and None not in tunings[0]
        noises = over_seeds(ours, theirs, paired=are_paired, examples_stderr=stderr, examples_freedom=freedom)
        noise = _noise(first, second, stderr) if noises else "none"
    elif stderr is None:
        return found
    else:
        noises = (((stderr**2, freedom),),)
        noise = "examples, not paired" if isinstance(joined, NotPaired) else found.noise
    is_known = found.difference is not None and len(ours) == len(theirs) == 1
    return replace(
        found,
        difference=found.difference if is_known else by_noises(mean, noises) if noises else None,
        noise=noise,
        equivalence_p=equivalence_p(mean, noises, smallest) if noises else None,
    )


def _noise(first: Sample, second: Sample, stderr: float | None) -> str:
    """The sources of variance that the interval includes, as text."""
    counted = {
        "seeds": len(first.values) > 1 or len(second.values) > 1,
        "fine-tunings": first.is_tuned_again or second.is_tuned_again,
        "examples": stderr is not None,
    }
    return ", ".join(name for name, is_counted in counted.items() if is_counted)


def _of_joined(mean: float, joined: PairedExamples) -> DifferenceEstimate:
    """The estimate for single models; with several seeds or fine-tunings, only its example tests are used."""
    bootstrap = paired_bootstrap(joined.first.mean(0), joined.second.mean(0))
    tests: tuple[McNemar, ...] = ()
    if joined.first.shape == joined.second.shape and _are_right_or_wrong(joined):
        tests = tuple(mcnemar(*rows) for rows in zip(joined.first, joined.second, strict=True))
    stderr, difference, num_examples = _stderr_of_examples(joined), None, joined.first.shape[1]
    if joined.is_mean and stderr is not None:
        p = max([bootstrap.p, *(test.p for test in tests)])
        difference = Difference(mean, bootstrap.low, bootstrap.high, p)
    elif stderr is not None:
        difference = by_noises(mean, [((stderr**2, num_examples - 1),)])
    return DifferenceEstimate(
        mean, difference, "none" if difference is None else "examples", num_examples, bootstrap, tests
    )


def _stderr(first: Sample, second: Sample, joined: Pairing) -> float | None:
    """Standard error of the difference over examples; from independent scores if they are not paired.

    None if one of the scores has no standard error, or it is 0, which is uninformative.
    """
    if isinstance(joined, PairedExamples):
        return _stderr_of_examples(joined)
    if isinstance(joined, ResampledDifference):
        return resampled_stderr(joined.drawn, examples=joined.examples) or None
    variances = []
    for side in (first, second):
        errors = side.results["stderr"]
        known = [error**2 for error in errors if error is not None and measurable(error)]
        if len(known) < len(errors):
            return None
        variances.append(fmean(known))
    return math.sqrt(sum(variances)) or None


def _stderr_of_examples(joined: PairedExamples) -> float | None:
    """Standard error of a right/wrong metric, with one extra discordant example on each side; None if 0.

    Models that are right on the same few examples are then not counted as equivalent on all others (Bonett
    and Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired
    data", 2012).
    """
    differences_N = joined.first.mean(0) - joined.second.mean(0)
    if _are_right_or_wrong(joined):
        differences_N = np.append(differences_N, [1.0, -1.0])
    if np.ptp(differences_N) <= 1e-12:
        return None
    return float(np.std(differences_N, ddof=1)) / math.sqrt(len(differences_N))


def _are_right_or_wrong(joined: PairedExamples) -> bool:
    return all(bool(np.isin(side, (0, 1)).all()) for side in (joined.first, joined.second))

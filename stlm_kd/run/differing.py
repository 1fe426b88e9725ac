"""The difference of two contenders in one metric, by their seeds, by their examples, or by both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from stlm_kd.eval.results import Json, SuiteResult, measurable
from stlm_kd.eval.statistics import (
    Difference,
    McNemar,
    by_stderr,
    from_resamples,
    mcnemar,
    over_seeds,
    paired_bootstrap,
)
from stlm_kd.run.joining import Apart, Joined, Resampled
from stlm_kd.run.results import Metric


@dataclass(frozen=True, slots=True)
class Side:
    """A contender's metric for each seed, and the results that the values are from."""

    values: tuple[float, ...]
    results: tuple[SuiteResult, ...]

    def repeats(self, metric: Metric) -> tuple[float, ...]:
        """The values between which chance decides: of the seeds, or of one model's fine-tunings."""
        if len(self.values) > 1:
            return self.values
        return tuple(result.score(metric.task, metric.metric).value for result in self.results)

    @property
    def is_tuned_again(self) -> bool:
        """Whether its repeats are fine-tunings of one model."""
        return len(self.values) == 1 and len(self.results) > 1

    @property
    def tunings(self) -> tuple[Json, ...]:
        """The seed of each result's fine-tuning; None of one that does not tell."""
        found = [result.report.get("fine_tuning") for result in self.results]
        return tuple(one.get("seed") if isinstance(one, Mapping) else None for one in found)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of the difference of two contenders in a metric.

    Attributes:
        mean: The first's mean over seeds minus the second's.
        difference: With its interval, and p; None where nothing tells how large the noise is.
        noise: What the interval counts: seeds, fine-tunings of one model, examples.
        num_examples: That are joined; 0 where none are.
        of_examples: The paired bootstrap over examples alone, their metric averaged over the seeds.
        mcnemar: In a metric of right and wrong, for each pair of models.
    """

    mean: float
    difference: Difference | None
    noise: str
    num_examples: int = 0
    of_examples: Difference | None = None
    mcnemar: tuple[McNemar, ...] = ()


def difference_between(
    first: Side, second: Side, joined: Joined | Resampled | Apart, metric: Metric, *, are_paired: bool
) -> Evidence:
    """The first minus the second, with all the noise that is known.

    Where either side has several seeds, or is one model that was fine-tuned several times, by ``over_seeds``;
    fine-tunings within seeds are averaged. Where both are single models, by the paired bootstrap over
    examples, and in a metric of right and wrong by whichever is the larger p, its own or McNemar's. Examples
    that are not joined count by the standard errors of both scores, as if they were independent, which is too
    much where the models err on the same examples.

    Args:
        first: Of some seeds, or a single model.
        second: The other; of the same seeds where they are paired.
        joined: Their examples.
        metric: Which.
        are_paired: Whether both have the same seeds, in the same order.
    """
    mean = fmean(first.values) - fmean(second.values)
    if isinstance(joined, Joined):
        found = _of_joined(mean, joined)
    elif isinstance(joined, Resampled):
        drawn = from_resamples(mean, joined.drawn, examples=joined.examples)
        found = Evidence(mean, drawn, "examples", joined.examples, drawn)
    else:
        found = Evidence(mean, None, "none")
    stderr = _stderr(first, second, joined, metric)
    ours, theirs = first.repeats(metric), second.repeats(metric)
    if len(ours) > 1 or len(theirs) > 1:
        if len(first.values) == len(second.values) == 1:
            are_paired = first.tunings == second.tunings and None not in first.tunings
        difference = over_seeds(ours, theirs, paired=are_paired, examples_stderr=stderr)
        return replace(found, difference=difference, noise=_noise(first, second, stderr))
    if isinstance(joined, Apart) and stderr is not None:
        return replace(found, difference=by_stderr(mean, stderr), noise="examples, not paired")
    return found


def _noise(first: Side, second: Side, stderr: float | None) -> str:
    """What the interval counts, in words."""
    counted = {
        "seeds": len(first.values) > 1 or len(second.values) > 1,
        "fine-tunings": first.is_tuned_again or second.is_tuned_again,
        "examples": stderr is not None,
    }
    return ", ".join(name for name, is_counted in counted.items() if is_counted)


def _of_joined(mean: float, joined: Joined) -> Evidence:
    """As of single models; over seeds or fine-tunings only the tests of examples count."""
    bootstrap = paired_bootstrap(joined.first.mean(0), joined.second.mean(0))
    tests: tuple[McNemar, ...] = ()
    if joined.first.shape == joined.second.shape and np.isin([joined.first, joined.second], (0, 1)).all():
        tests = tuple(mcnemar(*rows) for rows in zip(joined.first, joined.second, strict=True))
    if joined.is_mean:
        p = max([bootstrap.p, *(test.p for test in tests)])
        difference = Difference(mean, bootstrap.low, bootstrap.high, p)
    else:
        difference = by_stderr(mean, _stderr_of_examples(joined), freedom=len(joined.ids) - 1)
    return Evidence(mean, difference, "examples", len(joined.ids), bootstrap, tests)


def _stderr(first: Side, second: Side, joined: Joined | Resampled | Apart, metric: Metric) -> float | None:
    """The standard error of the difference over examples; of scores as if they were independent if need be.

    None where one of these has none.
    """
    if isinstance(joined, Joined):
        return _stderr_of_examples(joined)
    if isinstance(joined, Resampled):
        return float(np.std(joined.drawn, ddof=1))
    variances = []
    for side in (first, second):
        errors = [result.score(metric.task, metric.metric).stderr for result in side.results]
        known = [error**2 for error in errors if error is not None and measurable(error)]
        if len(known) < len(errors):
            return None
        variances.append(fmean(known))
    return math.sqrt(sum(variances))


def _stderr_of_examples(joined: Joined) -> float:
    differences_N = joined.first.mean(0) - joined.second.mean(0)
    return float(np.std(differences_N, ddof=1)) / math.sqrt(len(joined.ids))

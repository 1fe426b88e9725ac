"""Tests of whether two models differ: over examples, over seeds, corrected for multiple comparisons.

Two sources of variance: the test examples (``paired_bootstrap``, ``mcnemar``) and the seed of training or
fine-tuning (``over_seeds``, which includes both). Shapes: N examples, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import variance
from typing import TYPE_CHECKING, TypeAlias

from stlm_kd.lazy import np, special

if TYPE_CHECKING:
    import numpy.typing as npt


CONFIDENCE = 0.95
RESAMPLES = 10_000
_FEW = 64
_CHUNK = 2_000_000

_ROUNDING = 1e-9

Floats: TypeAlias = "npt.NDArray[np.float64]"
Noise = tuple[tuple[float, float], ...]
"""Additive variance components of a mean, each with its degrees of freedom."""


@dataclass(frozen=True, slots=True)
class Difference:
    """First minus second: the mean, its 95 % interval, and the two-sided p-value of no difference."""

    mean: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, slots=True)
class McNemar:
    """The discordant examples, which only the first or only the second has right, and the two-sided mid-p."""

    only_first: int
    only_second: int
    p: float


def paired_bootstrap(
    first_N: npt.ArrayLike, second_N: npt.ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """The difference of two means over the same N examples, at least 2, by the paired bootstrap."""
    differences_N = np.asarray(first_N, np.float64) - np.asarray(second_N, np.float64)
    assert differences_N.ndim == 1 and len(differences_N) > 1
    drawn_R = _resampled_means(differences_N, resamples, np.random.default_rng(seed))
    return from_resamples(float(differences_N.mean()), drawn_R, examples=len(differences_N))


def from_resamples(mean: float, drawn_R: Floats, *, examples: int) -> Difference:
    """A difference by its resamples (R,) of N ``examples``: the expanded percentile interval and matching p.

    The fraction of resamples beyond 0 is a tail of a normal distribution whose standard deviation divides by
    N rather than N - 1. It is converted to a tail of Student's t, which corrects for few examples
    (Hesterberg, "What teachers should know about the bootstrap", 2015, section 5.3). p is below .05 exactly
    where the interval excludes 0, within the resolution of the resamples; one extra resample is counted on
    either side.

    If no resample lies beyond 0, the number of resamples bounds p from below, and a correction for multiple
    comparisons multiplies that bound. In that case p is that of Student's t with the standard deviation of
    the resamples, if it is smaller, so that p keeps decreasing with the distance from 0. Resamples that are
    all equal have no deviation and keep the bound. As in any t-test, small p-values of few, strongly skewed
    differences are too small: for 30 exponential ones, 1 % have p below .001.
    """
    shrunk = math.sqrt((examples - 1) / examples)
    tail = float(special.ndtr(special.stdtrit(examples - 1, (1 - CONFIDENCE) / 2) / shrunk))
    low, high = np.quantile(drawn_R, [tail, 1 - tail])
    beyond = 1 + min(int((drawn_R <= 0).sum()), int((drawn_R >= 0).sum()))
    share = min(beyond / (len(drawn_R) + 1), 0.5)
    p = 2 * float(special.stdtr(examples - 1, special.ndtri(share) * shrunk))
    stderr = resampled_stderr(drawn_R, examples=examples)
    if beyond == 1 and stderr > _ROUNDING * abs(mean):
        p = min(p, 2 * float(special.stdtr(examples - 1, -abs(mean) / stderr)))
    return Difference(mean, float(low), float(high), p)


def resampled_stderr(drawn_R: Floats, *, examples: int) -> float:
    """The standard error from resamples, corrected from dividing by N to dividing by N - 1."""
    return float(np.std(drawn_R)) * math.sqrt(examples / (examples - 1))


def mcnemar(first_N: npt.ArrayLike, second_N: npt.ArrayLike) -> McNemar:
    """McNemar's mid-p test: whether two models have equally many of the same N examples right (1, else 0).

    Twice the exact binomial tail, with half the weight of the observed table; 1 if the counts are equal.
    Fagerland, Lydersen and Laake, "The McNemar test for binary matched-pairs data: mid-p and asymptotic are
    better than exact conditional", 2013.
    """
    from scipy.stats import binom  # slow import, not needed to validate recipes

    first, second = (np.asarray(values, np.float64) for values in (first_N, second_N))
    assert first.shape == second.shape and np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all()
    only_first, only_second = int((first > second).sum()), int((second > first).sum())
    fewer, discordant = min(only_first, only_second), only_first + only_second
    tail = binom.cdf(fewer, discordant, 0.5) - binom.pmf(fewer, discordant, 0.5) / 2
    return McNemar(only_first, only_second, min(1.0, 2 * float(tail)))


def corrected(tests: Sequence[tuple[float, float | None]]) -> tuple[tuple[float, float | None], ...]:
    """Both p-values of each comparison, corrected for all comparisons, in the order of the input.

    Each comparison tests two claims: that there is a difference, and (if there is a second p) that the
    difference is negligible. Their null hypotheses exclude each other, so at most C of them are true for C
    comparisons. Each p is multiplied by C less the number of comparisons in which both are already rejected;
    which hypotheses are rejected matters, not only how many (Shaffer, "Modified sequentially rejective
    multiple test procedures", 1986, procedure S2, whose steps reject at least what those of S1 do). Without
    second p-values this is Holm's procedure ("A simple sequentially rejective multiple test procedure",
    1979). Controls the family-wise error rate at .05 under any dependence between the tests.

    >>> corrected([(0.01, None), (0.04, None), (0.03, None)])
    ((0.03, None), (0.06, None), (0.06, None))
    >>> corrected([(0.01, 0.9), (0.5, 0.02)])
    ((0.02, 1.0), (1.0, 0.04))
    >>> corrected([(0.001, 0.002), (0.03, 0.9)])
    ((0.002, 0.004), (0.03, 0.9))
    """
    found: list[list[float | None]] = [[None, None] for _ in tests]
    left = [sum(p is not None for p in both) for both in tests]
    largest = 0.0
    claims = [
        (p, at, which) for at, both in enumerate(tests) for which, p in enumerate(both) if p is not None
    ]
    for p, at, which in sorted(claims):
        largest = max(largest, min(1.0, p * sum(count > 0 for count in left)))
        found[at][which] = largest
        left[at] -= 1
    return tuple((first if first is not None else 1.0, second) for first, second in found)


def over_seeds(
    first: Sequence[float],
    second: Sequence[float],
    *,
    paired: bool,
    examples_stderr: float | None,
    examples_freedom: float = math.inf,
) -> tuple[Noise, ...]:
    """Variance components of the difference of two means over seeds and examples; () if unknown.

    ``first`` and ``second`` are a metric for each training seed, or each fine-tuning seed of one model, at
    least two on one side; if ``paired``, for the same seeds in the same order. The seed variance is that of
    the differences if seeds are paired, else the sum over both sides (Welch). A side with a single value
    contributes none and counts as fixed. Returns two alternatives, of which ``by_noises`` takes the more
    conservative: the seed variance alone; and the seed variance plus the example variance (the square of
    ``examples_stderr``, of the difference of the means; None if unknown), with Satterthwaite's degrees of
    freedom ("An approximate distribution of estimates of variance components", 1946). The first alone treats
    the examples as the whole population; the second alone is overconfident for few seeds that happen to
    agree.

    Equal values for all seeds do not show that the seed has no effect, for example if accuracy is a count of
    few examples. The example variance then replaces the seed variance, with the degrees of freedom of the
    seeds; if it is 0 or unknown too, the result is ().
    """
    sides = [[a - b for a, b in zip(first, second, strict=True)]] if paired else [first, second]
    rounding = _ROUNDING * max(map(abs, (*first, *second)))
    floor = (examples_stderr or 0.0) ** 2
    parts = []
    for values in sides:
        if len(values) > 1:
            is_constant = max(values) - min(values) <= rounding
            of_mean = floor if is_constant else variance(values) / len(values)
            parts.append((of_mean, len(values) - 1.0))
    assert parts, "one value on either side has no deviation over seeds"
    if not all(of_mean for of_mean, _ in parts):
        return ()
    return (tuple(parts), (*parts, (floor, examples_freedom))) if floor else (tuple(parts),)


def by_noises(mean: float, noises: Sequence[Noise]) -> Difference:
    """A difference by Student's t: the widest interval and the largest p over several noise estimates."""
    half, p = (max(found) for found in zip(*(_student(mean, noise) for noise in noises), strict=True))
    return Difference(mean, mean - half, mean + half, p)


def equivalence_p(mean: float, noises: Sequence[Noise], smallest: float) -> float:
    """The p-value of a difference of ``smallest`` or more in either direction: two one-sided tests (TOST).

    Schuirmann, "A comparison of the two one-sided tests procedure and the power approach for assessing the
    equivalence of average bioavailability", 1987. The larger p of the two is that of the nearer limit; the
    largest p over several noise estimates (of ``over_seeds``, none of them 0) is returned.
    """
    estimates = map(_satterthwaite, noises)
    return max(
        float(special.stdtr(freedom, (abs(mean) - smallest) / stderr)) for stderr, freedom in estimates
    )


def deviations_wide(values: int) -> float:
    """Half width of the 95 % interval of a mean over this many seeds, in standard deviations over seeds.

    >>> [round(deviations_wide(seeds), 2) for seeds in (2, 3, 5, 10)]
    [8.98, 2.48, 1.24, 0.72]
    """
    return float(special.stdtrit(values - 1, (1 + CONFIDENCE) / 2)) / math.sqrt(values)


def _student(mean: float, noise: Noise) -> tuple[float, float]:
    """Half width of the interval, and p, of a mean with additive variance components."""
    if not any(part for part, _ in noise):
        return 0.0, 1.0 if mean == 0 else 0.0
    stderr, freedom = _satterthwaite(noise)
    half = float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2)) * stderr
    return half, 2 * float(special.stdtr(freedom, -abs(mean) / stderr))


def _satterthwaite(noise: Noise) -> tuple[float, float]:
    """The standard error and its degrees of freedom for additive variance components."""
    total = math.fsum(part for part, _ in noise)
    spread = math.fsum(part**2 / degrees for part, degrees in noise)
    return math.sqrt(total), total**2 / spread if spread else math.inf


def _resampled_means(values_N: Floats, resamples: int, generator: np.random.Generator) -> Floats:
    """The mean of each resample, (R,)."""
    different, counts = np.unique(values_N, return_counts=True)
    size = len(values_N)
    if len(different) <= _FEW:
        drawn_RK = generator.multinomial(size, counts / size, size=resamples)
        return np.asarray(drawn_RK @ different / size, np.float64)
    rows = max(1, _CHUNK // size)
    parts = [
        values_N[generator.integers(size, size=(min(rows, resamples - begin), size))].mean(1)
        for begin in range(0, resamples, rows)
    ]
    return np.concatenate(parts)

"""Paired tests against scipy and by simulation: how often they err, how intervals cover, their power."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, combinations

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stlm_kd.comparison.difference import Sample, difference_between
from stlm_kd.comparison.metrics import estimate
from stlm_kd.comparison.pairing import ResampledDifference
from stlm_kd.comparison.resampling import resampled
from stlm_kd.eval.classification.metrics import classification_scores, regression_scores
from stlm_kd.statistics import (
    Difference,
    by_noises,
    corrected,
    deviations_wide,
    equivalence_p,
    from_resamples,
    mcnemar,
    over_seeds,
    paired_bootstrap,
    resampled_stderr,
)

Floats = npt.NDArray[np.float64]


def surplus(rejected: Sequence[bool], share: float = 0.05) -> float:
    """By how many standard errors of the simulation the rejections exceed their share."""
    return float(np.mean(rejected) - share) / math.sqrt(share * (1 - share) / len(rejected))


def right_or_wrong(
    generator: np.random.Generator, size: int, first: float, second: float
) -> tuple[Floats, Floats]:
    """Two models, of which each alone is right on so large a share of the examples, and both on half."""
    kind = generator.choice(4, size=size, p=[first, second, 0.5, 0.5 - first - second])
    return np.isin(kind, (0, 2)).astype(float), np.isin(kind, (1, 2)).astype(float)


def test_the_interval_is_scipys_where_examples_are_many() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.gamma(2, size=800), generator.gamma(1.9, size=800)
    found = paired_bootstrap(first, second)
    theirs = stats.bootstrap(
        (first - second,), np.mean, method="percentile", n_resamples=9999, rng=np.random.default_rng(1)
    ).confidence_interval
    assert found.mean == pytest.approx(float((first - second).mean()))
    width = theirs.high - theirs.low
    assert [found.low, found.high] == pytest.approx([theirs.low, theirs.high], abs=0.03 * width)
    assert found.p == pytest.approx(stats.ttest_rel(first, second).pvalue, abs=0.02)


def test_one_drawing_by_counts_and_one_by_places_tell_the_same() -> None:
    """Few values are drawn by their counts; with a hair added to each, all are different and drawn singly."""
    first, second = right_or_wrong(np.random.default_rng(3), 300, 0.12, 0.06)
    first = first * 0.97  # so that hardly a resample is exactly 0
    hair = np.arange(300) * 1e-12
    by_counts, by_places = paired_bootstrap(first, second), paired_bootstrap(first + hair, second)
    assert len(np.unique(first + hair - second)) > 64 > len(np.unique(first - second))
    assert by_places.low == pytest.approx(by_counts.low, abs=0.004)
    assert by_places.high == pytest.approx(by_counts.high, abs=0.004)
    assert by_places.p == pytest.approx(by_counts.p, abs=0.03)


def test_the_order_of_the_models_changes_the_sign_alone_and_the_seed_fixes_the_rest() -> None:
    first, second = right_or_wrong(np.random.default_rng(3), 200, 0.1, 0.06)
    found, turned = paired_bootstrap(first, second), paired_bootstrap(second, first)
    assert (found.mean, found.low, found.high) == pytest.approx(
        (-turned.mean, -turned.high, -turned.low), abs=0.006
    )
    assert found == paired_bootstrap(first, second)
    assert found != paired_bootstrap(first, second, seed=1)


def test_p_is_below_five_percent_just_where_the_interval_leaves_zero_out() -> None:
    generator = np.random.default_rng(5)
    for size in (12, 60, 400):
        for shift in np.linspace(0.5, 3.5, 25) / math.sqrt(size):
            found = paired_bootstrap(generator.normal(shift, size=size), np.zeros(size), resamples=1999)
            if not 0.04 < found.p < 0.06:
                assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


def test_equal_models_have_no_difference_and_p_one() -> None:
    same = paired_bootstrap([1.0, 0.0, 1.0], [1.0, 0.0, 1.0])
    assert (same.mean, same.low, same.high, same.p) == (0, 0, 0, 1)
    assert mcnemar([1, 0, 1], [1, 0, 1]).p == 1


@pytest.mark.parametrize("size", [25, 100, 400])
def test_equal_models_are_told_apart_in_at_most_five_percent(size: int) -> None:
    generator = np.random.default_rng(size)
    drawn = [right_or_wrong(generator, size, 0.12, 0.12) for _ in range(1000)]
    assert surplus([paired_bootstrap(*pair, resamples=999).p < 0.05 for pair in drawn]) < 2.5
    assert surplus([mcnemar(*pair).p < 0.05 for pair in drawn]) < 2.5


@pytest.mark.parametrize("size", [20, 150])
def test_the_interval_holds_the_true_difference_in_95_percent(size: int) -> None:
    generator = np.random.default_rng(size)
    missed = []
    for _ in range(800):
        found = paired_bootstrap(generator.normal(0.3, size=size), np.zeros(size), resamples=999)
        missed.append(not found.low <= 0.3 <= found.high)
    assert abs(surplus(missed)) < 2.5


def test_the_power_is_that_of_theory() -> None:
    """Connor, "Sample size for testing differences in proportions for the paired-sample design", 1987."""
    size, first, second = 400, 0.13, 0.07
    both, apart = first + second, first - second
    theory = stats.norm.cdf((apart * math.sqrt(size) - 1.96 * math.sqrt(both)) / math.sqrt(both - apart**2))
    generator = np.random.default_rng(0)
    drawn = [right_or_wrong(generator, size, first, second) for _ in range(800)]
    assert 0.7 < theory < 0.8
    for found in (
        [paired_bootstrap(*pair, resamples=999).p for pair in drawn],
        [mcnemar(*p).p for p in drawn],
    ):
        assert np.mean(np.array(found) < 0.05) == pytest.approx(theory, abs=0.05)


@settings(max_examples=60)
@given(st.integers(0, 40), st.integers(0, 40))
def test_mid_p_is_the_exact_p_less_the_observed_table(only_first: int, only_second: int) -> None:
    first = [1] * only_first + [0] * only_second + [1, 0]
    second = [0] * only_first + [1] * only_second + [1, 0]
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == (only_first, only_second)
    if only_first == only_second:
        assert found.p == pytest.approx(1)
    else:
        total = only_first + only_second
        exact = stats.binomtest(only_first, total).pvalue
        assert found.p == pytest.approx(exact - stats.binom.pmf(only_first, total, 0.5))


@settings(max_examples=60)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_without_tests_of_equivalence_the_correction_is_closed_testing_by_bonferroni(
    p_values: list[float],
) -> None:
    """The largest p of all intersections that a hypothesis is part of (Marcus, Peritz and Gabriel, 1976)."""
    places = range(len(p_values))
    subsets = [subset for size in range(1, len(p_values) + 1) for subset in combinations(places, size)]
    expected = [
        max(min(1, len(subset) * min(p_values[i] for i in subset)) for subset in subsets if place in subset)
        for place in places
    ]
    found = corrected([(p, None) for p in p_values])
    assert [p for p, _ in found] == pytest.approx(expected) and all(other is None for _, other in found)


def test_of_many_equal_models_one_is_singled_out_in_at_most_five_percent() -> None:
    p_values = np.random.default_rng(0).random((2000, 8))
    assert surplus([min(corrected([(p, None) for p in row]))[0] < 0.05 for row in p_values.tolist()]) < 2.5
    assert surplus([min(row) < 0.05 for row in p_values]) > 20


def test_no_comparison_has_no_p() -> None:
    assert corrected([]) == ()


UNIT_NOISE = [((1.0, math.inf),)]
P_VALUES = st.floats(0, 1).map(lambda p: round(p, 3))


@settings(max_examples=60)
@given(st.lists(st.tuples(P_VALUES, st.none() | P_VALUES), min_size=1, max_size=4))
def test_the_correction_is_shaffers_s2_by_its_definition(tests: list[tuple[float, float | None]]) -> None:
    """Each p counts as often as hypotheses can be true together once those of smaller p are not."""
    found = list(chain(*corrected(tests)))
    p_values = list(chain(*tests))
    places = [place for place, p in enumerate(p_values) if p is not None]
    left, largest = sorted(places, key=lambda place: (p_values[place], place)), 0.0
    while left:
        possible = (
            size
            for size in range(len(left), 0, -1)
            for chosen in combinations(left, size)
            if len({place // 2 for place in chosen}) == size
        )
        place = left[0]
        largest = max(largest, min(1.0, (p_values[place] or 0.0) * next(possible)))
        assert found[place] == pytest.approx(largest)
        left = left[1:]


def drawn_means(values_N: Floats, generator: np.random.Generator, resamples: int) -> Floats:
    size = len(values_N)
    drawn_RN = generator.multinomial(size, np.full(size, 1 / size), size=resamples)
    return np.asarray(drawn_RN @ values_N / size)


@pytest.mark.parametrize("units", [2, 4])
def test_a_difference_that_just_matters_is_equivalent_in_at_most_five_percent(units: int) -> None:
    generator, found, raw = np.random.default_rng(units), [], []
    single = pd.DataFrame({"value": [0.0], "stderr": [None]})
    for _ in range(4000):
        values = generator.normal(20, 1, size=units)
        drawn, mean = drawn_means(values, generator, 500), float(values.mean())
        found_by = ResampledDifference(drawn, units)
        told = difference_between(
            Sample((mean,), single), Sample((0.0,), single), found_by, are_paired=False, smallest=20.0
        ).equivalence_p
        assert told is not None
        found.append(told < 0.05)
        raw.append(equivalence_p(mean, [((float(drawn.var()), units - 1.0),)], 20.0) < 0.05)
    assert abs(surplus(found)) < 2.5 and surplus(raw) > 2.5


def test_few_examples_under_several_seeds_are_no_certainty() -> None:
    generator, found, certain = np.random.default_rng(0), [], []
    for _ in range(2000):
        values = generator.normal(size=3)
        stderr = float(values.std(ddof=1)) / math.sqrt(3)
        seeds = (values.mean() + generator.normal(0, 0.05, size=5)).tolist()
        for freedom, into in ((2.0, found), (math.inf, certain)):
            noises = over_seeds(
                seeds, [0.0] * 5, paired=True, examples_stderr=stderr, examples_freedom=freedom
            )
            into.append(by_noises(float(np.mean(seeds)), noises).p < 0.05)
    assert surplus(found) < 2.5 < 10 < surplus(certain)


def test_a_large_difference_survives_the_correction_for_many_comparisons() -> None:
    values = np.random.default_rng(0).normal(size=30)
    values = (values - values.mean()) / values.std(ddof=1) * math.sqrt(30) + 30
    drawn = drawn_means(values, np.random.default_rng(1), 2000)
    p = from_resamples(30.0, drawn, examples=30).p
    assert p == pytest.approx(2 * stats.t.sf(30 / resampled_stderr(drawn, examples=30), 29))
    assert corrected([(p, None)] + [(0.5, None)] * 49)[0][0] < 1e-10
    alike = from_resamples(1.0, np.ones(2000), examples=5)
    assert alike.p > 0.01, "five equal differences are no certainty"


@pytest.mark.parametrize("examples", [5, 30])
def test_p_falls_with_the_distance_from_zero(examples: int) -> None:
    values = np.random.default_rng(examples).exponential(size=examples)
    around = drawn_means(values - values.mean(), np.random.default_rng(0), 2000)
    p_values = [
        from_resamples(mean, mean + around, examples=examples).p for mean in np.linspace(0.2, 8, 200).tolist()
    ]
    assert p_values == sorted(p_values, reverse=True) and p_values[-1] < p_values[0] / 50


@pytest.mark.parametrize("examples", [4, 10])
def test_p_below_what_the_resamples_show_is_as_rare_as_it_says(examples: int) -> None:
    """Of 500 resamples the smallest share is 1 in 501."""
    generator, level = np.random.default_rng(examples), 0.001
    rejected = []
    for _ in range(8000):
        values = generator.normal(size=examples)
        drawn = drawn_means(values, generator, 500)
        rejected.append(from_resamples(float(values.mean()), drawn, examples=examples).p < level)
    assert surplus(rejected, level) < 2.5


@pytest.mark.parametrize("true", [0.0, 0.5, 1.0])
def test_of_all_claims_any_is_false_in_at_most_five_percent_of_tables(true: float) -> None:
    """Six comparisons, of which a share has no difference, and the others one that just matters."""
    generator, false = np.random.default_rng(0), []
    equal = np.arange(6) < 6 * true
    for _ in range(2000):
        means = np.where(equal, 0.0, 2.0) + generator.normal(size=6)
        tests = [
            (by_noises(mean, [((1.0, math.inf),)]).p, equivalence_p(mean, [((1.0, math.inf),)], 2.0))
            for mean in means
        ]
        found = corrected(tests)
        false.append(
            any(
                p < 0.05 if is_equal else other is not None and other < 0.05
                for (p, other), is_equal in zip(found, equal, strict=True)
            )
        )
    assert surplus(false) < 2.5


@settings(max_examples=60)
@given(
    st.lists(st.floats(-3, 3).map(lambda value: round(value, 2)), min_size=3, max_size=9),
    st.floats(0.1, 3),
)
def test_equivalence_is_scipys_two_one_sided_tests(values: list[float], smallest: float) -> None:
    if np.std(values) < 1e-3:
        return
    noises = over_seeds(values, [0.0] * len(values), paired=True, examples_stderr=None)
    below = stats.ttest_1samp(values, smallest, alternative="less").pvalue
    above = stats.ttest_1samp(values, -smallest, alternative="greater").pvalue
    found = equivalence_p(float(np.mean(values)), noises, smallest)
    assert found == pytest.approx(max(below, above), abs=1e-9)


SEEDS = st.lists(st.floats(-10, 10).map(lambda value: round(value, 3)), min_size=2, max_size=8)


@settings(max_examples=60)
@given(SEEDS, st.data())
def test_differences_over_seeds_are_scipys_tests(first: list[float], data: st.DataObject) -> None:
    second = data.draw(st.lists(st.floats(-10, 10), min_size=len(first), max_size=len(first)))
    if np.std(np.subtract(first, second)) < 1e-3 or np.std(first) < 1e-3 or np.std(second) < 1e-3:
        return
    paired = _over_seeds(first, second, paired=True, examples_stderr=None)
    theirs = stats.ttest_rel(first, second)
    assert paired.p == pytest.approx(theirs.pvalue, abs=1e-9)
    assert [paired.low, paired.high] == pytest.approx([*theirs.confidence_interval()])
    apart = _over_seeds(first, second, paired=False, examples_stderr=None)
    assert apart.p == pytest.approx(stats.ttest_ind(first, second, equal_var=False).pvalue, abs=1e-9)
    fixed = _over_seeds(first, second[:1], paired=False, examples_stderr=None)
    assert fixed.p == pytest.approx(stats.ttest_1samp(first, second[0]).pvalue, abs=1e-9)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("of_seeds", [0.3, 1.0, 2.0])
def test_seeds_and_examples_together_are_told_apart_in_at_most_five_percent(
    seeds: int, of_seeds: float
) -> None:
    """Two noises, of which the tests that know only one of them take the other for a difference."""
    generator = np.random.default_rng(seeds)
    found, seeds_alone, examples_alone = [], [], []
    for _ in range(1500):
        of_examples = generator.normal()
        values = of_examples + generator.normal(size=seeds) * of_seeds * math.sqrt(seeds)
        zeros = [0.0] * seeds
        found.append(_over_seeds(values.tolist(), zeros, paired=True, examples_stderr=1.0).p < 0.05)
        seeds_alone.append(_over_seeds(values.tolist(), zeros, paired=True, examples_stderr=None).p < 0.05)
        examples_alone.append(by_noises(float(values.mean()), UNIT_NOISE).p < 0.05)
    assert surplus(found) < 2.5
    if of_seeds == 0.3:
        assert surplus(seeds_alone) > 3
    else:
        assert surplus(examples_alone) > 3


def test_more_noise_never_makes_a_difference_surer() -> None:
    for stderr in (1e-6, 0.01, 0.1, 1.0):
        bare = _over_seeds([0.1, 0.2, 0.35], [0.0] * 3, paired=True, examples_stderr=None)
        with_examples = _over_seeds([0.1, 0.2, 0.35], [0.0] * 3, paired=True, examples_stderr=stderr)
        assert with_examples.p >= bare.p
        assert with_examples.low <= bare.low and with_examples.high >= bare.high


@pytest.mark.parametrize("paired", [True, False])
def test_seeds_that_give_one_value_have_the_noise_of_the_examples(paired: bool) -> None:
    """Rounding counts as one value: .3 - .2 is not .1, to the last bit."""
    first, second = [0.3, 0.3 + 1e-16, 0.1 + 0.2], [0.2, 0.2, 0.2]
    for stderr in (None, 0.0):
        assert over_seeds(first, second, paired=paired, examples_stderr=stderr) == ()
    found = _over_seeds(first, second, paired=paired, examples_stderr=0.02)
    error, freedom = (0.02, 2) if paired else (0.02 * math.sqrt(2), 4)
    assert found.p >= 2 * stats.t.sf(0.1 / error, freedom) - 1e-9 > 1e-3
    assert found.mean == pytest.approx(0.1)


def test_identical_seeds_are_called_different_in_at_most_five_percent() -> None:
    """Accuracy on twenty examples: where three seeds give one count, their noise is not 0."""
    generator, found = np.random.default_rng(0), []
    while len(found) < 400:
        skills = 0.9 + 0.04 * generator.normal(size=(2, 3))
        right = generator.random((2, 3, 20)) < np.clip(skills, 0, 1)[..., None]
        first, second = right.mean(2)
        differences = right[0].mean(0) - right[1].mean(0)
        if np.ptp(first - second) < 1e-9 and np.ptp(differences) > 0:
            stderr = float(np.std(differences, ddof=1)) / math.sqrt(20)
            made = _over_seeds(first.tolist(), second.tolist(), paired=True, examples_stderr=stderr)
            found.append(made.p < 0.05)
    assert surplus(found) < 2.5


def _over_seeds(
    first: Sequence[float], second: Sequence[float], *, paired: bool, examples_stderr: float | None
) -> Difference:
    noises = over_seeds(first, second, paired=paired, examples_stderr=examples_stderr)
    return by_noises(float(np.mean(first) - np.mean(second)), noises)


def test_fine_tunings_of_one_student_are_no_independent_seeds() -> None:
    """Over nested means the interval covers in 95 %; over all runs alike it does in far fewer."""
    generator = np.random.default_rng(0)
    nested, alike = [], []
    for _ in range(1000):
        groups = [
            (generator.normal() + 0.3 * generator.normal(size=4)).tolist() for _ in range(5)
        ]  # five distillations of four fine-tunings each, around 0
        for values, missed in (
            ([np.mean(group) for group in groups], nested),
            ([value for group in groups for value in group], alike),
        ):
            found = estimate(values)
            assert found.half_width is not None
            missed.append(abs(found.mean) > found.half_width)
    assert abs(surplus(nested)) < 2.5
    assert surplus(alike) > 20


def test_the_width_in_deviations_is_that_of_the_interval() -> None:
    for values in ([1.0, 3.0], [0.0, 1.0, 5.0, 2.0]):
        found = estimate(values)
        assert found.half_width == pytest.approx(deviations_wide(len(values)) * np.std(values, ddof=1))


def test_resampled_metrics_are_the_suites_and_deviate_as_they_do() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(3, size=400)
    predicted = np.stack(
        [
            np.where(generator.random(400) < share, labels, generator.integers(3, size=400))
            for share in (0.9, 0.4)
        ]
    )
    ids = [*map(str, range(400))]
    for metric in ("macro_f1", "matthews"):
        whole, drawn = resampled(metric, predicted, labels)
        for row, value, sets in zip(predicted, whole, drawn, strict=True):
            result = classification_scores(np.eye(3)[row], labels, task="t", ids=ids, suite="s")
            assert value == pytest.approx(result.score("t", metric).value)
            assert sets.std() == pytest.approx(result.score("t", metric).stderr, rel=0.1)
    result = classification_scores(np.eye(2)[predicted[1] % 2], labels % 2, task="t", ids=ids, suite="s")
    whole, drawn = resampled("f1", predicted[1:] % 2, labels % 2)
    assert whole[0] == pytest.approx(result.score("t", "f1").value)
    assert drawn[0].std() == pytest.approx(result.score("t", "f1").stderr, rel=0.1)


def test_resampled_correlations_are_the_suites() -> None:
    generator = np.random.default_rng(1)
    labels = generator.normal(size=120)
    predicted = np.stack([labels + generator.normal(size=120), generator.normal(size=120)])
    for metric in ("pearson", "spearman"):
        whole, drawn = resampled(metric, predicted, labels, resamples=400)
        result = regression_scores(predicted[0], labels, task="t", ids=[*map(str, range(120))], suite="s")
        assert whole[0] == pytest.approx(result.score("t", metric).value)
        assert drawn[0].std() == pytest.approx(result.score("t", metric).stderr, rel=0.15)


def test_models_are_resampled_on_the_same_sets() -> None:
    labels = np.random.default_rng(0).integers(2, size=60)
    predicted = np.stack([1 - labels, 1 - labels])
    predicted[:, :40] = labels[:40]
    _, drawn = resampled("matthews", predicted, labels)
    assert drawn[0].std() > 0.05
    assert np.array_equal(drawn[0], drawn[1])

"""Metrics of classes and numbers against scikit-learn and scipy, and their standard errors against theory."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from stlm_kd.artifacts.results import SuiteResult
from stlm_kd.errors import DataError
from stlm_kd.eval.classification.metrics import (
    classification_scores,
    macro_f1,
    matthews,
    pearson,
    regression_scores,
    spearman,
)

metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn comes with lm-eval")


def classes(predicted: list[int], labels: list[int], num_classes: int = 2) -> SuiteResult:
    logits = np.eye(num_classes)[predicted] * 3 - 1
    ids = [f"id-{place}" for place in range(len(labels))]
    return classification_scores(logits, labels, task="t", ids=ids, suite="s")


def numbers(predicted: list[float], labels: list[float]) -> SuiteResult:
    return regression_scores(predicted, labels, task="t", ids=list(map(str, range(len(labels)))), suite="s")


@st.composite
def confused(draw: st.DrawFn) -> tuple[list[int], list[int], int]:
    num_classes = draw(st.integers(2, 4))
    pairs = draw(st.lists(st.tuples(*[st.integers(0, num_classes - 1)] * 2), min_size=1, max_size=30))
    return [a for a, _ in pairs], [b for _, b in pairs], num_classes


@pytest.mark.filterwarnings("ignore:A single label was found")
@settings(max_examples=60)
@given(confused())
def test_every_metric_is_scikit_learns(case: tuple[list[int], list[int], int]) -> None:
    predicted, labels, num_classes = case
    found = {score.metric: score.value for score in classes(predicted, labels, num_classes).scores}
    assert found.pop("accuracy") == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert found.pop("matthews") == pytest.approx(metrics.matthews_corrcoef(labels, predicted), abs=1e-12)
    of_all = metrics.f1_score(labels, predicted, average="macro", zero_division=0.0)
    assert found.pop("macro_f1") == pytest.approx(of_all)
    if num_classes == 2:
        assert found.pop("f1") == pytest.approx(metrics.f1_score(labels, predicted, zero_division=0.0))
    assert not found


PAIRS = st.lists(st.tuples(st.integers(-50, 50), st.integers(-5, 5)), min_size=3, max_size=30)


@settings(max_examples=60)
@given(PAIRS, st.floats(1e-6, 1e6))
def test_correlations_are_scipys(pairs: list[tuple[int, int]], scale: float) -> None:
    a, b = (np.array(values, np.float64) for values in zip(*pairs, strict=True))
    assume(np.ptp(a) > 0 and np.ptp(b) > 0)
    assert pearson(a * scale, b) == pytest.approx(stats.pearsonr(a, b).statistic, abs=1e-9)
    assert spearman(a * scale, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-9)


def test_the_scores_of_a_hand_calculation() -> None:
    """MRPC's shape: 3 found, 1 missed, 2 false alarms, 4 rightly rejected."""
    result = classes([1] * 3 + [0] + [1] * 2 + [0] * 4, [1] * 4 + [0] * 6)
    assert result.score("t", "accuracy").value == pytest.approx(0.7)
    assert result.score("t", "f1").value == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert result.score("t", "macro_f1").value == pytest.approx((6 / 9 + 8 / 11) / 2)
    assert result.score("t", "matthews").value == pytest.approx((3 * 4 - 2 * 1) / math.sqrt(5 * 4 * 6 * 5))
    assert result.score("t", "accuracy").stderr == pytest.approx(math.sqrt(0.7 * 0.3 / 9))
    assert result.score("t", "accuracy").chance == pytest.approx(0.6)
    assert result.score("t", "accuracy").choices == 2
    assert result.report["confusion"] == [[4, 2], [1, 3]]
    errors = numbers([1.0, 2.0, 4.0], [1.0, 3.0, 2.0])
    assert errors.score("t", "mean_squared_error").value == pytest.approx(5 / 3)
    assert not errors.score("t", "mean_squared_error").higher_is_better
    assert errors.score("t", "spearman").value == pytest.approx(0.5)


def test_examples_keep_their_ids_and_their_mean_is_the_score() -> None:
    result = classes([0, 1, 2, 1], [0, 1, 1, 1], 3)
    assert [(row.id, row.value) for row in result.examples] == [
        ("id-0", 1.0), ("id-1", 1.0), ("id-2", 0.0), ("id-3", 1.0)
    ]  # fmt: skip
    assert result.report["predictions"] == {"id-0": 0, "id-1": 1, "id-2": 2, "id-3": 1}
    errors = numbers([0.5, 2.0], [1.0, 0.0])
    assert [row.value for row in errors.examples] == [0.25, 4.0]
    assert SuiteResult.from_json(errors.to_json()) == errors
    assert SuiteResult.from_json(result.to_json()) == result


def test_the_bootstrap_of_a_mean_is_its_standard_error() -> None:
    """With balanced classes and even mistakes, Matthews' is about 2 accuracy - 1, and F1 accuracy."""
    result = classes([0] * 400 + [1] * 100 + [1] * 400 + [0] * 100, [0] * 500 + [1] * 500)
    plain = math.sqrt(0.8 * 0.2 / 999)
    assert result.score("t", "matthews").stderr == pytest.approx(2 * plain, rel=0.1)
    assert result.score("t", "macro_f1").stderr == pytest.approx(plain, rel=0.1)


def test_the_bootstrap_of_a_correlation_is_near_its_formula() -> None:
    """(1 - r²) / √n for two normal variables (Fisher)."""
    generator = np.random.default_rng(1)
    a = generator.normal(size=2000)
    b = 0.8 * a + 0.6 * generator.normal(size=2000)
    found = numbers(a.tolist(), b.tolist()).score("t", "pearson")
    assert found.stderr == pytest.approx((1 - found.value**2) / math.sqrt(2000), rel=0.12)


def test_the_same_examples_give_the_same_standard_errors() -> None:
    labels, predicted = [0, 1, 1, 0, 1, 0], [0, 1, 0, 0, 1, 1]
    assert classes(predicted, labels) == classes(predicted, labels)
    some, others = [0.1, 2.0, 0.3, 4.0], [1.0, 2.0, 3.0, 4.0]
    assert numbers(some, others) == numbers(some, others)


def test_one_prediction_for_all_has_no_correlation_and_says_so() -> None:
    result = numbers([2.0, 2.0, 2.0], [1.0, 2.0, 3.0])
    assert result.score("t", "pearson").value == 0.0
    assert result.score("t", "spearman").value == 0.0
    assert result.notes == (
        "t: the predictions are the same for all examples, so there is no correlation; 0 is shown",
    )
    assert not numbers([1.0, 2.0], [1.0, 2.0]).notes
    of_one_class = classes([1, 1, 1], [0, 1, 1])
    assert of_one_class.score("t", "matthews").value == 0.0
    said = {score.degenerate for score in of_one_class.scores}
    assert said == {"degenerate: predicts a single class for all 3 examples"}
    for honest in (classes([1, 0, 1], [0, 1, 1]), classes([1, 1, 1], [1, 1, 1])):
        assert {score.degenerate for score in honest.scores} == {None}
    assert {score.degenerate for score in result.scores} == {
        "degenerate: predicts a single value for all 3 examples"
    }
    assert {score.degenerate for score in numbers([1.0, 2.0], [1.0, 2.0]).scores} == {None}


def test_one_example_has_no_standard_error() -> None:
    assert {score.stderr for score in classes([1], [1]).scores} == {None}
    assert {score.stderr for score in numbers([1.0], [2.0]).scores} == {None}


def test_predictions_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match=r"1 of 2 examples .*first: number 1"):
        classification_scores([[0, 1], [math.nan, 1]], [0, 1], task="t", ids=["a", "b"], suite="s")
    with pytest.raises(DataError, match=r"1 of 2 examples .*first: number 0"):
        numbers([math.inf, 1.0], [0.0, 1.0])


def test_a_perfect_and_a_reversed_classifier_are_one_and_minus_one() -> None:
    for size in (1, 1000, 100_000):
        confusion = np.array([[[size, 0], [0, size]], [[0, size], [size, 0]]], np.float64)
        assert matthews(confusion) == pytest.approx([1.0, -1.0])
        assert macro_f1(confusion) == pytest.approx([1.0, 0.0])

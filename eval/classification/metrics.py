"""Metrics of classifiers and regression models: GLUE's and more.

Accuracy and mean squared error are means over examples, with closed-form standard errors. For F1 and the
correlations, including Matthews', the standard error is the bootstrap standard deviation over ``RESAMPLES``
resamples (Efron, "Bootstrap methods", 1979), which are the same on every call.

Shapes: N examples, C classes, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from stlm_kd.artifacts.results import ExampleScore, Score, SuiteResult
from stlm_kd.errors import DataError
from stlm_kd.lazy import np

if TYPE_CHECKING:
    import numpy.typing as npt


RESAMPLES = 1000
_SEED = 0

Floats: TypeAlias = "npt.NDArray[np.float64]"
Integers: TypeAlias = "npt.NDArray[np.int64]"


def classification_scores(
    logits_NC: npt.ArrayLike, labels_N: npt.ArrayLike, *, task: str, ids: Sequence[str], suite: str
) -> SuiteResult:
    """Accuracy, macro F1 and Matthews' correlation; for two classes also the F1 of the second.

    The predicted class is the argmax of the logits (the first one if tied); labels count from 0. Macro F1
    skips classes that neither occur nor are predicted. F1 is 0 for a class without a correct prediction, and
    Matthews' correlation is 0 if all predictions are equal. Chance accuracy is the frequency of the most
    frequent class. Raises DataError if a logit is not finite.
    """
    logits = _finite(logits_NC)
    labels = np.asarray(labels_N, np.int64)
    num_classes = logits.shape[1]
    assert logits.shape == (len(labels), num_classes) and len(ids) == len(labels) > 0 and num_classes > 1
    predicted = logits.argmax(1)
    right = (predicted == labels).astype(np.float64)
    confusion_CC = _confusion(labels, predicted, num_classes)
    metrics: dict[str, Callable[[Floats], Floats]] = {"macro_f1": macro_f1, "matthews": matthews}
    if num_classes == 2:
        metrics = {"f1": f1_of_second, **metrics}
    resampled = _resampled_confusions(confusion_CC)
    score = partial(Score, task, examples=len(labels), degenerate=one_class(labels, predicted))
    scores = [
        score(name, float(metric(confusion_CC[None])[0]), deviation(metric(resampled), len(labels)))
        for name, metric in metrics.items()
    ]
    chance = float(confusion_CC.sum(1).max()) / len(labels)
    accuracy = score("accuracy", float(right.mean()), mean_stderr(right), choices=num_classes, chance=chance)
    return SuiteResult(
        suite,
        (accuracy, *scores),
        example_scores(task, "accuracy", ids, right),
        report={
            "task": task,
            "confusion": [[int(count) for count in row] for row in confusion_CC],
            "predictions": {name: int(found) for name, found in zip(ids, predicted, strict=True)},
        },
    )


def example_scores(task: str, metric: str, ids: Sequence[str], values_N: Floats) -> tuple[ExampleScore, ...]:
    """One metric of each example, by its id."""
    pairs = zip(ids, values_N.tolist(), strict=True)
    return tuple(ExampleScore(task, name, metric, value) for name, value in pairs)


def one_class(labels_N: Integers, predicted_N: Integers) -> str | None:
    """``Score.degenerate`` for a model that predicts a single class although the labels vary, else None."""
    if (predicted_N != predicted_N[0]).any() or (labels_N == labels_N[0]).all():
        return None
    return f"degenerate: predicts a single class for all {len(predicted_N):,} examples"


def regression_scores(
    predicted_N: npt.ArrayLike, labels_N: npt.ArrayLike, *, task: str, ids: Sequence[str], suite: str
) -> SuiteResult:
    """Pearson's and Spearman's correlation and the mean squared error.

    A correlation with constant values is 0, and a note says so. A prediction that is not finite is a
    DataError.
    """
    predicted = _finite(predicted_N).reshape(-1)
    labels = np.asarray(labels_N, np.float64).reshape(-1)
    size = len(labels)
    assert len(predicted) == size == len(ids) > 0
    squares = (predicted - labels) ** 2
    generator = np.random.default_rng(_SEED)
    resamples = [generator.integers(size, size=size) for _ in range(RESAMPLES)]
    notes = tuple(
        f"{task}: the {what} are the same for all examples, so there is no correlation; 0 is shown"
        for what, values in (("predictions", predicted), ("labels", labels))
        if np.ptp(values) == 0
    )
    constant = np.ptp(predicted) == 0 < np.ptp(labels)
    degenerate = f"degenerate: predicts a single value for all {size:,} examples" if constant else None
    score = partial(Score, task, examples=size, degenerate=degenerate)
    scores = []
    for name, correlation in (("pearson", pearson), ("spearman", spearman)):
        resampled_R = np.array([correlation(predicted[chosen], labels[chosen]) for chosen in resamples])
        scores.append(score(name, correlation(predicted, labels), deviation(resampled_R, size)))
    error = float(squares.mean())
    return SuiteResult(
        suite,
        (*scores, score("mean_squared_error", error, mean_stderr(squares), higher_is_better=False)),
        example_scores(task, "mean_squared_error", ids, squares),
        notes,
        {"task": task, "predictions": dict(zip(ids, predicted.tolist(), strict=True))},
    )


def _confusion(labels_N: Integers, predicted_N: Integers, num_classes: int) -> Floats:
    """The confusion matrix, (C, C): rows are labels, columns predictions."""
    counts = np.bincount(labels_N * num_classes + predicted_N, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.float64)


def macro_f1(confusion_RCC: Floats) -> Floats:
    """The mean F1 over the classes that occur or are predicted, (R,); rows are labels."""
    right_RC = np.diagonal(confusion_RCC, axis1=1, axis2=2)
    return mean_f1(right_RC, confusion_RCC.sum(1) + confusion_RCC.sum(2))


def mean_f1(right_RC: Floats, sizes_RC: Floats) -> Floats:
    """The mean F1 over the classes with a size (labels plus predictions), (R,); 0 if there are none."""
    f1_RC = 2 * right_RC / np.maximum(sizes_RC, 1)
    mean: Floats = f1_RC.sum(1) / np.maximum((sizes_RC > 0).sum(1), 1)
    return mean


def f1_of_second(confusion_RCC: Floats) -> Floats:
    """The F1 of class 1, (R,); rows are labels."""
    sizes_R = confusion_RCC[:, 1].sum(1) + confusion_RCC[:, :, 1].sum(1)
    return mean_f1(confusion_RCC[:, 1, 1:2], sizes_R[:, None])


def matthews(confusion_RCC: Floats) -> Floats:
    """Matthews' correlation coefficient, (R,), for any number of classes.

    Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", 2004.
    """
    labels_RC, predicted_RC = confusion_RCC.sum(2), confusion_RCC.sum(1)
    total_R = labels_RC.sum(1)
    right_R = np.trace(confusion_RCC, axis1=1, axis2=2)
    covariance = right_R * total_R - (labels_RC * predicted_RC).sum(1)
    spread = (total_R**2 - (labels_RC**2).sum(1)) * (total_R**2 - (predicted_RC**2).sum(1))
    coefficient: Floats = np.where(spread > 0, covariance / np.sqrt(np.maximum(spread, 1)), 0.0)
    return coefficient


def pearson(a_N: Floats, b_N: Floats) -> float:
    """Pearson's correlation; 0 if either input is constant."""
    if np.ptp(a_N) == 0 or np.ptp(b_N) == 0:
        return 0.0
    a, b = (values - values.mean() for values in (a_N, b_N))
    a, b = a / np.abs(a).max(), b / np.abs(b).max()  # avoids underflow of squares
    return float(np.clip(a @ b / math.sqrt((a @ a) * (b @ b)), -1.0, 1.0))


def spearman(a_N: Floats, b_N: Floats) -> float:
    """Spearman's rank correlation; ties get their mean rank."""
    from scipy.stats import rankdata  # slow import, not needed to validate recipes

    return pearson(rankdata(a_N), rankdata(b_N))


def _finite(values: npt.ArrayLike) -> Floats:
    found = np.asarray(values, np.float64)
    broken = ~np.isfinite(found).reshape(len(found), -1).all(1)
    if broken.any():
        raise DataError(
            f"{int(broken.sum())} of {len(found)} examples have predictions that are not finite (first: "
            f"number {int(broken.argmax())}); check the model's weights and precision"
        )
    return found


def _resampled_confusions(confusion_CC: Floats) -> Floats:
    """Confusion matrices of bootstrap resamples, (R, C, C)."""
    total = int(confusion_CC.sum())
    shares = confusion_CC.reshape(-1) / total
    drawn = np.random.default_rng(_SEED).multinomial(total, shares, size=RESAMPLES)
    return drawn.reshape(RESAMPLES, *confusion_CC.shape).astype(np.float64)


def deviation(resampled_R: Floats, examples: int) -> float | None:
    """The standard error from resamples, (R,); None for a single example."""
    return float(resampled_R.std(ddof=1)) if examples > 1 else None


def mean_stderr(values_N: Floats) -> float | None:
    """The standard error of a mean; None for a single value."""
    return float(values_N.std(ddof=1)) / math.sqrt(len(values_N)) if len(values_N) > 1 else None

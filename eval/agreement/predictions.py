"""Cohen's κ, divergences of distributions, and calibration of classifiers. Shapes: N examples, C classes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from stlm_kd.lazy import np, special
from stlm_kd.statistics import CONFIDENCE

if TYPE_CHECKING:
    import numpy.typing as npt


CALIBRATION_BINS = 15
_MOST_DRAWN = 20_000_000

Floats: TypeAlias = "npt.NDArray[np.float64]"
Integers: TypeAlias = "npt.NDArray[np.int64]"


@dataclass(frozen=True, slots=True)
class Kappa:
    """Cohen's κ with its standard error and 95 % interval; None if chance agreement is 1."""

    value: float | None
    stderr: float | None
    low: float | None
    high: float | None


def cohen_kappa(first_N: npt.ArrayLike, second_N: npt.ArrayLike) -> Kappa:
    """Cohen's κ of two classifications of the same examples: 1 for perfect agreement, 0 at chance.

    The standard error is the large-sample one that does not assume κ = 0 (Fleiss, Cohen and Everitt, "Large
    sample standard errors of kappa and weighted kappa", 1969, equation 13). It is too small with few
    examples, near 1 and with unbalanced classes, so the interval does not use it: see ``_kappa_interval``. If
    both assign one and the same class to all examples, κ is 0/0, and None.
    """
    first, second = (np.asarray(values, np.int64) for values in (first_N, second_N))
    assert first.shape == second.shape and first.ndim == 1 and len(first)
    table_CC = _joint(first, second)
    rows_C, columns_C = table_CC.sum(1), table_CC.sum(0)
    kappa, expected = float(_kappa_of(table_CC)), float(rows_C @ columns_C)
    if math.isnan(kappa):
        return Kappa(None, None, None, None)
    # for an example in (row i, column j): the weights of column i and row j
    weights_CC = columns_C[:, None] + rows_C[None, :]
    agreeing = np.diagonal(table_CC) @ (1 - np.diagonal(weights_CC) * (1 - kappa)) ** 2
    others_CC = table_CC * weights_CC**2
    differing = (1 - kappa) ** 2 * (others_CC.sum() - np.trace(others_CC))
    chance = (kappa - expected * (1 - kappa)) ** 2
    spread = max(float(agreeing + differing - chance), 0.0)
    stderr = math.sqrt(spread / len(first)) / (1 - expected)
    return Kappa(kappa, stderr, *_kappa_interval(table_CC * len(first), kappa))


def _kappa_interval(counts_CC: Floats, kappa: float) -> tuple[float, float]:
    """The 95 % interval: quantiles of κ under Dirichlet distributions of the table's proportions.

    Clopper and Pearson's interval takes its lower limit as if one more example had failed, and its upper
    limit as if one more had succeeded. Likewise, the lower limit of κ uses a prior with one more
    disagreement, and the upper limit a prior with one more agreement (and a quarter of an example for the
    other case, so that no cell has probability 0). The tests and
    ``benchmarks/scores/kappa_coverage.py`` simulate the coverage.
    """
    size = len(counts_CC)
    agreeing = np.eye(size, dtype=np.bool_)
    draws = max(1000, min(10_000, _MOST_DRAWN // counts_CC.size))
    limits = []
    for agree, differ, share in ((0.25, 1.0, (1 - CONFIDENCE) / 2), (1.0, 0.25, (1 + CONFIDENCE) / 2)):
        prior_CC = np.where(agreeing, agree / size, differ / (size * (size - 1)))
        drawn_RCC = np.random.default_rng(0).standard_gamma(counts_CC + prior_CC, (draws, size, size))
        limits.append(float(np.nanquantile(_kappa_of(drawn_RCC), share)))
    return min(limits[0], kappa), max(limits[1], kappa)


def _kappa_of(tables_CC: Floats) -> Floats:
    """κ of tables of counts or proportions, (…, C, C) → (…); NaN if chance agreement is 1."""
    tables_CC = tables_CC / tables_CC.sum((-2, -1), keepdims=True)
    observed = np.trace(tables_CC, axis1=-2, axis2=-1)
    expected = (tables_CC.sum(-1) * tables_CC.sum(-2)).sum(-1)
    defined = 1 - expected >= 1e-12
    found: Floats = np.where(defined, (observed - expected) / np.where(defined, 1 - expected, 1), np.nan)
    return found


def kl_divergence(first_NC: npt.ArrayLike, second_NC: npt.ArrayLike) -> Floats:
    """KL(first || second) of each example, (N,), in nats, from finite logits."""
    first, second = (_log_probabilities(logits) for logits in (first_NC, second_NC))
    found: Floats = np.maximum((np.exp(first) * (first - second)).sum(1), 0.0)  # rounding errors below 0
    return found


def jensen_shannon(first_NC: npt.ArrayLike, second_NC: npt.ArrayLike) -> Floats:
    """The Jensen-Shannon divergence of each example, (N,), in nats: symmetric, from 0 to log 2."""
    first, second = (_log_probabilities(logits) for logits in (first_NC, second_NC))
    middle = special.logsumexp(np.stack([first, second]), axis=0) - math.log(2)
    found: Floats = sum((np.exp(each) * (each - middle)).sum(1) for each in (first, second)) / 2
    return np.clip(found, 0.0, math.log(2))


def calibration_error(logits_NC: npt.ArrayLike, labels_N: npt.ArrayLike) -> float:
    """The expected calibration error (ECE): the gap between confidence and accuracy, 0 at best.

    Over ``CALIBRATION_BINS`` bins of equal width over the predicted class's probability: the absolute gaps
    between mean probability and accuracy, weighted by the number of examples (Guo et al., "On Calibration of
    Modern Neural Networks", 2017, section 2). With few examples it exceeds 0 even for a calibrated model.
    """
    confidence_N = np.exp(_log_probabilities(logits_NC)).max(1)
    right_N = np.asarray(logits_NC).argmax(1) == np.asarray(labels_N)
    bins_N = np.clip(np.ceil(confidence_N * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    gaps = np.bincount(bins_N, weights=confidence_N - right_N, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum()) / len(confidence_N)


def _joint(first_N: Integers, second_N: Integers) -> Floats:
    """The proportion of each pair of the classes that occur, (C, C)."""
    known, places = np.unique(np.concatenate([first_N, second_N]), return_inverse=True)
    first, second = np.split(places, 2)
    counts = np.bincount(first * len(known) + second, minlength=len(known) ** 2)
    return counts.reshape(len(known), len(known)) / len(first_N)


def _log_probabilities(logits_NC: npt.ArrayLike) -> Floats:
    logits = np.asarray(logits_NC, np.float64)
    assert logits.ndim == 2
    found: Floats = special.log_softmax(logits, axis=1)
    return found

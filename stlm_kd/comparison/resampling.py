"""Paired bootstrap for metrics that are not means over examples: F1, Matthews' and other correlations.

Shapes: M models, N examples, C classes or entity types, R resamples, K distinct columns of predictions and
label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from stlm_kd.eval.classification.metrics import f1_of_second, macro_f1, matthews, pearson, spearman
from stlm_kd.eval.fine_tuning import entities

RESAMPLES = 2000
_CHUNK = 2_000_000
ENOUGH_DOCUMENTS = 20
"""Documents needed to estimate the variance between them; with fewer, verdicts cover only these documents."""

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


OF_CLASSES: Mapping[str, Callable[[Floats], Floats]] = {
    "f1": f1_of_second,
    "macro_f1": macro_f1,
    "matthews": matthews,
}
OF_ENTITIES: Mapping[str, Callable[[Floats], Floats]] = {
    "entity_f1": entities.micro_f1,
    "entity_macro_f1": entities.macro_f1,
}
OF_NUMBERS: Mapping[str, Callable[[Floats, Floats], float]] = {"pearson": pearson, "spearman": spearman}


def resampled(
    metric: str, predicted_MN: npt.ArrayLike, labels_N: npt.ArrayLike, *, resamples: int = RESAMPLES
) -> tuple[Floats, Floats]:
    """A metric of each model on the original examples, (M,), and on resamples, (M, R).

    All models share the resamples, which are the same on every call. ``metric`` is a key of ``OF_CLASSES`` or
    ``OF_NUMBERS``; predictions (M, N) are classes or numbers.
    """
    if metric in OF_CLASSES:
        columns = np.vstack([np.asarray(labels_N, np.int64), np.asarray(predicted_MN, np.int64)])
        return _of_classes(OF_CLASSES[metric], columns, resamples)
    numbers = np.asarray(predicted_MN, np.float64), np.asarray(labels_N, np.float64)
    return _of_numbers(OF_NUMBERS[metric], *numbers, resamples)


def resampled_entities(
    metric: str, counts_MN: Sequence[Sequence[Mapping[str, Sequence[float]]]]
) -> tuple[Floats, Floats]:
    """As ``resampled``, for a key of ``OF_ENTITIES``: correct, predicted and labelled entities by type."""
    size, kinds = len(counts_MN[0]), entities.kinds_in(chain(*counts_MN))
    drawn_RN = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), size=RESAMPLES)
    weights_RN = np.vstack([np.ones(size), drawn_RN])
    sums = (np.tensordot(weights_RN, entities.entity_counts(found, kinds), axes=1) for found in counts_MN)
    values = np.stack([OF_ENTITIES[metric](sums_R3C) for sums_R3C in sums])
    return values[:, 0], values[:, 1:]


def resampled_blocks(
    values_DB: Sequence[Floats], sizes_DB: Sequence[Floats], *, resamples: int = 5000
) -> tuple[Floats, int, int] | None:
    """A ratio of sums over a text's blocks, on resamples, (R,); None for a single block.

    Also returns the effective number of units, and the number of documents within which blocks were drawn (0
    if documents were drawn). By document, ``values_DB`` has each block's numerator, such as a difference of
    nats, and ``sizes_DB`` its denominator, such as bytes.

    With ``ENOUGH_DOCUMENTS`` documents or more, documents are resampled, and the ratio generalises to similar
    documents. With fewer, it applies to these documents: runs of consecutive blocks are resampled within each
    (block bootstrap). Their length is twice that of Carlstein's rule for a series with this autocorrelation
    ("The use of subseries values for estimating the variance of a general statistic from a stationary
    sequence", 1986), which bounds the dependence that is lost. Deviations are scaled up to be unbiased in
    each document (Rao and Wu, "Resampling inference with complex survey data", 1988), beyond what
    ``statistics.from_resamples`` corrects. Blocks that were sampled at random from a document also form a
    series, in their order, with less similar neighbours.
    """
    totals = np.array(
        [[values.sum(), sizes.sum()] for values, sizes in zip(values_DB, sizes_DB, strict=True)]
    )
    ratio = float(totals[:, 0].sum() / totals[:, 1].sum())
    within = len(values_DB) if len(values_DB) < ENOUGH_DOCUMENTS else 0
    strata = _stretches(values_DB, sizes_DB) if within else [totals[:, 0] - ratio * totals[:, 1]]
    units = 1 + sum(len(stratum) - 1 for stratum in strata)
    if units < 2:
        return None
    generator, drawn_R = np.random.default_rng(0), np.zeros(resamples)
    for stratum in strata:
        count = len(stratum)
        scale = math.sqrt(count / (count - 1) * (units - 1) / units)
        rows = max(1, _CHUNK // count)
        for begin in range(0, resamples, rows):
            size = min(rows, resamples - begin)
            drawn_RU = generator.multinomial(count, np.full(count, 1 / count), size=size)
            drawn_R[begin : begin + size] += drawn_RU @ stratum * scale
    return ratio + drawn_R / totals[:, 1].sum(), units, within


def _stretches(values_DB: Sequence[Floats], sizes_DB: Sequence[Floats]) -> list[Floats]:
    """By document, deviations of block runs from the document's ratio; single-block documents are pooled."""
    pairs = list(zip(values_DB, sizes_DB, strict=True))
    several = [values - sizes * (values.sum() / sizes.sum()) for values, sizes in pairs if len(values) > 1]
    around = [one - one.mean() for one in several]
    squares = sum(float(one @ one) for one in around)
    near = sum(float(one[1:] @ one[:-1]) for one in around) / squares if squares else 0.0
    near, blocks = min(max(near, 0.0), 0.95), sum(map(len, around))
    length = max(1, math.ceil(2 * (2 * near / (1 - near**2)) ** (2 / 3) * blocks ** (1 / 3)))
    found = [
        np.array([part.sum() for part in np.array_split(one, max(2, len(one) // length))]) for one in several
    ]
    single = np.array([[values[0], sizes[0]] for values, sizes in pairs if len(values) == 1])
    if len(single) > 1:
        found.append(single[:, 0] - single[:, 1] * (single[:, 0].sum() / single[:, 1].sum()))
    return found


def _of_classes(
    metric: Callable[[Floats], Floats], columns_LN: Integers, resamples: int
) -> tuple[Floats, Floats]:
    """Rows are the label and each model's class; equal columns are drawn together, by their counts."""
    different_LK, counts_K = np.unique(columns_LN, axis=1, return_counts=True)
    size, num_classes = int(counts_K.sum()), 1 + int(columns_LN.max())
    drawn_RK = np.random.default_rng(0).multinomial(size, counts_K / size, size=resamples)
    weights_RK = np.vstack([counts_K, drawn_RK]).astype(np.float64)
    found = []
    for predicted_K in different_LK[1:]:
        cells_KC = np.zeros((len(predicted_K), num_classes**2))
        cells_KC[np.arange(len(predicted_K)), different_LK[0] * num_classes + predicted_K] = 1
        found.append(metric((weights_RK @ cells_KC).reshape(-1, num_classes, num_classes)))
    values = np.stack(found)
    return values[:, 0], values[:, 1:]


def _of_numbers(
    metric: Callable[[Floats, Floats], float], predicted_MN: Floats, labels_N: Floats, resamples: int
) -> tuple[Floats, Floats]:
    generator, size = np.random.default_rng(0), len(labels_N)
    whole = np.array([metric(row, labels_N) for row in predicted_MN])
    drawn = np.empty((len(predicted_MN), resamples))
    for place in range(resamples):
        chosen = generator.integers(size, size=size)
        drawn[:, place] = [metric(row, labels_N[chosen]) for row in predicted_MN[:, chosen]]
    return whole, drawn

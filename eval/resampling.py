"""The paired bootstrap of metrics that are no means over examples: F1, Matthews' and other correlations.

Shapes: M models, N examples, C classes or kinds of entities, R resamples, K different columns of predictions
and label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from stlm_kd.eval import entities
from stlm_kd.eval.classification import f1_of_second, macro_f1, matthews, pearson, spearman

RESAMPLES = 2000

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
    """A metric of each model on the examples as they are, (M,), and on drawn sets of them, (M, R).

    Every set is the same for all models, and always the same.

    Args:
        metric: One of ``OF_CLASSES`` or ``OF_NUMBERS``.
        predicted_MN: What each model says of each example, (M, N): its class or number.
        labels_N: What is right.
        resamples: R.
    """
    if metric in OF_CLASSES:
        columns = np.vstack([np.asarray(labels_N, np.int64), np.asarray(predicted_MN, np.int64)])
        return _of_classes(OF_CLASSES[metric], columns, resamples)
    numbers = np.asarray(predicted_MN, np.float64), np.asarray(labels_N, np.float64)
    return _of_numbers(OF_NUMBERS[metric], *numbers, resamples)


def resampled_entities(
    metric: str, counts_MN: Sequence[Sequence[Mapping[str, Sequence[float]]]], *, resamples: int = RESAMPLES
) -> tuple[Floats, Floats]:
    """As ``resampled``, of sentences with entities.

    Args:
        metric: One of ``OF_ENTITIES``.
        counts_MN: Of each model and sentence, by kind, the entities found right, predicted and labelled.
        resamples: R.
    """
    size, kinds = len(counts_MN[0]), entities.kinds_in(chain(*counts_MN))
    drawn_RN = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), size=resamples)
    weights_RN = np.vstack([np.ones(size), drawn_RN])
    sums = (np.tensordot(weights_RN, entities.entity_counts(found, kinds), axes=1) for found in counts_MN)
    values = np.stack([OF_ENTITIES[metric](sums_R3C) for sums_R3C in sums])
    return values[:, 0], values[:, 1:]


def _of_classes(
    metric: Callable[[Floats], Floats], columns_LN: Integers, resamples: int
) -> tuple[Floats, Floats]:
    """Columns hold the label and then each model's class; equal ones are drawn together, by their counts."""
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

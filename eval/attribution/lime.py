"""LIME: the weight of each word for a class's probability, by a linear model over texts with words removed.

Ribeiro, Singh and Guestrin, "Why should I trust you?", 2016, with the kernel, the feature selection and the
ridge regression (alpha 1) of their package ``lime``. The package draws 5,000 perturbations with replacement:
first the number of words to remove (1 to all, uniformly), then which. Here each distinct perturbation is
computed once and weighted by its expected count in the package's draw, so that the ridge penalty has the
same effect as there for any number of words.

Shapes: S perturbed texts, W words, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, TypeAlias

from stlm_kd.eval.attribution.words import Word, without
from stlm_kd.lazy import np

if TYPE_CHECKING:
    import numpy.typing as npt


KERNEL_WIDTH = 25
"""Width of the exponential kernel on 100 times the cosine distance, as in ``lime``."""

DRAWS = 4999
"""Perturbations that ``lime`` draws by default, in addition to the text itself."""

Floats: TypeAlias = "npt.NDArray[np.float64]"
Kept: TypeAlias = "npt.NDArray[np.bool_]"
Predict = Callable[[Sequence[tuple[str, ...]]], Floats]
"""Computes class probabilities, (S, C), of texts."""


def draws_of(num_words: int, samples: int) -> int:
    """The number of distinct perturbations, at most ``samples``: n words have 2^n.

    >>> [draws_of(words, 500) for words in (1, 8, 9)]
    [2, 256, 500]
    """
    return samples if num_words >= samples.bit_length() else min(samples, 1 << num_words)


def perturbations(num_words: int, *, samples: int, seed: int) -> tuple[Kept, Floats]:
    """The words that each perturbed text keeps, (S, W), all distinct, and the weight of each, (S,).

    The first is the text itself, with weight 1. The others are a stratified sample of ``lime``'s
    distribution: the perturbations that remove k words have a total weight of ``DRAWS / W``, for each k from
    1 to W, divided equally. The samples are spread evenly over the strata, as far as these have enough
    distinct perturbations; with fewer samples than strata, the strata are sampled too.
    """
    assert num_words >= 1 and samples >= 2
    generator = np.random.default_rng([seed, num_words])
    sizes = [math.comb(num_words, removed) for removed in range(1, num_words + 1)]
    order = generator.permutation(num_words).tolist()
    left = draws_of(num_words, samples) - 1
    if left >= num_words:
        order.sort(key=sizes.__getitem__)
    kept, counts = [np.ones((1, num_words), np.bool_)], [np.ones(1)]
    strata = min(num_words, left)
    for place, stratum in enumerate(order[:strata]):
        taken = min(sizes[stratum], -(-left // (strata - place)))
        kept.append(~_subsets(num_words, stratum + 1, taken, generator))
        counts.append(np.full(taken, DRAWS / strata / taken))
        left -= taken
    return np.concatenate(kept), np.concatenate(counts)


def _subsets(num_words: int, size: int, count: int, generator: np.random.Generator) -> Kept:
    """``count`` distinct subsets of a size, drawn uniformly, as a boolean mask (count, W)."""
    possible = math.comb(num_words, size)
    if possible <= 2 * count:
        chosen = set(generator.choice(possible, size=count, replace=False).tolist())
        members = [one for place, one in enumerate(combinations(range(num_words), size)) if place in chosen]
        found = np.zeros((count, num_words), np.bool_)
        found[np.arange(count)[:, None], members] = True
        return found
    found = np.zeros((0, num_words), np.bool_)
    while len(found) < count:
        ranks = generator.random((count, num_words)).argsort(1).argsort(1)
        together = np.concatenate([found, ranks < size])
        _, first = np.unique(together, axis=0, return_index=True)
        found = together[np.sort(first)]
    return found[:count]


def lime_weights(
    predict: Predict,
    texts: tuple[str, ...],
    words: Sequence[Word],
    target: int,
    *,
    samples: int,
    features: int | None,
    seed: int,
) -> Floats:
    """The weight of each word of one or two texts for a class's probability, (W,).

    ``predict`` is called once, with all ``samples`` perturbed texts: distinct, and including the text itself.
    At most ``features`` words get a weight, the others 0; None: all.
    """
    kept_SW, counts_S = perturbations(len(words), samples=samples, seed=seed)
    probabilities_SC = predict([without(texts, words, kept_W) for kept_W in kept_SW])
    distances_S = 100 * (1 - np.sqrt(kept_SW.mean(1)))
    weights_S = counts_S * np.sqrt(np.exp(-(distances_S**2) / KERNEL_WIDTH**2))
    return linear_weights(kept_SW, probabilities_SC[:, target], weights_S, features)


def linear_weights(kept_SW: Kept, values_S: Floats, weights_S: Floats, features: int | None) -> Floats:
    """The coefficients of ridge regression on the selected words, 0 for others, (W,).

    Selects at most ``features`` words (None: all), as the package does by default: up to six by forward
    selection, more by the largest coefficients of a regression on all words.
    """
    from sklearn.linear_model import Ridge  # slow import

    def fitted(alpha: float, data: Floats) -> Any:  # scikit-learn has no types
        return Ridge(alpha=alpha).fit(data, values_S, sample_weight=weights_S)

    def fit_with(word: int) -> float:
        data = data_SW[:, [*selected, word]]
        r2: float = fitted(0, data).score(data, values_S, sample_weight=weights_S)
        return r2

    data_SW = kept_SW.astype(np.float64)
    selected = every = list(range(data_SW.shape[1]))
    if features is not None and features < len(every):
        if features > 6:
            sizes_W = np.abs(fitted(0.01, data_SW).coef_)  # uncopied: ties as in the package
            selected = sorted(every, key=lambda word: -sizes_W[word])[:features]
        else:
            selected = []
            for _ in range(features):
                selected = [*selected, max((word for word in every if word not in selected), key=fit_with)]
    weights_W = np.zeros(len(every))
    weights_W[selected] = fitted(1, data_SW[:, selected]).coef_
    return weights_W

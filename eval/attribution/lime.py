"""LIME: the weight of each word for a class's probability, by a linear model of texts without some words.

Ribeiro, Singh and Guestrin, "Why should I trust you?", 2016, with the kernel, the feature selection and the
ridge regression (alpha 1) of their package ``lime``. The package draws 5,000 perturbations with replacement:
how many words to leave out (1 to all, uniformly), then which. Here no perturbation is computed twice; each
counts as often as the package is expected to draw it, so that the ridge penalty has the same effect as there,
whatever the number of words.

Shapes: S perturbed texts, W words, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Protocol

import numpy as np
import numpy.typing as npt

from stlm_kd.errors import MissingResourceError
from stlm_kd.eval.attribution.words import Word, without

KERNEL_WIDTH = 25
"""Of the exponential kernel on 100 times the cosine distance, as in ``lime``."""

DRAWS = 4999
"""Perturbations that ``lime`` draws by default, beside the text itself."""

Floats = npt.NDArray[np.float64]
Kept = npt.NDArray[np.bool_]
Predict = Callable[[Sequence[tuple[str, ...]]], Floats]
"""The probabilities of the classes, (S, C), of texts."""


def draws_of(num_words: int, samples: int) -> int:
    """How many different perturbations there are to draw, at most ``samples``: n words have 2^n.

    >>> [draws_of(words, 500) for words in (1, 8, 9)]
    [2, 256, 500]
    """
    return samples if num_words >= samples.bit_length() else min(samples, 1 << num_words)


def perturbations(num_words: int, *, samples: int, seed: int) -> tuple[Kept, Floats]:
    """Which words each perturbed text keeps, (S, W), all different, and how often each counts, (S,).

    The first one is the text itself, which counts once. The others are a stratified sample of what ``lime``
    draws: those that leave out k words count ``DRAWS / W`` in all, for each k from 1 to W, and equally among
    themselves. The strata share the samples evenly, as far as they have so many different perturbations;
    where there are fewer samples than strata, the strata are drawn too.
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
    """So many different subsets of a size, drawn uniformly, as (count, W) with their members true."""
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
    """The weight of each word for a class's probability, (W,).

    Args:
        predict: Asked once, for all perturbed texts.
        texts: One or two.
        words: Of the texts, at least one.
        target: The class.
        samples: Perturbed texts, all different, the text itself among them.
        features: So many words at most get a weight, the others 0; None: all do.
        seed: Of the draw.

    Raises:
        MissingResourceError: The package ``lime`` is not there.
    """
    kept_SW, counts_S = perturbations(len(words), samples=samples, seed=seed)
    base = surrogate(counts_S)
    probabilities_SC = predict([without(texts, words, kept_W) for kept_W in kept_SW])
    distances_S = 100 * (1 - np.sqrt(kept_SW.mean(1)))
    chosen = len(words) if features is None else min(features, len(words))
    _, found, _, _ = base.explain_instance_with_data(
        kept_SW.astype(np.float64),
        probabilities_SC,
        distances_S,
        target,
        chosen,
        feature_selection="none" if chosen == len(words) else "auto",
    )
    weights_W = np.zeros(len(words))
    for word, weight in found:
        weights_W[word] = weight
    return weights_W


class _Surrogate(Protocol):
    """What is used of ``lime.lime_base.LimeBase``."""

    def explain_instance_with_data(
        self,
        neighborhood_data: Floats,
        neighborhood_labels: Floats,
        distances: Floats,
        label: int,
        num_features: int,
        feature_selection: str,
    ) -> tuple[float, Sequence[tuple[int, float]], float, Floats]:
        """Intercept, (word, weight) of the words that get one, R², and what it says of the text itself."""


def surrogate(counts_S: Floats | float = 1.0) -> _Surrogate:
    """The package's regression, in which each perturbation counts so often.

    Raises:
        MissingResourceError: The package is not installed.
    """
    try:
        from lime.lime_base import LimeBase
    except ModuleNotFoundError as error:
        raise MissingResourceError(
            "lime: the package is not installed; pip install 'stlm-kd[attributions]', or leave lime out of "
            "attributions"
        ) from error

    def weights(distances_S: Floats) -> Floats:
        return np.asarray(counts_S * np.sqrt(np.exp(-(distances_S**2) / KERNEL_WIDTH**2)), np.float64)

    found: _Surrogate = LimeBase(weights, random_state=np.random.RandomState(0))  # nothing is drawn
    return found

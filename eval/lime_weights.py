"""LIME: what a classifier makes of each word, by a linear model of what it says of texts without some words.

Ribeiro, Singh and Guestrin, "Why should I trust you?", 2016, with the kernel, the ways to choose words and
the ridge regression of their package ``lime``. Its sampling is not used: it draws with replacement, so that
most perturbations of short texts are repeats. Here each is there once.

Shapes: S perturbed texts, W words, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from stlm_kd.errors import EnvironmentFault
from stlm_kd.eval.words import Word, without

KERNEL_WIDTH = 25
"""Of the exponential kernel on 100 times the cosine distance, as in ``lime``."""

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


def perturbations(num_words: int, *, samples: int, seed: int) -> Kept:
    """Which words each perturbed text keeps, (S, W); all different, the first one keeps all.

    They are the first ``samples`` different ones of a draw like that of ``lime`` (how many words to leave
    out, from 1 to all, then which), or all that there are.
    """
    assert num_words >= 1 and samples >= 2
    wanted = draws_of(num_words, samples)
    if wanted == 2**num_words:
        places = np.arange(wanted)[::-1, None] >> np.arange(num_words)
        return np.asarray(places & 1, np.bool_)
    generator = np.random.default_rng([seed, num_words])
    found = np.ones((1, num_words), np.bool_)
    while len(found) < wanted:
        removed = generator.integers(1, num_words + 1, size=(wanted, 1))
        ranks = generator.random((wanted, num_words)).argsort(1).argsort(1)
        together = np.concatenate([found, ranks >= removed])
        _, first = np.unique(together, axis=0, return_index=True)
        found = together[np.sort(first)]
    return found[:wanted]


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
        EnvironmentFault: The package ``lime`` is not there.
    """
    base = surrogate()
    kept_SW = perturbations(len(words), samples=samples, seed=seed)
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


def surrogate() -> _Surrogate:
    """The package's.

    Raises:
        EnvironmentFault: It is not there.
    """
    try:
        from lime.lime_base import LimeBase
    except ModuleNotFoundError as error:
        raise EnvironmentFault(
            "lime: the package is not installed; pip install 'stlm-kd[attributions]', or leave lime out of "
            "attributions"
        ) from error
    found: _Surrogate = LimeBase(_kernel, random_state=np.random.RandomState(0))  # nothing is drawn
    return found


def _kernel(distances_S: Floats) -> Floats:
    return np.asarray(np.sqrt(np.exp(-(distances_S**2) / KERNEL_WIDTH**2)), np.float64)

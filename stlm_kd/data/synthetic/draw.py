"""Random choices that are the same in every version of Python.

Python guarantees only ``Random.random``'s sequence for a given seed, so every choice uses it.
"""

from __future__ import annotations

import hashlib
from bisect import bisect
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from random import Random
from typing import TypeVar

T = TypeVar("T")


class Draws:
    """A stream of random choices seeded by its name: different names give independent streams."""

    def __init__(self, name: str) -> None:
        digest = hashlib.sha256(name.encode()).digest()
        self._random = Random(int.from_bytes(digest[:8], "big"))

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._random.random() < probability

    def uniform(self, items: Sequence[T]) -> T:
        """One of the items, all equally likely."""
        return items[int(self._random.random() * len(items))]

    def zipf(self, items: Sequence[T]) -> T:
        """One of the items; the probability of rank r (from 1) is proportional to 1 / r."""
        return items[bisect(_harmonic(len(items)), self._random.random())]

    def weighted(self, items: Sequence[T], weights: Sequence[float]) -> T:
        """One of the items, with probabilities proportional to the weights."""
        cumulative = list(accumulate(weights))
        return items[bisect(cumulative, self._random.random() * cumulative[-1], hi=len(items) - 1)]


@cache
def _harmonic(count: int) -> tuple[float, ...]:
    """Cumulative probabilities of all ranks but the last, which has the remainder."""
    shares = [1.0 / rank for rank in range(1, count + 1)]
    total = sum(shares)
    return tuple(accumulate(share / total for share in shares[:-1]))

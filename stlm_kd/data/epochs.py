"""The order of rows in an epoch: shuffled in memory, or computed row by row where there are very many.

Up to ``LARGEST_SHUFFLED`` rows of an epoch, and of the data, their numbers are shuffled. Above, the order is
a keyed permutation, of which a step computes its own rows: an epoch takes no memory, and no time to begin.
Both are functions of the seed and the epoch alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from stlm_kd.lazy import np

if TYPE_CHECKING:
    import numpy.typing as npt

Integers: TypeAlias = "npt.NDArray[np.int64]"

LARGEST_SHUFFLED = 1 << 22
"""The most rows that are shuffled in memory, 4,194,304: 32 MiB, and the longest wait for an epoch's begin."""

_ORDER, _SHARE = range(2)  # purpose of a random generator, part of its seed
_ROUNDS = 6


class EpochOrder:
    """Which rows an epoch has, in which order; see ``BatchStream`` for weights.

    ``sizes`` are the numbers of rows of the parts, which are numbered consecutively.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], *, seed: int, epoch: int) -> None:
        self.epoch = epoch
        self._key = [seed, epoch]
        self._sizes, self._whole = sizes, [int(weight) for weight in weights]
        self._shares = [
            round((weight - whole) * size)
            for size, weight, whole in zip(sizes, weights, self._whole, strict=True)
        ]
        own = [whole * size + share for size, whole, share in self._parts()]
        self._ends = np.cumsum(own)
        self._shuffled: Integers | None = None
        if max(len(self), sum(sizes)) <= LARGEST_SHUFFLED:
            self._shuffled = np.concatenate([self._drawn(index) for index in range(len(sizes))])
            np.random.default_rng([*self._key, _ORDER]).shuffle(self._shuffled)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def rows(self, begin: int, end: int) -> Integers:
        """The numbers of the rows from ``begin`` to before ``end``, or to the epoch's end."""
        if self._shuffled is not None:
            return self._shuffled[begin:end]
        places = permuted(np.arange(begin, min(end, len(self))), len(self), key=[*self._key, _ORDER])
        return self._computed(places)

    def _parts(self) -> list[tuple[int, int, int]]:
        return [*zip(self._sizes, self._whole, self._shares, strict=True)]

    def _drawn(self, index: int) -> Integers:
        """The rows of one part that occur in an epoch."""
        size, whole, share = self._parts()[index]
        rows = np.arange(size) + sum(self._sizes[:index])
        generator = np.random.default_rng([*self._key, _SHARE, index])
        chosen = [generator.choice(rows, share, replace=False)] if share else []
        return np.concatenate([*[rows] * whole, *chosen, rows[:0]])

    def _computed(self, places: Integers) -> Integers:
        """The rows at places of the unshuffled epoch: each part's rows, whole times, then a share of them."""
        rows = np.empty_like(places)
        part_of = np.searchsorted(self._ends, places, side="right")
        for index in np.unique(part_of).tolist():
            size, whole, share = self._parts()[index]
            own = places[part_of == index] - (int(self._ends[index]) - whole * size - share)
            extra = own >= whole * size
            own[extra] = permuted(own[extra] - whole * size, size, key=[*self._key, _SHARE, index])
            rows[part_of == index] = own % size + sum(self._sizes[:index])
        return rows


def permuted(places: Integers, size: int, *, key: Sequence[int]) -> Integers:
    """Where a permutation of ``range(size)``, chosen by a key, takes these places.

    A Feistel network on the next even number of bits, applied until the result is below the size (Black and
    Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).

    >>> sorted(permuted(np.arange(5), 5, key=[1, 2]).tolist())
    [0, 1, 2, 3, 4]
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.random.default_rng(key).integers(1 << 64, size=_ROUNDS, dtype=np.uint64)
    values = places.astype(np.uint64)
    outside = np.ones(len(values), np.bool_)
    while outside.any():
        left, right = values[outside] >> half, values[outside] & mask
        for one in keys:
            left, right = right, left ^ (mixed(right ^ one) & mask)
        values[outside] = left << half | right
        outside = values >= size
    return values.astype(np.int64)


def mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Well-mixed bits of each number (the finaliser of SplitMix64)."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)

"""How the tokens of one vocabulary go on from the beginnings of texts in another: a table of paths.

A path is a sequence of the student's tokens from a point at which a token of the teacher's begins, too. The
teacher's token goes on from a path if it begins with it and the student's next token begins within it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from stlm_kd.lazy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Pieces = tuple[int, ...]
"""The student's tokens of a part of a text."""


@dataclass(frozen=True, slots=True)
class PathTable:
    """The student's next token on each path through the teacher's tokens, as E entries sorted by path.

    Attributes:
        numbers: The number of each path that some token goes on from; 0 is the empty path.
        starts: The entries of path P are those from ``starts[P]`` up to ``starts[P + 1]``.
        tokens: The teacher's token of each entry, (E,).
        following: The student's token after the path, (E,).
        shares: Of the occurrences of the teacher's token, those that begin with the path and what follows.
    """

    numbers: Mapping[Pieces, int]
    starts: NDArray[np.int64]
    tokens: NDArray[np.int64]
    following: NDArray[np.int64]
    shares: NDArray[np.float32]

    @classmethod
    def of(cls, seen: Mapping[int, Mapping[Pieces, int]]) -> PathTable:
        """The table of the teacher's tokens with how often each was seen to be covered by which tokens."""
        shares: dict[Pieces, Counter[tuple[int, int]]] = defaultdict(Counter)
        shares[()] = Counter()
        for token, covering in seen.items():
            total = sum(covering.values())
            for pieces, count in covering.items():
                for end, following in enumerate(pieces):
                    shares[pieces[:end]][token, following] += count / total  # type: ignore[assignment]
        numbers = {path: number for number, path in enumerate(sorted(shares))}
        entries = [(*pair, share) for path in numbers for pair, share in sorted(shares[path].items())]
        return cls(
            numbers,
            np.cumsum([0, *(len(shares[path]) for path in numbers)]),
            np.array([token for token, _, _ in entries], np.int64),
            np.array([following for _, following, _ in entries], np.int64),
            np.array([share for _, _, share in entries], np.float32),
        )


def covering(
    own: Iterable[tuple[int, int]], pieces: Sequence[int], sizes: Sequence[int]
) -> dict[tuple[int, int], Pieces]:
    """For each of a text's tokens that begins where a piece begins, the pieces up to its end or beyond.

    Args:
        own: The text's tokens, with the size of each.
        pieces: The same text in the other vocabulary, with
        sizes: the size of each.

    Returns:
        The covering pieces by the token and its number in the text; only exact ones end where it ends.

    >>> covering([(7, 2), (8, 3)], [1, 2, 3], [1, 1, 3])
    {(0, 7): (1, 2), (1, 8): (3,)}
    """
    starts = {begin: i for i, begin in enumerate(accumulate(sizes, initial=0))}
    ends = [*accumulate(sizes)]
    found, at = {}, 0
    for number, (token, size) in enumerate(own):
        first = starts.get(at)
        at += size
        if first is None or first == len(pieces):
            continue
        last = first
        while last + 1 < len(pieces) and ends[last] < at:
            last += 1
        found[number, token] = tuple(pieces[first : last + 1])
    return found

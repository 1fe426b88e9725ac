"""Learn the merges of a byte-pair encoding, with a preference among the tokens that they make."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class LearnedMerges:
    """Merges in order, and how often each token then occurs in the text."""

    merges: list[tuple[str, str]]
    uses: Counter[str]


def learn_merges(
    pretokens: Mapping[str, int],
    alphabet: Iterable[str],
    num_tokens: int,
    weight: Callable[[str], float] = lambda token: 1.0,
) -> LearnedMerges:
    """The merges, in order, that make ``num_tokens`` tokens beside the characters of ``alphabet``.

    Each merge joins the pair whose occurrences, times the weight of the token that it makes, are most;
    among equals the one whose parts are oldest. With equal weights these are the merges of Sennrich et al.
    (2016). Fewer are returned if the text has no pair left. A pre-token's characters are all of ``alphabet``.

    Args:
        pretokens: How often each occurs.
        alphabet: Single characters, oldest first.
        num_tokens: New tokens; two merges may make the same one.
        weight: Above 0, of the token that a merge makes.
    """
    words = _Words(pretokens, alphabet, weight)
    return LearnedMerges(words.learn(num_tokens), words.token_uses())


class _Words:
    """Pre-tokens as lists of token numbers, and where each pair of neighbours occurs."""

    def __init__(
        self, pretokens: Mapping[str, int], alphabet: Iterable[str], weight: Callable[[str], float]
    ) -> None:
        self.tokens = list(alphabet)
        self.number_of = {token: number for number, token in enumerate(self.tokens)}
        self.weight = weight
        self.words = [[self.number_of[character] for character in text] for text in pretokens]
        self.uses = list(pretokens.values())
        self.counts: Counter[Pair] = Counter()
        self.places: dict[Pair, list[int]] = {}  # words in which a pair occurred; some no longer have it
        for place, (word, uses) in enumerate(zip(self.words, self.uses, strict=True)):
            for pair in pairwise(word):
                self.counts[pair] += uses
                self.places.setdefault(pair, []).append(place)
        self.queue = [(self._priority(pair), pair) for pair in self.counts]
        heapq.heapify(self.queue)

    def _priority(self, pair: Pair) -> float:
        return -self.counts[pair] * self.weight(self.tokens[pair[0]] + self.tokens[pair[1]])

    def learn(self, num_tokens: int) -> list[tuple[str, str]]:
        merges: dict[tuple[str, str], None] = {}  # one may apply again to what a later one has made
        size = len(self.tokens) + num_tokens
        while len(self.tokens) < size and self.queue:
            priority, pair = heapq.heappop(self.queue)
            if self.counts[pair] <= 0:
                continue
            if (now := self._priority(pair)) != priority:  # it has become rarer since
                heapq.heappush(self.queue, (now, pair))
                continue
            a, b = (self.tokens[number] for number in pair)
            merges[a, b] = None
            made = self.number_of.setdefault(a + b, len(self.tokens))
            if made == len(self.tokens):
                self.tokens.append(a + b)
            self._merge(pair, made)
        return list(merges)

    def token_uses(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for word, uses in zip(self.words, self.uses, strict=True):
            for number in word:
                found[self.tokens[number]] += uses
        return found

    def _merge(self, pair: Pair, made: int) -> None:
        """Put ``made`` in place of the pair in every word, and count the new neighbours."""
        grown: set[Pair] = set()
        for place in set(self.places.pop(pair)):
            word, uses = self.words[place], self.uses[place]
            merged = _joined(word, pair, made)
            if len(merged) == len(word):
                continue
            for one in pairwise(word):
                self.counts[one] -= uses
            for one in pairwise(merged):
                self.counts[one] += uses
                if made in one:
                    grown.add(one)
                    self.places.setdefault(one, []).append(place)
            self.words[place] = merged
        del self.counts[pair]
        for one in grown:
            heapq.heappush(self.queue, (self._priority(one), one))


def _joined(word: list[int], pair: Pair, made: int) -> list[int]:
    merged: list[int] = []
    first, second = pair
    place, last = 0, len(word) - 1
    while place <= last:
        if place < last and word[place] == first and word[place + 1] == second:
            merged.append(made)
            place += 2
        else:
            merged.append(word[place])
            place += 1
    return merged

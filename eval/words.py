"""The words of a text, and the text without some of them.

Shapes: W words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_PIECE = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class Word:
    """Where a word stands: in which of an example's texts, and at which of its characters."""

    text: str
    side: int
    begin: int
    end: int


def words_of(texts: Sequence[str]) -> tuple[Word, ...]:
    """What stands between blanks, without the punctuation around it; each occurrence is one of its own.

    Of texts with nothing else, pieces of punctuation are the words.

    >>> [word.text for word in words_of(["The cat's (old) mother-in-law, e.g., left -- twice."])]
    ['The', "cat's", 'old', 'mother-in-law', 'e.g', 'left', 'twice']
    """
    pieces = [
        (side, found.start(), found.end())
        for side, text in enumerate(texts)
        for found in _PIECE.finditer(text)
    ]
    bare = [(side, *_bare(texts[side], begin, end)) for side, begin, end in pieces]
    places = [place for place in bare if place[1] < place[2]] or pieces
    return tuple(Word(texts[side][begin:end], side, begin, end) for side, begin, end in places)


def without(texts: Sequence[str], words: Sequence[Word], kept_W: npt.NDArray[np.bool_]) -> tuple[str, ...]:
    """The texts without the words that are not kept; the blanks before a word go with it.

    >>> texts = ["The cat, an old one, left."]
    >>> without(texts, words_of(texts), np.array([True, True, False, False, False, True]))
    ('The cat,, left.',)
    """
    if kept_W.all():
        return tuple(texts)
    return tuple(
        "".join(
            _kept_pieces(text, [(w, bool(k)) for w, k in zip(words, kept_W, strict=True) if w.side == side])
        ).strip()
        for side, text in enumerate(texts)
    )


def _kept_pieces(text: str, words: Sequence[tuple[Word, bool]]) -> Iterator[str]:
    last = 0
    for word, is_kept in words:
        between = text[last : word.begin]
        yield between if is_kept else between.rstrip()
        if is_kept:
            yield word.text
        last = word.end
    yield text[last:]


def _bare(text: str, begin: int, end: int) -> tuple[int, int]:
    """The part of a piece without punctuation and symbols at its ends; empty where it is nothing else."""
    while begin < end and _is_punctuation(text[begin]):
        begin += 1
    while begin < end and _is_punctuation(text[end - 1]):
        end -= 1
    return begin, end


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"

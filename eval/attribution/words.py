"""Splits texts into W words, removes words from texts, and holds a weight for each word."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from stlm_kd.errors import MissingResourceError
from stlm_kd.lazy import np

if TYPE_CHECKING:
    import numpy.typing as npt


_PIECE = re.compile(r"\S+")
_THAI = "\u0e00-\u0e7f"
_KANA = "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"
_HAN = "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_UNSPACED = re.compile(f"[{_THAI}]+|[{_KANA}{_HAN}]+")


@dataclass(frozen=True, slots=True)
class Word:
    """A word's position: the index of the text, and the character range."""

    text: str
    side: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Weights:
    """The attribution of each word of an example, for one class.

    LIME: ``again`` are the weights of another draw; equal to ``values`` if all perturbations are included.
    Integrated gradients: ``missing`` is the completeness error in nats, and ``change`` the sum that the
    weights should have.
    """

    values: tuple[float, ...]
    again: tuple[float, ...] | None = None
    missing: float | None = None
    change: float | None = None


def words_of(texts: Sequence[str]) -> tuple[Word, ...]:
    """Whitespace-separated words without surrounding punctuation; each occurrence is separate.

    Runs of Chinese, Japanese and Thai, which are written without spaces, are segmented by BudouX (its default
    models; for Japanese, into phrases with their particles), or a MissingResourceError if it is not
    installed. In texts without any words, pieces of punctuation count as words.

    >>> [word.text for word in words_of(["The cat's (old) mother-in-law, e.g., left -- twice."])]
    ['The', "cat's", 'old', 'mother-in-law', 'e.g', 'left', 'twice']
    """
    pieces = [
        (side, begin, end)
        for side, text in enumerate(texts)
        for found in _PIECE.finditer(text)
        for begin, end in _divided(text, found.start(), found.end())
    ]
    bare = [(side, *_bare(texts[side], begin, end)) for side, begin, end in pieces]
    places = [place for place in bare if place[1] < place[2]] or pieces
    return tuple(Word(texts[side][begin:end], side, begin, end) for side, begin, end in places)


def without(texts: Sequence[str], words: Sequence[Word], kept_W: npt.NDArray[np.bool_]) -> tuple[str, ...]:
    """The texts without the words that are not kept; whitespace before a removed word is removed too.

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


def _divided(text: str, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Split a whitespace-separated piece at boundaries of scripts without spaces, and segment these."""
    for run in _UNSPACED.finditer(text, begin, end):
        if begin < run.start():
            yield begin, run.start()
        begin = run.start()
        for word in _segmenter(_language(run[0]))(run[0]):
            yield begin, begin + len(word)
            begin += len(word)
    if begin < end:
        yield begin, end


def _language(run: str) -> str:
    """The BudouX model for a run of one script."""
    if re.search(f"[{_THAI}]", run):
        return "thai"
    return "japanese" if re.search(f"[{_KANA}]", run) else "simplified_chinese"


@lru_cache
def _segmenter(language: str) -> Callable[[str], list[str]]:
    try:
        import budoux
    except ModuleNotFoundError as error:
        raise MissingResourceError(
            f"attributions: a text is in a script without spaces ({language.replace('_', ' ')}), and the "
            "package budoux, which finds its words, is not installed; pip install 'stlm-kd[attributions]'"
        ) from error
    parse: Callable[[str], list[str]] = getattr(budoux, f"load_default_{language}_parser")().parse
    return parse


def _bare(text: str, begin: int, end: int) -> tuple[int, int]:
    """The piece without leading and trailing punctuation and symbols; empty if nothing else is left."""
    while begin < end and _is_punctuation(text[begin]):
        begin += 1
    while begin < end and _is_punctuation(text[end - 1]):
        end -= 1
    return begin, end


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"

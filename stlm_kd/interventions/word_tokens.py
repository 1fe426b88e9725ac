"""The tokens of a vocabulary that text is made of, and which of them are words of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stlm_kd.data.batch import Integers
from stlm_kd.vocabulary.token_bytes import Vocabulary


@dataclass(frozen=True, slots=True, eq=False)
class WordTokens:
    """What may stand in the place of a token.

    Attributes:
        ids: Every token that stands for text; none that is special or unused.
        words: The tokens that begin a word and are letters alone, which are whole words if no token that goes
            on follows.
        continuations: The tokens that go on with a word.
        name: Of the vocabulary, for messages.
    """

    ids: Integers
    words: Mapping[int, str]
    continuations: frozenset[int] = frozenset()
    name: str = "the vocabulary"

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> WordTokens:
        """The tokens of a tokenizer's vocabulary."""
        told = [(number, text) for number, text in enumerate(vocabulary.surfaces) if text is not None]
        spelled = [(number, _word(text)) for number, text in told]
        return cls(
            ids=np.array([number for number, _ in told], np.int64),
            words={number: word for number, word in spelled if word is not None},
            continuations=frozenset(number for number, text in told if _goes_on(text)),
            name=vocabulary.name,
        )


def _word(surface: bytes) -> str | None:
    """The word that begins with this token; None of one that goes on with a word, or has other characters."""
    try:
        text = surface.decode()
    except UnicodeDecodeError:
        return None
    return text[1:] if text.startswith(" ") and text[1:].isalpha() else None


def _goes_on(surface: bytes) -> bool:
    """Whether a token begins with a letter, and so goes on with the word before it."""
    text = surface.decode(errors="replace")
    return text[:1].isalpha()

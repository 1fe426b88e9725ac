"""The text tokens of a vocabulary, and which of them are whole words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stlm_kd.data.batch import Integers
from stlm_kd.lazy import np
from stlm_kd.vocabulary.token_bytes import Vocabulary


@dataclass(frozen=True, slots=True, eq=False)
class WordTokens:
    """Candidate replacements of tokens, and the name of their vocabulary for messages.

    ``ids`` are all text tokens, no special or unused ones; ``words`` those that begin a word and consist of
    letters, which are whole words if none of ``continuations``, which begin with a letter, follows.
    """

    ids: Integers
    words: Mapping[int, str]
    continuations: frozenset[int] = frozenset()
    name: str = "the vocabulary"

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> WordTokens:
        """The tokens of a tokenizer's vocabulary."""
        decoded = [(number, text) for number, text in enumerate(vocabulary.surfaces) if text is not None]
        spelled = [(number, _word(text)) for number, text in decoded]
        return cls(
            ids=np.array([number for number, _ in decoded], np.int64),
            words={number: word for number, word in spelled if word is not None},
            continuations=frozenset(
                number for number, text in decoded if text.decode(errors="replace")[:1].isalpha()
            ),
            name=vocabulary.name,
        )


def _word(surface: bytes) -> str | None:
    """The word of a token that begins one; None for a continuation or other characters."""
    try:
        text = surface.decode()
    except UnicodeDecodeError:
        return None
    return text[1:] if text.startswith(" ") and text[1:].isalpha() else None

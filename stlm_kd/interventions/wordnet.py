"""Lexical relations between the tokens of a vocabulary.

The relations are from WordNet (Miller, "WordNet: A Lexical Database for English", 1995), through NLTK.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from typing import Any, Literal

from stlm_kd.errors import MissingResourceError, ModelError
from stlm_kd.interventions.word_tokens import WordTokens

Relation = Literal["synonym", "antonym", "meronym", "holonym"]

_ENDINGS = {"n": ("s",), "v": ("ing", "ed", "s"), "a": ("est", "er"), "r": ()}
"""Inflectional endings by part of speech; WordNet contains lemmas only."""


class Thesaurus:
    """One relation between the words of a vocabulary.

    Args:
        lexicon: The vocabulary's tokens.
        relation: The relation.

    Raises:
        MissingResourceError: NLTK or WordNet is not installed.
    """

    def __init__(self, lexicon: WordTokens, relation: Relation) -> None:
        self._lexicon, self._relation = lexicon, relation
        self._ids: dict[str, int] = {}
        for number, word in lexicon.words.items():
            self._ids.setdefault(word, number)
        self._known: dict[int, tuple[int, ...]] = {}
        self._wordnet = _wordnet()

    def of(self, token: int) -> tuple[int, ...]:
        """Tokens whose words are related to a token's word.

        For an inflected word, related words in the same form if they are single tokens, otherwise their
        lemmas. Capitalisation is kept if possible.
        """
        if token not in self._known:
            word = self._lexicon.words.get(token)
            found = [] if word is None else [self._token(other, word) for other in self._words(word.lower())]
            self._known[token] = tuple(dict.fromkeys(n for n in found if n is not None and n != token))
        return self._known[token]

    def has_any(self) -> bool:
        """Whether any word of the vocabulary has a related word."""
        return any(self.of(token) for token in self._lexicon.words)

    def _words(self, word: str) -> Iterator[str]:
        """Related words in every part of speech of the word."""
        for part, endings in _ENDINGS.items():
            lemma = self._wordnet.morphy(word, part)
            if lemma is None:
                continue
            for other in self._lemmas(lemma, part):
                forms = () if word == lemma else self._inflected(other, part, word, endings)
                yield next((form for form in forms if form in self._ids), other)

    def _lemmas(self, lemma: str, part: str) -> Iterable[str]:
        """Distinct related lemmas of a word, without itself."""
        found: dict[str, None] = {}
        for synset in self._wordnet.synsets(lemma, part):
            own = [entry for entry in synset.lemmas() if entry.name().lower() == lemma]
            if self._relation == "synonym":
                entries = synset.lemmas()
            elif self._relation == "antonym":
                entries = [other for entry in own for other in entry.antonyms()]
            else:
                entries = [entry for other in _parts(synset, self._relation) for entry in other.lemmas()]
            found |= dict.fromkeys(entry.name().lower() for entry in entries if "_" not in entry.name())
        found.pop(lemma, None)
        return found

    def _inflected(self, lemma: str, part: str, like: str, endings: tuple[str, ...]) -> Iterator[str]:
        """Inflections of a lemma with the ending of another word, verified by WordNet's morphology."""
        ending = next((ending for ending in endings if like.endswith(ending)), None)
        if ending is None:
            return
        without_y = lemma.removesuffix("y")
        stems = (
            lemma,
            lemma + lemma[-1],
            lemma.removesuffix("e"),
            lemma + "e",
            without_y + "i",
            without_y + "ie",
        )
        for stem in stems:
            if self._wordnet.morphy(stem + ending, part) == lemma:
                yield stem + ending

    def _token(self, word: str, like: str) -> int | None:
        """The token of a word, capitalised like the other word if there is such a token."""
        shaped = word.capitalize() if like[0].isupper() else word
        return self._ids.get(shaped, self._ids.get(word))


@lru_cache(maxsize=8)
def thesaurus(lexicon: WordTokens, relation: Relation) -> Thesaurus:
    """The relation between a vocabulary's words, cached.

    Raises:
        MissingResourceError: NLTK or WordNet is not installed.
    """
    return Thesaurus(lexicon, relation)


def require_wordnet() -> None:
    """Check that WordNet is available.

    Raises:
        MissingResourceError: NLTK or WordNet is not installed.
    """
    _wordnet()


def check_relation(lexicon: WordTokens, relation: Relation) -> None:
    """Check that some words of a vocabulary are related.

    Raises:
        ModelError: None are.
        MissingResourceError: NLTK or WordNet is not installed.
    """
    if not thesaurus(lexicon, relation).has_any():
        raise ModelError(
            f"{lexicon.name}: no word of this vocabulary is the {relation} of another in WordNet; use "
            "in-context-random, or a vocabulary with more whole words"
        )


@cache
def wordnet_identity() -> str:
    """Fingerprint of the installed WordNet: SHA-256 of its files' names and bytes, hex, packed or unpacked.

    Raises:
        MissingResourceError: NLTK or WordNet is not installed.
    """
    wordnet = _wordnet()
    digest = hashlib.sha256()
    for name in sorted(wordnet.fileids()):
        with wordnet.root.join(name).open() as file:
            content = file.read()
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _parts(synset: Any, relation: Relation) -> list[Any]:
    """Meronyms or holonyms of a synset."""
    kinds = ("part", "substance", "member")
    return [other for kind in kinds for other in getattr(synset, f"{kind}_{relation}s")()]


def _wordnet() -> Any:
    """NLTK's WordNet, loaded; untyped."""
    try:
        from nltk.corpus import wordnet
    except ImportError as error:
        raise MissingResourceError(
            "WordNet is read through NLTK, which is not installed; pip install 'stlm-kd[wordnet]'"
        ) from error
    try:
        wordnet.ensure_loaded()
    except LookupError as error:
        raise MissingResourceError(
            "WordNet is not installed; run python -m nltk.downloader wordnet, or set NLTK_DATA to a folder "
            "that has corpora/wordnet.zip"
        ) from error
    return wordnet

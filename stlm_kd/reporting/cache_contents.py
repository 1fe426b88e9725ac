"""Describes the inputs of a cache."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from stlm_kd.recipe.format import option_words, value_words
from stlm_kd.teachers.cache.format import WORDS

_HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")


def made_of_rows(made_of: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Name and value of each used input of a cache, with hashes shortened to twelve digits."""
    for name, value in made_of.items():
        if value not in (None, [], {}):
            yield WORDS.get(name, name), _HASH.sub(r"\1…", _describe(name, value))


def _describe(name: str, value: object) -> str:
    if name == "text" and isinstance(value, list):
        return _text(value)
    if isinstance(value, Mapping) and isinstance(merged := value.get("merged"), list):
        options = value.get("options")
        how = option_words(options) if isinstance(options, Mapping) else ""
        return f"{value_words(merged)} merged by {value.get('how')}{how}"
    return value_words(value)


def _text(key: list[object]) -> str:
    """Fraction and fingerprints of the training text, or of examples, whose key begins with their classes."""
    share, *texts = key
    if texts and isinstance(texts[0], list):
        _, _, *texts = texts[0]
    return f"{share:.2%} of {value_words(texts)}" if isinstance(share, float) and texts else value_words(key)

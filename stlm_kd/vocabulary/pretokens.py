"""Count the unique pre-tokens of a text, the strings that a tokenizer's model splits into tokens."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from stlm_kd.vocabulary.token_bytes import SPACE_MARK, TokenAlphabet
from stlm_kd.vocabulary.tokenise_bytes import without_dummy_prefix

if TYPE_CHECKING:
    from stlm_kd.vocabulary.token_bytes import Vocabulary

_CHUNK = re.compile(r"\s*\S+(?:(?=[^\S ])\s+\S*)*|\s+")
"""Text up to a space that follows another character than white space; pre-tokenizers split there too."""
_WORD = re.compile(f"{SPACE_MARK}*[^{SPACE_MARK}]+|{SPACE_MARK}+")


def count_pretokens(vocabulary: Vocabulary, texts: Iterable[str]) -> Counter[str]:
    """How often each pre-token occurs in the texts, in the model's alphabet; added tokens are not recognised.

    The tokenizer's steps run once for each unique chunk between spaces. A SentencePiece vocabulary, whose
    pre-token may be the whole text, is cut before each run of ``▁``, which no token of the usual vocabularies
    contains after a letter; a document begins as if after a space.
    """
    of_sentences = vocabulary.spelling is TokenAlphabet.SENTENCEPIECE
    prepends = "Prepend" in str(vocabulary.steps.get("normalizer"))  # also before a space
    chunks: Counter[str] = Counter()
    for text in texts:
        begins = of_sentences and text and (prepends or text[0] != " ")
        chunks.update(_CHUNK.findall(f" {text}" if begins else text))
    steps = without_dummy_prefix(vocabulary) if of_sentences else vocabulary.backend
    counts: Counter[str] = Counter()
    for chunk, count in chunks.items():
        text = chunk if steps.normalizer is None else steps.normalizer.normalize_str(chunk)
        splitter = steps.pre_tokenizer
        parts = [text] if splitter is None else [part for part, _ in splitter.pre_tokenize_str(text)]
        for part in parts:
            for word in _WORD.findall(part) if of_sentences else (part,):
                counts[word] += count
    return counts


def count_tokens(vocabulary: Vocabulary, pretokens: Counter[str]) -> Counter[int]:
    """How often each token id occurs, by the model's segmentation of counted pre-tokens."""
    model = vocabulary.backend.model
    uses: Counter[int] = Counter()
    for text, count in pretokens.items():
        for token in model.tokenize(text):
            uses[token.id] += count
    return uses

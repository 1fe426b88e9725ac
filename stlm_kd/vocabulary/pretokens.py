"""Count the unique pre-tokens of a text, the strings that a tokenizer's model splits into tokens."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from stlm_kd.vocabulary.token_bytes import SPACE_MARK, TokenAlphabet

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from stlm_kd.vocabulary.token_bytes import Vocabulary

_WORD = re.compile(f"{SPACE_MARK}*[^{SPACE_MARK}]+|{SPACE_MARK}+")


def count_pretokens(vocabulary: Vocabulary, texts: Iterable[str]) -> Counter[str]:
    """How often each pre-token occurs in the texts, in the model's alphabet; added tokens are not recognised.

    A SentencePiece vocabulary, whose pre-token may be the whole text, is cut before each run of ``▁``. No
    token of the usual vocabularies reaches across such a place.
    """
    backend: Tokenizer = vocabulary.backend
    normalizer, splitter = backend.normalizer, backend.pre_tokenizer
    cuts_words = vocabulary.spelling is TokenAlphabet.SENTENCEPIECE
    counts: Counter[str] = Counter()
    for text in texts:
        if normalizer is not None:
            text = normalizer.normalize_str(text)
        parts = [text] if splitter is None else [part for part, _ in splitter.pre_tokenize_str(text)]
        for part in parts if cuts_words else ():
            counts.update(_WORD.findall(part))
        if not cuts_words:
            counts.update(parts)
    return counts


def count_tokens(vocabulary: Vocabulary, pretokens: Counter[str]) -> Counter[int]:
    """How often each token id occurs, by the model's segmentation of counted pre-tokens."""
    model = vocabulary.backend.model
    uses: Counter[int] = Counter()
    for text, count in pretokens.items():
        for token in model.tokenize(text):
            uses[token.id] += count
    return uses

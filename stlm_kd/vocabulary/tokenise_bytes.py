"""Tokenise the bytes of a token in another vocabulary, as its tokenizer does within a text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pydantic import JsonValue

from stlm_kd.lazy import tokenizers
from stlm_kd.vocabulary.token_bytes import SPACE_MARK, TokenAlphabet, Vocabulary, in_byte_alphabet

if TYPE_CHECKING:
    from tokenizers import Tokenizer


_RUN = re.compile(f"(?P<bytes>[\\udc80-\\udcff{SPACE_MARK}]+)|[^\\udc80-\\udcff{SPACE_MARK}]+")
"""Bytes that ``surrogateescape`` decodes to lone surrogates and SentencePiece's spaces, or text."""


def split_surfaces(
    vocabulary: Vocabulary, surfaces: Sequence[bytes], *, unknown: int | None
) -> list[list[int]]:
    """Token ids of each byte string in a vocabulary; empty if it cannot represent it.

    No prefix is added: a space appears only if the byte string has one. The tokenizer's own normalisation
    (lower-casing, NFC) is applied. Parts that are not valid UTF-8 become byte tokens, or are dropped if there
    are none; so is the id ``unknown``.
    """
    pipeline = without_dummy_prefix(vocabulary)
    if vocabulary.spelling is TokenAlphabet.WORDPIECE:
        return [_split_word_pieces(vocabulary, pipeline, surface) for surface in surfaces]
    texts = [_plain_text(surface, vocabulary.spelling) for surface in surfaces]
    whole = [text for text in texts if text is not None]
    encodings = iter(pipeline.encode_batch_fast(whole, add_special_tokens=False))
    ids = [
        _split_odd(vocabulary, pipeline, surface) if text is None else next(encodings).ids
        for text, surface in zip(texts, surfaces, strict=True)
    ]
    return [[i for i in row if i != unknown] for row in ids]


def _plain_text(surface: bytes, spelling: TokenAlphabet) -> str | None:
    """The byte string as text that the tokenizer treats equally, or None."""
    try:
        text = surface.decode()
    except UnicodeDecodeError:
        return None
    return None if spelling is TokenAlphabet.SENTENCEPIECE and SPACE_MARK in text else text


def _split_odd(vocabulary: Vocabulary, pipeline: Tokenizer, surface: bytes) -> list[int]:
    """Tokenise bytes that are not text: by the model's merges, or invalid ones as byte tokens (and ``▁``)."""
    if vocabulary.spelling is TokenAlphabet.BYTE_LEVEL:
        return [token.id for token in pipeline.model.tokenize(in_byte_alphabet(surface))]
    ids: list[int] = []
    for run in _runs(surface):
        if isinstance(run, str):
            ids.extend(pipeline.encode(run, add_special_tokens=False).ids)
        else:
            ids.extend(vocabulary.byte_tokens[byte] for byte in run if byte in vocabulary.byte_tokens)
    return ids


def _runs(data: bytes) -> list[str | bytes]:
    """Split into text and bytes (those that are not valid UTF-8, and literal ``▁``), alternating.

    >>> _runs(b" a\\xe2\\x82")
    [' a', b'\\xe2\\x82']
    """
    runs = _RUN.finditer(data.decode(errors="surrogateescape"))
    return [run[0].encode(errors="surrogateescape") if run["bytes"] else run[0] for run in runs]


def _split_word_pieces(vocabulary: Vocabulary, pipeline: Tokenizer, surface: bytes) -> list[int]:
    """Tokenise words by greedy longest match.

    Text without a leading space may continue a word or begin one (after a quote, a bracket, a line break).
    Uses the variant with fewer pieces, the continuation if they are equal.
    """
    try:
        text = surface.decode()
    except UnicodeDecodeError:
        return []
    text = "a" + text  # the tokenizer decides whether the text joins a preceding word
    text = pipeline.normalizer.normalize_str(text) if pipeline.normalizer else text
    words = [word for word, _ in pipeline.pre_tokenizer.pre_tokenize_str(text)]
    joined, token_to_id = words[0][1:], pipeline.token_to_id
    spellings = [_longest_match(joined, token_to_id, inside=inside) for inside in (True, False)]
    ids = min((spelling for spelling in spellings if spelling), key=len, default=[])
    for word in words[1:]:
        ids = ids + _longest_match(word, token_to_id, inside=False)
    return ids


def _longest_match(word: str, token_to_id: Callable[[str], int | None], *, inside: bool) -> list[int]:
    """WordPiece tokens of one word; empty if some part is not in the vocabulary."""
    ids: list[int] = []
    start = 0
    while start < len(word):
        prefix = "##" if start or inside else ""
        ends = range(len(word), start, -1)
        hits = ((token_to_id(prefix + word[start:end]), end) for end in ends)
        found, start = next((hit for hit in hits if hit[0] is not None), (None, len(word)))
        if found is None:
            return []
        ids.append(found)
    return ids


def without_dummy_prefix(vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer without prefixes, stripping and special-token matching.

    The model is shared with the original, not copied.
    """
    plain = {step: _plain(vocabulary.steps.get(step)) for step in ("normalizer", "pre_tokenizer")}
    steps = tokenizers.Tokenizer.from_str(json.dumps({**vocabulary.steps, **plain}))
    tokenizer = tokenizers.Tokenizer(vocabulary.backend.model)
    if steps.normalizer is not None:
        tokenizer.normalizer = steps.normalizer
    if steps.pre_tokenizer is not None:
        tokenizer.pre_tokenizer = steps.pre_tokenizer
    for i, added in sorted(vocabulary.backend.get_added_tokens_decoder().items()):
        tokenizer.add_tokens([added])
        assert tokenizer.token_to_id(added.content) == i, f"{vocabulary.name}: {added.content} has another id"
    tokenizer.encode_special_tokens = True
    return tokenizer


_EDGES = {"Prepend", "Strip", "WhitespaceSplit"}
_LISTS = ("normalizers", "pretokenizers")


def _plain(part: JsonValue) -> JsonValue:
    """A normalizer or pre-tokenizer without steps that affect only the edges of a text."""
    if not isinstance(part, dict):
        return part
    if part["type"] in _EDGES:
        return None
    if part["type"] == "Sequence":
        key = next(name for name in _LISTS if name in part)
        inner = part[key]
        assert isinstance(inner, list)
        kept: list[JsonValue] = [plain for plain in map(_plain, inner) if plain is not None]
        return {**part, key: kept} if kept else None
    if part["type"] == "ByteLevel":
        return {**part, "add_prefix_space": False}
    if part["type"] == "Metaspace":
        return {**part, "prepend_scheme": "never"}
    return part

"""Decode tokens to bytes, for three token alphabets.

Byte-level vocabularies (GPT-2, Qwen2) write each byte as a printable character, SentencePiece (Llama) writes
a space as ``▁`` and rare bytes as ``<0xAB>``, WordPiece (BERT) implies the space and marks word continuations
by ``##``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from pydantic import JsonValue

from stlm_kd.errors import ModelError
from stlm_kd.lazy import tokenizers

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

SPACE_MARK = "\u2581"
"""SentencePiece's space character."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class TokenAlphabet(Enum):
    """The encoding of a vocabulary's token strings."""

    BYTE_LEVEL = "byte-level"
    SENTENCEPIECE = "SentencePiece"
    WORDPIECE = "WordPiece"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer's decoded vocabulary; ``name`` is for messages.

    ``tokens`` has the string of each id, None for unused ids; ``surfaces`` its bytes, a leading space
    included, not always valid UTF-8; None for ``special`` tokens, which represent no text, and unused ids.
    ``added`` are the ids of added tokens, special ones included; ``byte_tokens`` those of SentencePiece's
    ``<0xAB>``, by byte. ``isolated``, for WordPiece only, are characters (punctuation, ideographs) that are
    always words of their own, with or without a preceding space. ``steps`` are the ``normalizer``,
    ``pre_tokenizer`` and ``decoder``, as in ``tokenizer.json``.
    """

    name: str
    spelling: TokenAlphabet
    tokens: list[str | None]
    surfaces: list[bytes | None]
    special: frozenset[int]
    added: frozenset[int]
    byte_tokens: dict[int, int]
    isolated: frozenset[str]
    backend: Tokenizer
    steps: dict[str, JsonValue]

    @property
    def size(self) -> int:
        """Number of embedding rows needed: one more than the largest id."""
        return len(self.tokens)

    @property
    def used_ids(self) -> list[int]:
        """The ids in use, ascending."""
        return [i for i, token in enumerate(self.tokens) if token is not None]


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Number of embedding rows that a tokenizer needs: one more than its largest id."""
    return int(max(tokenizer.get_vocab().values())) + 1


def read_vocabulary(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """Read a tokenizer's vocabulary; ModelError if it is not fast, or of no known token alphabet."""
    backend, name = backend_of(tokenizer), _name_of(tokenizer)
    steps = _steps(backend)
    spelling = _spelling_of(backend, steps, name)
    ids = tokenizer.get_vocab()
    tokens: list[str | None] = [None] * (max(ids.values()) + 1)
    for token, i in ids.items():
        tokens[i] = token
    special = frozenset(tokenizer.all_special_ids) | {
        i for i, added in tokenizer.added_tokens_decoder.items() if added.special
    }
    added = special | set(tokenizer.added_tokens_decoder)
    byte_tokens = _byte_tokens(tokens) if spelling is TokenAlphabet.SENTENCEPIECE else {}
    isolated = _isolated(tokens, backend) if spelling is TokenAlphabet.WORDPIECE else frozenset()
    byte_of = {i: bytes([byte]) for byte, i in byte_tokens.items()}

    def surface(i: int, token: str | None) -> bytes | None:
        if token is None or i in special:
            return None
        if i in added:
            return token.encode()
        if i in byte_of:
            return byte_of[i]
        return _spelled(token, spelling, isolated=token in isolated)

    surfaces = [surface(i, token) for i, token in enumerate(tokens)]
    return Vocabulary(name, spelling, tokens, surfaces, special, added, byte_tokens, isolated, backend, steps)


def backend_of(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The tokenizer's Rust backend; ModelError for a slow tokenizer, which has none."""
    from transformers import PreTrainedTokenizerFast  # slow import; checking recipes does not need it

    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(
            f"{_name_of(tokenizer)}: a {type(tokenizer).__name__}, which is not a fast tokenizer; expected "
            "one that can be saved as tokenizer.json; convert it to a PreTrainedTokenizerFast"
        )
    return tokenizer.backend_tokenizer


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte.

    >>> byte_alphabet()[ord(" ")], byte_alphabet()[ord("a")], len(set(byte_alphabet().values()))
    ('Ġ', 'a', 256)
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


_FROM_ALPHABET = {ord(character): byte for byte, character in byte_alphabet().items()}
_ALPHABET = frozenset(byte_alphabet().values())
_TO_ALPHABET = str.maketrans({chr(byte): character for byte, character in byte_alphabet().items()})


def in_byte_alphabet(data: bytes) -> str:
    """Encode bytes as a byte-level vocabulary does.

    >>> in_byte_alphabet(b" the")
    'Ġthe'
    """
    return data.decode("latin-1").translate(_TO_ALPHABET)


def _nodes(node: JsonValue) -> Iterator[dict[str, JsonValue]]:
    """All typed components of a tokenizer's JSON, nested ones included."""
    if isinstance(node, dict):
        if "type" in node:
            yield node
        for value in node.values():
            yield from _nodes(value)
    elif isinstance(node, list):
        for value in node:
            yield from _nodes(value)


def _spelled(token: str, spelling: TokenAlphabet, *, isolated: bool) -> bytes:
    if spelling is TokenAlphabet.BYTE_LEVEL:
        known = _ALPHABET.issuperset(token)
        return token.translate(_FROM_ALPHABET).encode("latin-1") if known else token.encode()
    if spelling is TokenAlphabet.SENTENCEPIECE:
        return token.replace(SPACE_MARK, " ").encode()
    if token.startswith("##") and len(token) > 2:
        return token[2:].encode()
    return token.encode() if isolated else b" " + token.encode()


def _steps(backend: Tokenizer) -> dict[str, JsonValue]:
    """The tokenizer's components around the model, without serialising the vocabulary, which is slow."""
    shell = tokenizers.Tokenizer(tokenizers.models.BPE())
    for step in ("normalizer", "pre_tokenizer", "decoder"):
        if getattr(backend, step) is not None:
            setattr(shell, step, getattr(backend, step))
    steps: dict[str, JsonValue] = json.loads(shell.to_str())
    return steps


def _spelling_of(backend: Tokenizer, steps: dict[str, JsonValue], name: str) -> TokenAlphabet:
    model = backend.model
    parts = [steps.get("pre_tokenizer"), steps.get("decoder")]
    types = {part["type"] for part in _nodes(parts)}
    if isinstance(model, tokenizers.models.WordPiece) and model.continuing_subword_prefix == "##":
        return TokenAlphabet.WORDPIECE
    if "ByteLevel" in types:
        return TokenAlphabet.BYTE_LEVEL
    if "Metaspace" in types or SPACE_MARK in json.dumps(parts, ensure_ascii=False):
        return TokenAlphabet.SENTENCEPIECE
    raise ModelError(
        f"{name}: a {type(model).__name__} vocabulary whose spelling is not known; expected byte-level (as "
        "GPT-2's), SentencePiece (▁ and <0xAB>, as Llama's) or WordPiece (##, as BERT's); choose another one"
    )


def _byte_tokens(tokens: list[str | None]) -> dict[int, int]:
    """The id of each byte's token; empty unless all 256 exist."""
    found = ((i, _BYTE_TOKEN.fullmatch(token)) for i, token in enumerate(tokens) if token)
    ids = {int(match.group(1), 16): i for i, match in found if match}
    return ids if len(ids) == 256 else {}


def _isolated(tokens: list[str | None], backend: Tokenizer) -> frozenset[str]:
    """Single characters that the tokenizer splits off within a word."""

    def cut_out(character: str) -> bool:
        text = f"a{character}a"
        text = backend.normalizer.normalize_str(text) if backend.normalizer else text
        return backend.pre_tokenizer is not None and len(backend.pre_tokenizer.pre_tokenize_str(text)) > 1

    return frozenset(token for token in tokens if token and len(token) == 1 and cut_out(token))


def _name_of(tokenizer: PreTrainedTokenizerBase) -> str:
    return str(getattr(tokenizer, "name_or_path", "") or "tokenizer")

"""Real vocabularies onto one another: texts, counts and roles, against the tokenizers' own decoders."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache
from itertools import permutations
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from stlm_kd.vocabulary.mapping import Kind, VocabularyMapping, map_vocabulary
from tests.support.vocab_pico import (
    REAL,
    byte_level,
    metaspace_unigram,
    real_tokenizer,
    sentencepiece_bpe,
    word_piece,
)

SPELL_ANYTHING = ("gpt2", "qwen2", "llama-2", "stories260K")
DIRECTIONS = [*permutations(SPELL_ANYTHING, 2), ("gpt2", "phi-3-mini"), ("phi-3-mini", "gpt2")]
MOST_PER_DIRECTION = 4000


@cache
def mapped(data: Path, teacher: str, student: str) -> VocabularyMapping:
    return map_vocabulary(real_tokenizer(data, teacher), real_tokenizer(data, student))


def decoded_after_a_word(tokenizer: PreTrainedTokenizerFast, rows: list[list[int]]) -> list[str]:
    """What each row of ids adds to a sentence that has begun."""
    anchor = tokenizer("x", add_special_tokens=False)["input_ids"]
    before = tokenizer.decode(anchor)
    texts = tokenizer.batch_decode([[*anchor, *row] for row in rows], clean_up_tokenization_spaces=False)
    assert all(text.startswith(before) for text in texts)
    return [text[len(before) :] for text in texts]


def some_ids(mapping: VocabularyMapping, *kinds: Kind) -> list[int]:
    ids = [int(i) for kind in kinds for i in mapping.ids_of(kind)]
    return ids[:: len(ids) // MOST_PER_DIRECTION + 1]


@pytest.mark.parametrize("name", REAL)
def test_every_vocabulary_is_mapped_onto_itself_token_by_token(shared_data: Path, name: str) -> None:
    tokenizer, mapping = real_tokenizer(shared_data, name), mapped(shared_data, name, name)
    assert [mapping.sources_of(i) for i in range(len(mapping))] == [[i] for i in range(len(tokenizer))]
    assert mapping.counts["fallback"] == mapping.counts["pieces"] == 0 and not mapping.predicted


@pytest.mark.parametrize("make", [byte_level, metaspace_unigram, sentencepiece_bpe, word_piece])
def test_every_kind_of_vocabulary_is_mapped_onto_itself(make: Callable[[], PreTrainedTokenizerFast]) -> None:
    tokenizer = make()
    mapping = map_vocabulary(tokenizer, tokenizer)
    assert [mapping.sources_of(i) for i in range(len(mapping))] == [[i] for i in range(len(tokenizer))]


@pytest.mark.parametrize(("teacher", "student"), DIRECTIONS)
def test_in_a_sentence_the_teachers_tokens_read_as_the_students_token(
    shared_data: Path, teacher: str, student: str
) -> None:
    old, new = real_tokenizer(shared_data, teacher), real_tokenizer(shared_data, student)
    mapping = mapped(shared_data, teacher, student)
    ids = some_ids(mapping, Kind.EXACT, Kind.PIECES)
    wanted = decoded_after_a_word(new, [[i] for i in ids])
    found = decoded_after_a_word(old, [mapping.sources_of(i) for i in ids])
    whole = [(a, b) for a, b in zip(wanted, found, strict=True) if "\ufffd" not in a]
    if teacher == "qwen2":  # it normalises what it splits
        whole = [(unicodedata.normalize("NFC", a), unicodedata.normalize("NFC", b)) for a, b in whole]
    assert [pair for pair in whole if pair[0] != pair[1]] == []
    assert len(whole) > (0.7 if student == "stories260K" else 0.97) * len(ids)
    special = set(new.all_special_ids) | set(new.added_tokens_decoder)
    assert set(mapping.ids_of(Kind.FALLBACK).tolist()) <= special, "all text can be spelled"


def test_two_byte_level_vocabularies_share_the_strings_that_both_hold(shared_data: Path) -> None:
    gpt2, qwen2 = real_tokenizer(shared_data, "gpt2"), real_tokenizer(shared_data, "qwen2")
    shared = (set(gpt2.get_vocab()) & set(qwen2.get_vocab())) - {"<|endoftext|>"}
    assert len(shared) == 42_256
    there, back = mapped(shared_data, "qwen2", "gpt2"), mapped(shared_data, "gpt2", "qwen2")
    assert there.counts == {"exact": 42_256, "pieces": 8_000, "role": 1, "fallback": 0}
    assert back.counts == {"exact": 42_256, "pieces": 109_387, "role": 1, "fallback": 2}
    exact = there.ids_of(Kind.EXACT)
    away = there.sources[there.offsets[exact]]
    assert (back.sources[back.offsets[away]] == exact).all(), "there and back is the same token"


def test_byte_level_and_sentencepiece_share_the_tokens_of_equal_bytes(shared_data: Path) -> None:
    gpt2, llama = real_tokenizer(shared_data, "gpt2"), real_tokenizer(shared_data, "llama-2")
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    gpt2_bytes = {bytes(byte_of[c] for c in t) for t in gpt2.get_vocab() if t != "<|endoftext|>"}
    pieces = {t.replace("▁", " ").encode() for t, i in llama.get_vocab().items() if i >= 259}
    both = gpt2_bytes & pieces
    bytes_only = {bytes([byte]) for byte in range(256)} - pieces
    to_gpt2 = mapped(shared_data, "llama-2", "gpt2").counts
    to_llama = mapped(shared_data, "gpt2", "llama-2").counts
    assert to_gpt2["exact"] == len(both) + len(gpt2_bytes & bytes_only) == 18_207
    assert to_llama["exact"] == len(both) + 256 == 18_303, "each byte token is a byte of GPT-2's, too"
    assert (to_gpt2["pieces"], to_gpt2["role"], to_gpt2["fallback"]) == (32_049, 1, 0)
    assert (to_llama["pieces"], to_llama["role"], to_llama["fallback"]) == (13_694, 2, 1)


@pytest.mark.parametrize("teacher", ["bert-base-cased", "bert-base-uncased"])
@pytest.mark.parametrize("student", ["gpt2", "llama-2"])
def test_word_pieces_spell_plain_words_in_the_teachers_case(
    shared_data: Path, teacher: str, student: str
) -> None:
    old, new = real_tokenizer(shared_data, teacher), real_tokenizer(shared_data, student)
    mapping = mapped(shared_data, teacher, student)
    ids = some_ids(mapping, Kind.EXACT, Kind.PIECES)
    words = dict(zip(ids, decoded_after_a_word(new, [[i] for i in ids]), strict=True))
    words = {i: text for i, text in words.items() if re.fullmatch(" ?[A-Za-z]+", text)}
    assert len(words) > 2500
    for i, text in words.items():
        pieces = old.convert_ids_to_tokens(mapping.sources_of(i))
        plain = text.strip().lower() if teacher == "bert-base-uncased" else text.strip()
        assert "".join(piece.removeprefix("##") for piece in pieces) == plain
        if text.startswith(" "):
            assert pieces == old.tokenize(plain), "at a word's start as the library has it"


def test_word_pieces_are_read_as_words_with_a_space_and_what_continues_without(shared_data: Path) -> None:
    bert, gpt2 = real_tokenizer(shared_data, "bert-base-cased"), real_tokenizer(shared_data, "gpt2")
    mapping = mapped(shared_data, "gpt2", "bert-base-cased")
    text = {token: gpt2.decode(mapping.sources_of(i)) for token, i in bert.get_vocab().items()}
    for token in ("the", "Hernandez", "##ing", "##s", ".", "(", "café"):
        spaced = token[2:] if token.startswith("##") else token if len(token) == 1 else f" {token}"
        assert text[token] == spaced


def test_punctuation_is_one_word_piece_with_a_space_or_without(shared_data: Path) -> None:
    bert, gpt2 = real_tokenizer(shared_data, "bert-base-uncased"), real_tokenizer(shared_data, "gpt2")
    mapping = mapped(shared_data, "bert-base-uncased", "gpt2")
    ids = gpt2.convert_tokens_to_ids(["Ġ.", ".", "Ġ(", "Ċ", "ing", "ĠParis"])
    pieces = [bert.convert_ids_to_tokens(mapping.sources_of(i)) for i in ids]
    assert pieces == [["."], ["."], ["("], [], ["##ing"], ["paris"]]


@pytest.mark.parametrize(
    ("teacher", "student", "token", "read", "predicted"),
    [
        ("llama-2", "gpt2", "<|endoftext|>", "<s>", "</s>"),
        ("qwen2", "gpt2", "<|endoftext|>", "<|endoftext|>", "<|endoftext|>"),
        ("gpt2", "llama-2", "<s>", "<|endoftext|>", "<|endoftext|>"),
        ("gpt2", "llama-2", "</s>", "<|endoftext|>", "<|endoftext|>"),
        ("gpt2", "llama-2", "<unk>", None, None),
        ("phi-3-mini", "llama-2", "</s>", "<|endoftext|>", "<|endoftext|>"),
        ("llama-2", "phi-3-mini", "</s>", "</s>", "</s>"),
        ("llama-2", "phi-3-mini", "<|user|>", None, None),
        ("llama-2", "bert-base-cased", "[CLS]", "<s>", "<s>"),
        ("llama-2", "bert-base-cased", "[SEP]", "</s>", "</s>"),
        ("llama-2", "bert-base-cased", "[MASK]", "<unk>", "<unk>"),
        ("gpt2", "bert-base-cased", "[MASK]", None, None),
        ("bert-base-cased", "llama-2", "<s>", "[CLS]", "[CLS]"),
        ("bert-base-cased", "bert-base-uncased", "[PAD]", "[PAD]", "[PAD]"),
        ("qwen2", "bert-base-cased", "[PAD]", None, None),
    ],
)
def test_special_tokens_are_mapped_by_what_they_do(
    shared_data: Path, teacher: str, student: str, token: str, read: str | None, predicted: str | None
) -> None:
    old, new = real_tokenizer(shared_data, teacher), real_tokenizer(shared_data, student)
    mapping = mapped(shared_data, teacher, student)
    i = new.convert_tokens_to_ids(token)
    assert old.convert_ids_to_tokens(mapping.sources_of(i)) == ([] if read is None else [read])
    output = mapping.for_output().sources_of(i)
    assert old.convert_ids_to_tokens(output) == ([] if predicted is None else [predicted])

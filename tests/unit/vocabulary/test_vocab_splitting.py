"""Splitting by another vocabulary: small vocabularies trained here, in the spellings that matter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from stlm_kd.vocabulary.token_bytes import read_vocabulary
from stlm_kd.vocabulary.tokenise_bytes import split_surfaces
from tests.support.vocab_pico import byte_level, metaspace_unigram, sentencepiece_bpe, word_piece

BYTE_LEVEL, SENTENCEPIECE = byte_level(), sentencepiece_bpe()


def spelled(tokenizer: PreTrainedTokenizerFast, *surfaces: bytes) -> list[list[str]]:
    rows = split_surfaces(read_vocabulary(tokenizer), surfaces, unknown=tokenizer.unk_token_id)
    return [tokenizer.convert_ids_to_tokens(row) for row in rows]


@pytest.mark.parametrize("make", [sentencepiece_bpe, metaspace_unigram])
def test_only_a_space_of_its_own_is_spelled_as_the_dummy_space(
    make: Callable[[], PreTrainedTokenizerFast],
) -> None:
    without, with_space = spelled(make(), b"cat", b" cat")
    assert "".join(without) == "cat" and "".join(with_space) == "▁cat"


def test_a_byte_level_tokenizer_with_a_prefix_space_adds_none() -> None:
    assert spelled(byte_level(add_prefix_space=True), b"the") == spelled(byte_level(), b"the")
    assert spelled(byte_level(add_prefix_space=True), b" the") == [["Ġthe"]]


@given(data=st.binary(min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_byte_vocabularies_spell_any_bytes_and_nothing_is_lost(data: bytes) -> None:
    for tokenizer in (BYTE_LEVEL, SENTENCEPIECE):
        vocabulary = read_vocabulary(tokenizer)
        [ids] = split_surfaces(vocabulary, [data], unknown=tokenizer.unk_token_id)
        assert b"".join(vocabulary.surfaces[i] or b"?" for i in ids) == data


def test_a_real_block_character_is_not_taken_for_a_space() -> None:
    assert spelled(SENTENCEPIECE, "the\u2581".encode()) == [["t", "he", "<0xE2>", "<0x96>", "<0x81>"]]


def test_text_that_looks_like_a_special_token_is_spelled_as_text() -> None:
    [pieces] = spelled(BYTE_LEVEL, b"<|endoftext|>")
    assert len(pieces) > 1 and "".join(pieces) == "<|endoftext|>"


def test_word_pieces_continue_a_word_or_begin_one() -> None:
    found = spelled(word_piece(), b" cats", b"s", b" Cat", b"ique", b"LEVEL", b"ified.", b" the cat")
    assert found[:4] == [["cat", "##s"], ["##s"], ["cat"], ["##ique"]]
    assert found[4] == ["level"], "one piece at a word's start, five inside a word"
    assert found[5] == ["##if", "##i", "##ed", "."], "as many pieces either way: inside a word"
    assert found[6] == ["the", "cat"]


def test_word_pieces_at_a_words_start_are_those_of_the_library() -> None:
    tokenizer = word_piece()
    for word in ("cats", "thecat", "iffed", "level"):
        [pieces] = spelled(tokenizer, b" " + word.encode())
        library = tokenizer.tokenize(word)
        assert pieces == ([] if library == ["[UNK]"] else library)


def test_what_a_vocabulary_cannot_spell_has_no_pieces() -> None:
    assert spelled(word_piece(), b"\xe2\x82", b"\n", "☃".encode(), b" ") == [[], [], [], []]
    assert spelled(metaspace_unigram(), b"\xff", "☃".encode()) == [[], []]

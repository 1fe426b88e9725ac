"""What a token stands for, against each library's own decoder."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stlm_kd.errors import ModelError
from stlm_kd.vocabulary.token_bytes import (
    TokenAlphabet,
    byte_alphabet,
    in_byte_alphabet,
    read_vocabulary,
    vocabulary_size,
)
from tests.support.vocab_pico import real_tokenizer

SIZES = {"gpt2": 50257, "qwen2": 151646, "llama-2": 32000, "phi-3-mini": 32011}


def test_the_byte_alphabet_is_the_one_of_the_library() -> None:
    assert set(byte_alphabet().values()) == set(pre_tokenizers.ByteLevel.alphabet())


@given(text=st.text())
@settings(max_examples=50, deadline=None)
def test_text_spelled_in_the_byte_alphabet_is_decoded_by_the_library(text: str) -> None:
    if text:
        assert decoders.ByteLevel().decode([in_byte_alphabet(text.encode())]) == text


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "llama-2", "phi-3-mini"])
def test_the_surface_of_every_whole_token_is_its_decoding_after_another_token(
    shared_data: Path, name: str
) -> None:
    tokenizer = real_tokenizer(shared_data, name)
    vocabulary = read_vocabulary(tokenizer)
    assert vocabulary.size == vocabulary_size(tokenizer) == SIZES[name] == len(tokenizer)
    anchor = tokenizer("x", add_special_tokens=False)["input_ids"]
    before = tokenizer.decode(anchor)
    whole: dict[int, str] = {}
    for i, surface in enumerate(vocabulary.surfaces):
        try:
            whole[i] = (surface or b"\xff").decode()
        except UnicodeDecodeError:
            continue
    decoded = tokenizer.batch_decode([[*anchor, i] for i in whole], clean_up_tokenization_spaces=False)
    wrong = [i for i, text in zip(whole, decoded, strict=True) if text != before + whole[i]]
    assert len(whole) > 0.95 * vocabulary.size and wrong == []


@pytest.mark.parametrize(
    ("name", "spelling", "some"),
    [
        ("gpt2", TokenAlphabet.BYTE_LEVEL, {262: b" the", 50256: None}),
        ("llama-2", TokenAlphabet.SENTENCEPIECE, {278: b" the", 3 + 0xAB: b"\xab", 1: None}),
        ("stories260K", TokenAlphabet.SENTENCEPIECE, {3: b"\x00", 2: None}),
        ("bert-base-uncased", TokenAlphabet.WORDPIECE, {1996: b" the", 1012: b".", 101: None}),
    ],
)
def test_known_tokens_stand_for_known_bytes(
    shared_data: Path, name: str, spelling: TokenAlphabet, some: dict[int, bytes | None]
) -> None:
    vocabulary = read_vocabulary(real_tokenizer(shared_data, name))
    assert vocabulary.spelling is spelling
    assert {i: vocabulary.surfaces[i] for i in some} == some


def test_a_vocabulary_in_an_unknown_spelling_is_refused() -> None:
    words = Tokenizer(models.WordLevel({"the": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ModelError, match="WordLevel vocabulary whose spelling is not known"):
        read_vocabulary(PreTrainedTokenizerFast(tokenizer_object=words))


def test_a_slow_tokenizer_is_refused() -> None:
    from transformers import ByT5Tokenizer

    with pytest.raises(ModelError, match="not a fast tokenizer"):
        read_vocabulary(ByT5Tokenizer())

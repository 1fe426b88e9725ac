"""Blocks of a document's text: against slicing its bytes, and for tokenizers that cut it otherwise."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.eval.language_modeling.perplexity import perplexity
from stlm_kd.eval.language_modeling.text_blocks import BLOCK_BYTES, text_blocks, token_starts

TEXT = "Größe matters, 我们 said. " * 120

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


@given(TEXTS, st.integers(4, 9), st.data())
def test_a_block_is_so_many_bytes_to_the_next_character(text: str, size: int, data: st.DataObject) -> None:
    starts = sorted(data.draw(st.lists(st.integers(0, len(text) - 1), max_size=9)))
    found = text_blocks(text, starts, [float(2**place) for place in range(len(starts))], size=size)
    limits, at = [0], 0
    for character in text:
        if at // size > len(limits) - 1:
            limits.append(at)
        at += len(character.encode())
    limits.append(at)
    assert found.bytes == tuple(b - a for a, b in pairwise(limits))
    expected = [0.0] * len(found.bytes)
    for place, start in enumerate(starts):
        expected[len(text[:start].encode()) // size] += 2**place
    assert found.nats == tuple(expected)


def test_blocks_of_two_tokenizers_hold_the_same_bytes_and_add_up_to_the_document() -> None:
    bytes_of = []
    for size in (260, 280):
        tokenizer = train_tokenizer([TEXT] * 2, "bpe", size)
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=len(tokenizer),
            n_embd=8,
            n_layer=1,
            n_head=1,
            n_positions=32,
            bos_token_id=0,
            eos_token_id=0,
        )
        loss = perplexity(GPT2LMHeadModel(config), tokenizer, [TEXT, "short"], batch_size=8)
        report = loss.report["blocks"]
        assert isinstance(report, dict)
        bytes_of.append(report["bytes"])
        for row, nats, sizes in zip(loss.examples, report["nats"], report["bytes"], strict=True):
            bits = math.fsum(nats) / math.log(2)
            assert bits / sum(sizes) == pytest.approx(row.value, rel=1e-12)
            assert all(0 < one < 8 * BLOCK_BYTES for one in nats)
    assert bytes_of[0] == bytes_of[1]
    assert [len(sizes) for sizes in bytes_of[0]] == [math.ceil(len(TEXT.encode()) / BLOCK_BYTES), 1]
    starts = token_starts(tokenizer, ["a b", "é"])
    assert starts is not None and starts[0][0] == 0 and starts[0] == sorted(starts[0])

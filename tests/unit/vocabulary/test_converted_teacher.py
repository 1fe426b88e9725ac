"""The distribution of a teacher, converted to fewer of its tokens."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.scores.converted_teacher import Conversion, Teacher, score, windows
from stlm_kd.vocabulary.trim import trim_tokenizer
from tests.support.vocab_pico import byte_level

TEXT = "the cat sat on the mat, then the hat\nand  a rather thick thesis 123 naïve"


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(byte_level()), initializer_range=0.5, bos_token_id=0, **sizes)
    return Teacher(LlamaForCausalLM(config).eval())


def test_each_reading_is_one_that_is_read_alone_and_probabilities_add_up_to_one(teacher: Teacher) -> None:
    whole = byte_level()
    trimmed = trim_tokenizer(whole, ["the cat"], 262)
    conversion = Conversion(whole.backend_tokenizer, trimmed.backend_tokenizer)
    (window,) = windows(conversion, TEXT, 0)
    ids, positions, mask = window.tree.inputs()
    assert len(ids) > len(window.own) + 1, "some words are read in several ways"
    with torch.no_grad():
        place = {"position_ids": positions[None], "attention_mask": mask[None, None]}
        probs = teacher.logits(ids, None, place).softmax(-1)
        for node, above in enumerate(window.tree.above):
            alone = teacher.model(torch.tensor([[window.tree.tokens[i] for i in above]])).logits[0, -1]
            torch.testing.assert_close(probs[node], alone.softmax(-1))
    assert any(len(covers) > 1 for _, covers in window.asked)
    for _, covers in window.asked:
        total = sum(conversion.probability(probs, covers, piece) for piece in range(-1, len(trimmed)))
        assert math.isclose(total, 1, rel_tol=1e-5)


def test_converted_to_all_of_its_own_tokens_it_says_the_same(teacher: Teacher) -> None:
    whole = byte_level().backend_tokenizer
    with torch.no_grad():
        found = score(teacher, Conversion(whole, whole), torch.arange(whole.get_vocab_size()), TEXT, 0.0)
    assert math.isclose(found["converted"], found["own"], rel_tol=1e-5)
    assert math.isclose(found["sliced"], found["own"], rel_tol=1e-5)
    assert found["bytes"] == len(TEXT.encode())

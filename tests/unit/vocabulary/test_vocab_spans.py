"""Spans that two tokenisations share, against what the tokens spell; and the loss on them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stlm_kd.data.tokenizers import document_ends
from stlm_kd.losses.spans import log_likelihoods, span_agreement, span_sums
from stlm_kd.vocabulary.byte_alignment import NO_SPAN, ends_of, spans_of, spelled
from stlm_kd.vocabulary.token_bytes import read_vocabulary
from tests.support.vocab_pico import byte_level, sentencepiece_bpe

TOKENIZERS = {
    "byte-level": byte_level(),
    "prefixed": byte_level(add_prefix_space=True),
    "SentencePiece": sentencepiece_bpe(),
}
VOCABULARIES = {name: read_vocabulary(tokenizer) for name, tokenizer in TOKENIZERS.items()}
WORDS = st.sampled_from(
    ["the cat", "cathedral", " ", "  ", "\n", "naïve", "猫は", "🐈", "é", "sat", "theatre,", "ß"]
)
NAMES = st.sampled_from(sorted(TOKENIZERS))


def ids_of(name: str, text: str) -> np.ndarray:
    tokenizer = TOKENIZERS[name]
    start, end = document_ends(tokenizer)
    return np.array([start, *tokenizer(text, add_special_tokens=False)["input_ids"], end])


@settings(max_examples=150, deadline=None)
@given(NAMES, NAMES, st.lists(WORDS, max_size=9).map("".join), st.data())
def test_every_span_spells_the_same_bytes_in_both_vocabularies(
    new: str, old: str, text: str, data: st.DataObject
) -> None:
    new_ids, old_ids = ids_of(new, text), ids_of(old, text)
    ends = ends_of(spelled(new_ids, VOCABULARIES[new].surfaces), spelled(old_ids, VOCABULARIES[old].surfaces))
    begin = data.draw(st.integers(0, len(new_ids) - 2))
    length = data.draw(st.integers(1, len(new_ids) - begin))
    found = spans_of(ends, old_ids, begin, length, most_old=data.draw(st.integers(1, 30)))
    assert len(found.of_new) == length and len(found.of_old) == max(len(found.old_ids) - 1, 0)
    for span in range(found.count):
        spellings = [
            [ids[place + 1] for place in np.flatnonzero(of == span)]
            for ids, of in ((new_ids[begin:], found.of_new), (found.old_ids, found.of_old))
        ]
        assert all(spellings), "a span has a token on either side"
        texts = [
            b"".join(VOCABULARIES[name].surfaces[i] or b"" for i in ids)
            for name, ids in zip((new, old), spellings, strict=True)
        ]
        if begin == span == 0 and texts[0] != texts[1]:  # one of them put a space before the text
            texts = [min(texts, key=len), max(texts, key=len).removeprefix(b" ")]
        assert texts[0] == texts[1]
        assert texts[0].strip() in text.encode()
    spans = found.of_new[found.of_new != NO_SPAN]
    assert (np.diff(spans) >= 0).all() and sorted(set(spans)) == list(range(found.count))


def test_a_whole_document_is_divided_wherever_both_end_a_token() -> None:
    text = "the cat sat"
    new_ids, old_ids = ids_of("byte-level", text), ids_of("SentencePiece", text)
    new, old = (VOCABULARIES[name].surfaces for name in ("byte-level", "SentencePiece"))
    ends = ends_of(spelled(new_ids, new), spelled(old_ids, old))
    common = sorted(set(ends.new.tolist()) & set(ends.old.tolist()))
    found = spans_of(ends, old_ids, 0, len(new_ids), most_old=99)
    assert common[0] == 0 and common[-1] == len(text) + 1
    assert found.count == len(common) - 1
    assert (found.of_new[: len(new_ids) - 1] >= 0).all() and (found.of_old >= 0).all()


def test_one_vocabulary_makes_every_predicted_token_a_span() -> None:
    ids = ids_of("byte-level", "a naïve 猫 sat")
    own = spelled(ids, VOCABULARIES["byte-level"].surfaces)
    found = spans_of(ends_of(own, own), ids, 0, len(ids), most_old=99)
    assert found.of_new[:-1].tolist() == list(range(len(ids) - 1)) == found.of_old.tolist()


def test_a_document_with_a_special_token_in_it_has_no_spans() -> None:
    ids = ids_of("byte-level", "the cat<|endoftext|>")
    assert spelled(ids, VOCABULARIES["byte-level"].surfaces) is None


def test_texts_that_differ_agree_up_to_where_they_do() -> None:
    first, second = (text.encode() for text in ("naive cat", "naive dog"))
    ends = ends_of((first, np.arange(len(first) + 1)), (second, np.arange(len(second) + 1)))
    assert ends.agreed == 6


@given(
    st.lists(st.tuples(st.floats(-60, -0.01), st.floats(-60, -0.01)), min_size=1),
    st.sampled_from([1.0, 10.0, 100.0]),
)
def test_the_loss_is_the_divergence_of_two_coins(
    pairs: list[tuple[float, float]], temperature: float
) -> None:
    student, teacher = (torch.tensor(side, dtype=torch.float64) for side in zip(*pairs, strict=True))
    found = span_agreement(student, teacher, temperature=temperature)
    for value, (own, other) in zip(found.tolist(), pairs, strict=True):
        q, p = math.exp(own / temperature), math.exp(other / temperature)
        expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        assert value == pytest.approx(temperature * expected, abs=1e-9, rel=1e-6)
    assert (span_agreement(teacher, teacher) == 0).all()


def test_certain_spans_have_a_finite_loss_and_gradient() -> None:
    student = torch.tensor([0.0, -1e-9, -200.0], requires_grad=True)
    loss = span_agreement(student, torch.tensor([-3.0, 0.0, 0.0]))
    loss.sum().backward()
    assert loss.isfinite().all() and student.grad is not None and student.grad.isfinite().all()


def test_likelihoods_by_the_chunk_and_their_gradient_are_those_of_a_softmax(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stlm_kd.losses.spans.chunk_rows", lambda weight: 3)
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*s, generator=generator, dtype=torch.float64, requires_grad=True)
        for s in ((8, 4), (7, 4), (7,))
    )
    labels, spans = torch.arange(8) % 7, torch.tensor([-1, 0, 0, 1, 1, 1, -1, 2])
    whole = (hidden @ weight.T + bias).log_softmax(-1)[torch.arange(8), labels]
    slow = torch.stack([whole[spans == span].sum() for span in range(3)])
    quick = span_sums(log_likelihoods(hidden, weight, bias, labels), spans, 3)
    assert torch.allclose(quick, slow)
    wanted = torch.autograd.grad(slow.square().sum(), (hidden, weight, bias))
    found = torch.autograd.grad(quick.square().sum(), (hidden, weight, bias))
    assert all(torch.allclose(a, b) for a, b in zip(found, wanted, strict=True))

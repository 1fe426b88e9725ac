"""New rows from old ones, against plain loops, on small vocabularies and pico models."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stlm_kd.adaptation.initialisers import INITIALISERS, VocabularyInit, new_rows
from stlm_kd.errors import ModelError
from stlm_kd.models.vocabulary import replace_vocabulary
from stlm_kd.vocabulary.cooccurrence import Integers, ppmi_vectors
from stlm_kd.vocabulary.mapping import Kind, map_vocabulary
from tests.support.pico import pico_model
from tests.support.vocab_pico import TEXT, byte_level, sentencepiece_bpe, word_piece

PADDING = 5
TOKENIZERS = {"byte-level": byte_level(), "SentencePiece": sentencepiece_bpe(), "WordPiece": word_piece()}


def teacher_of(
    tokenizer: PreTrainedTokenizerFast, family: str = "llama", *, tied: bool = True
) -> PreTrainedModel:
    """A model over the tokenizer's vocabulary, padded by rows that are not numbers."""
    model = pico_model(family, vocabulary=len(tokenizer) + PADDING, tied=tied)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        layer.weight.data[len(tokenizer) :] = torch.nan
    return model.eval()


def text_in(tokenizer: PreTrainedTokenizerFast) -> tuple[Integers, Integers]:
    """Some documents as ids, and where each begins."""
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXT]
    return np.concatenate(rows), np.cumsum([0, *map(len, rows)])


def made(
    teacher: str, student: str, init: str, *, tied: bool = True, seed: int = 0
) -> tuple[Tensor, VocabularyInit]:
    old, new = TOKENIZERS[teacher], TOKENIZERS[student]
    model = teacher_of(old, tied=tied)
    rows = new_rows(model, old, new, init, seed=seed, text=lambda: text_in(new))
    return model.get_input_embeddings().weight.detach()[: len(old)], rows


@pytest.mark.parametrize(
    ("init", "teacher", "student"),
    [(i, *pair) for i in INITIALISERS for pair in product(TOKENIZERS, repeat=2)],
)
def test_rows_beyond_the_teachers_tokens_are_never_used(init: str, teacher: str, student: str) -> None:
    _, rows = made(teacher, student, init, tied=False)
    assert rows.embedding.shape == (len(TOKENIZERS[student]), 16)
    assert rows.head is not None and rows.embedding.isfinite().all() and rows.head.isfinite().all()


@pytest.mark.parametrize(("teacher", "student"), list(product(TOKENIZERS, repeat=2)))
def test_subword_mean_is_the_mean_of_the_pieces_row_by_row(teacher: str, student: str) -> None:
    old_VD, rows = made(teacher, student, "subword-mean")
    mapping = map_vocabulary(TOKENIZERS[teacher], TOKENIZERS[student])
    for i in range(len(mapping)):
        sources = mapping.sources_of(i) or range(len(old_VD))
        expected = sum(old_VD[s].double() for s in sources) / len(sources)
        assert torch.allclose(rows.embedding[i].double(), expected, atol=1e-6)
        if len(sources) == 1:
            assert torch.equal(rows.embedding[i], old_VD[sources[0]]), "copied bit for bit"


def test_mean_gives_each_token_without_a_role_the_mean_of_all_old_rows() -> None:
    old_VD, rows = made("byte-level", "SentencePiece", "mean")
    expected = old_VD.double().mean(0)
    assert torch.allclose(rows.embedding[3:].double(), expected.expand(269, -1), atol=1e-6)


def test_random_rows_have_the_old_rows_mean_and_deviation_in_each_dimension() -> None:
    old = TOKENIZERS["byte-level"]
    model = pico_model(vocabulary=len(old), width=8)
    weight_VD = model.get_input_embeddings().weight.data
    weight_VD.mul_(torch.linspace(0.1, 3, 8)).add_(torch.linspace(-2, 2, 8))
    draws = [new_rows(model, old, TOKENIZERS["SentencePiece"], "random", seed=seed) for seed in range(40)]
    many_VD = torch.cat([rows.embedding[3:] for rows in draws])
    assert torch.allclose(many_VD.mean(0), weight_VD.mean(0), atol=0.06)
    assert torch.allclose(many_VD.std(0), weight_VD.std(0, correction=0), rtol=0.03)


def test_random_rows_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = made("byte-level", "WordPiece", "random", seed=3)[1]
    torch.manual_seed(2)
    again = made("byte-level", "WordPiece", "random", seed=3)[1]
    other = made("byte-level", "WordPiece", "random", seed=4)[1]
    assert torch.equal(first.embedding, again.embedding)
    assert not torch.equal(first.embedding, other.embedding)


@pytest.mark.parametrize("init", list(INITIALISERS))
def test_special_tokens_keep_the_row_of_their_role_whatever_the_initialiser(init: str) -> None:
    old_VD, rows = made("SentencePiece", "WordPiece", init)
    new = TOKENIZERS["WordPiece"]
    assert torch.equal(rows.embedding[new.cls_token_id], old_VD[1])
    assert torch.equal(rows.embedding[new.sep_token_id], old_VD[2])
    assert rows.counts["role"] == 5


@pytest.mark.parametrize("init", list(INITIALISERS))
def test_copied_rows_are_old_rows_bit_for_bit(init: str) -> None:
    old_VD, rows = made("SentencePiece", "byte-level", init)
    mapping = map_vocabulary(TOKENIZERS["SentencePiece"], TOKENIZERS["byte-level"])
    same = [torch.equal(rows.embedding[i], old_VD[mapping.sources_of(i)[0]]) for i in rows.copied.tolist()]
    assert all(same) and set(mapping.ids_of(Kind.ROLE)) <= set(rows.copied)
    shared = mapping.ids_of(Kind.EXACT)
    are_old = [torch.equal(rows.embedding[i], old_VD[mapping.sources_of(i)[0]]) for i in shared]
    assert len(shared) > 100 and np.isin(shared, rows.copied).tolist() == are_old


def test_one_token_at_both_ends_is_read_as_the_start_and_predicted_as_the_end() -> None:
    old, new = TOKENIZERS["SentencePiece"], TOKENIZERS["byte-level"]
    model = teacher_of(old, tied=False)
    rows = new_rows(model, old, new, "subword-mean", seed=0)
    assert rows.head is not None
    end = new.eos_token_id
    assert torch.equal(rows.embedding[end], model.get_input_embeddings().weight[old.bos_token_id])
    assert torch.equal(rows.head[end], model.get_output_embeddings().weight[old.eos_token_id])


def test_a_heads_bias_is_made_as_its_rows_are() -> None:
    old, new = TOKENIZERS["byte-level"], TOKENIZERS["SentencePiece"]
    model = teacher_of(old, tied=False)
    head = nn.Linear(16, len(old) + PADDING)
    model.set_output_embeddings(head)
    rows = new_rows(model, old, new, "subword-mean", seed=0)
    mapping = map_vocabulary(old, new)
    assert rows.head_bias is not None and rows.head_bias.shape == (len(new),)
    for i in mapping.ids_of(Kind.EXACT)[:20]:
        assert rows.head_bias[i] == head.bias[mapping.sources_of(int(i))[0]]
    replace_vocabulary(model, rows.embedding, rows.head, rows.head_bias, tokenizer=new)
    assert model(input_ids=torch.tensor([[3, 4]])).logits.shape == (1, 2, len(new))


def test_the_same_vocabulary_leaves_the_logits_as_they_were() -> None:
    tokenizer = TOKENIZERS["SentencePiece"]
    model = teacher_of(tokenizer)
    ids = torch.tensor([tokenizer("the cat")["input_ids"]])
    before = model(input_ids=ids).logits[..., : len(tokenizer)]
    rows = new_rows(model, tokenizer, tokenizer, "subword-mean", seed=0)
    replace_vocabulary(model, rows.embedding, rows.head, tokenizer=tokenizer)
    assert torch.equal(model(input_ids=ids).logits, before)


def test_rows_come_in_the_teachers_dtype_and_the_teacher_is_left_alone() -> None:
    old = TOKENIZERS["byte-level"]
    model = teacher_of(old).bfloat16()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = new_rows(model, old, TOKENIZERS["WordPiece"], "subword-mean", seed=0)
    assert rows.embedding.dtype is torch.bfloat16
    assert all(torch.equal(before[k].nan_to_num(), v.nan_to_num()) for k, v in model.state_dict().items())


def test_a_tokenizer_with_more_ids_than_the_model_has_rows_is_refused() -> None:
    with pytest.raises(ModelError, match="61 rows, but its tokenizer has ids up to 271"):
        new_rows(pico_model(), TOKENIZERS["SentencePiece"], TOKENIZERS["WordPiece"], "mean", seed=0)


def test_overlap_copies_shared_rows_and_mixes_the_others_of_them() -> None:
    old, new = TOKENIZERS["SentencePiece"], TOKENIZERS["byte-level"]
    old_VD, rows = made("SentencePiece", "byte-level", "overlap", tied=False)
    mapping = map_vocabulary(old, new)
    exact = mapping.ids_of(Kind.EXACT)
    sources = [mapping.sources_of(i)[0] for i in exact]
    assert torch.equal(rows.embedding[exact], old_VD[sources])
    vectors_VA = ppmi_vectors(*text_in(new), len(mapping))
    anchors = [(i, s) for i, s in zip(exact, sources, strict=True) if np.abs(vectors_VA[i]).any()]
    mixed = [i for i in mapping.ids_of(Kind.PIECES) if np.abs(vectors_VA[i]).any()]
    assert mixed and len(anchors) > 3
    for i in mixed:
        cosines = torch.tensor([float(vectors_VA[i] @ vectors_VA[a]) for a, _ in anchors])
        weights = nearest_in_the_simplex(cosines)
        expected = sum(float(w) * old_VD[s] for w, (_, s) in zip(weights, anchors, strict=True))
        assert torch.allclose(rows.embedding[i], expected, atol=1e-5)


def nearest_in_the_simplex(values: Tensor) -> Tensor:
    """By bisection of the threshold that is taken off."""
    low, high = float(values.min()) - 1, float(values.max())
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (values - middle).clamp(min=0).sum() > 1 else (low, middle)
    return (values - low).clamp(min=0)


def test_tokens_of_like_company_have_like_vectors() -> None:
    """Of tokens 0 to 19, each even one stands where the odd one after it does."""
    generator = np.random.default_rng(0)
    topics = generator.integers(0, 10, 2000)
    documents = [topic * 2 + generator.integers(0, 2, 8) for topic in topics]
    vectors_VA = ppmi_vectors(np.concatenate(documents), np.arange(0, 16_001, 8), 22)
    cosines = vectors_VA @ vectors_VA.T
    for i in range(20):
        assert cosines[i].argsort()[-2:].tolist() in ([i, i ^ 1], [i ^ 1, i])
    assert not vectors_VA[20:].any(), "what the text does not have is like nothing"


def test_the_four_initialisers_have_no_options() -> None:
    assert list(INITIALISERS) == ["mean", "overlap", "random", "subword-mean"]
    assert all(INITIALISERS.options(name) == {} for name in INITIALISERS)

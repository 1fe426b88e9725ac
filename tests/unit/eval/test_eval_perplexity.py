"""Bits per byte and perplexity against slow references and cases with a known answer."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from stlm_kd.errors import DataError, ModelError
from stlm_kd.eval import SUITES
from stlm_kd.eval.language_modeling.perplexity import perplexity, split_into_windows

TEXTS = [
    "The dog barks.",
    "",
    "No cats ever bark near the old barn.",
    "Größe.",
    "a",
    "They thank themselves today.",
]
POSITIONS = 24


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, after bos, eos and unk."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: index for index, piece in enumerate(["<bos>", "<eos>", "<unk>", *alphabet])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=259, n_embd=16, n_layer=2, n_head=2, n_positions=POSITIONS, initializer_range=0.4
    )
    return GPT2LMHeadModel(config)


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return [0, *tokenizer(text, add_special_tokens=False)["input_ids"]]


def slow_nats(model: PreTrainedModel, ids: list[int], window: int, stride: int) -> float:
    """One forward pass per token: the first window from its start, then each stride from its own window's."""
    total = 0.0
    for target in range(1, len(ids)):
        begin = 0 if target <= window else math.ceil((target - window) / stride) * stride
        with torch.no_grad():
            logits_V = model(torch.tensor([ids[begin:target]])).logits[0, -1]
        total -= float(logits_V.double().log_softmax(-1)[ids[target]])
    return total


@pytest.mark.parametrize(("window", "stride"), [(24, 12), (24, 24), (7, 3), (2, 1), (5, 5)])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_each_document_costs_what_token_by_token_scoring_says(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, window: int, stride: int, batch_size: int
) -> None:
    model.eval()
    measured = perplexity(model, tokenizer, TEXTS, window=window, stride=stride, batch_size=batch_size)
    texts = [text for text in TEXTS if text]
    for text, document in zip(texts, measured.examples, strict=True):
        expected = slow_nats(model, ids_of(tokenizer, text), window, stride)
        assert document.value * math.log(2) * len(text.encode()) == pytest.approx(expected, rel=1e-5)
    assert measured.report["tokens"] == measured.report["bytes"] == sum(len(text.encode()) for text in texts)


@given(length=st.integers(1, 60), window=st.integers(2, 20), stride=st.integers(1, 20))
@settings(max_examples=80, deadline=None)
def test_each_token_but_the_first_is_scored_once_and_has_its_context(
    length: int, window: int, stride: int
) -> None:
    stride = min(stride, window)
    scored: list[int] = []
    for piece in split_into_windows(length, window, stride):
        assert piece.stop - piece.start - 1 <= window
        targets = range(piece.stop - piece.scored, piece.stop)
        assert all(target - piece.start >= min(target, window - stride + 1) for target in targets)
        scored.extend(targets)
    assert scored == list(range(1, length))


def uniform_model() -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    torch.nn.init.zeros_(model.lm_head.weight)
    return model


def test_a_uniform_model_needs_the_logarithm_of_its_vocabulary(tokenizer: PreTrainedTokenizerFast) -> None:
    scores = perplexity(uniform_model(), tokenizer, TEXTS)
    bits = scores.score("text", "bits_per_byte").value
    assert bits == pytest.approx(math.log2(259))  # one token is one byte
    assert scores.score("text", "perplexity").value == pytest.approx(259)
    assert scores.score("text", "bits_per_byte").stderr == pytest.approx(0, abs=1e-7)
    assert scores.score("text", "perplexity").higher_is_better is False


def test_bf16_is_close_to_fp32(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    exact, rounded = (
        perplexity(model, tokenizer, TEXTS, precision=precision).score("text", "bits_per_byte").value
        for precision in ("fp32", "bf16")
    )
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.02)


def test_dropout_is_off_during_and_as_before_afterwards(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    model.train()
    first, second = perplexity(model, tokenizer, TEXTS), perplexity(model, tokenizer, TEXTS)
    assert first == second
    assert model.training


def test_the_standard_error_is_that_of_leaving_documents_out(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = [
        f"The {name} {verb} near {count} dogs."
        for name in "abcd"
        for verb in ("is", "naps")
        for count in "1234"
    ]
    measured = perplexity(model, tokenizer, texts)
    sizes = [len(text.encode()) for text in texts]
    rows = [(row.value * size, size) for row, size in zip(measured.examples, sizes, strict=True)]
    bits, size = sum(b for b, _ in rows), sum(s for _, s in rows)
    without = [(bits - b) / (size - s) for b, s in rows]
    mean = sum(without) / len(without)
    jackknife = math.sqrt((len(rows) - 1) / len(rows) * sum((value - mean) ** 2 for value in without))
    stderr = measured.score("text", "bits_per_byte").stderr
    assert stderr == pytest.approx(jackknife, rel=0.05)


def test_unknown_tokens_are_told_of(model: PreTrainedModel) -> None:
    made = Tokenizer(models.WordLevel({"<eos>": 0, "<unk>": 1, "dog": 2}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", unk_token="<unk>")
    result = perplexity(model, tokenizer, ["dog cat dog", "hen"])
    assert result.report["unknown_tokens"] == 2
    assert result.notes[0].startswith("2 of 4 tokens are unknown")


def test_faults_say_what_to_do(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ModelError, match="use window: 24 or less"):
        perplexity(model, tokenizer, TEXTS, window=25)
    with pytest.raises(DataError, match=r"data\.validation"):
        perplexity(model, tokenizer, [""])


def test_the_suite_reports_what_was_measured(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    result = SUITES["perplexity"](model, tokenizer, TEXTS, window=10, stride=5)
    assert result == perplexity(model, tokenizer, TEXTS, window=10, stride=5)
    assert result.report["tokens"] == sum(len(text.encode()) for text in TEXTS)
    assert [row.id for row in result.examples] == ["0", "1", "2", "3", "4"]

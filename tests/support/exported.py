"""Small models with their tokenizers in folders, to export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast

from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.models.load import save_model
from tests.support.pico import MASKED, pico_model
from tests.support.tokenizer_kinds import TEXTS

ROWS = 301
"""Rows of the embeddings: more than the tokenizer has tokens."""

QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def byte_level(*, masked: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer that recipes train."""
    return train_tokenizer(TEXTS, "bpe", 290, masked=masked)


def split_as_qwen2() -> PreTrainedTokenizerFast:
    """Byte-level BPE over Qwen2's words, NFC."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([*TEXTS, "the cat.\n\nA dog.\n\n" * 99], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>")


def family(name: str, *, tied: bool = True, **fields: Any) -> PreTrainedModel:
    """A model whose biases and norms matter, over ``ROWS`` tokens; ``fields`` of its configuration change."""
    model = pico_model(name, vocabulary=ROWS, tied=tied)
    if fields:
        for field, value in fields.items():
            setattr(model.config, field, value)
        torch.manual_seed(0)
        model = type(model)(model.config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def saved(
    folder: Path,
    name: str,
    *,
    classifies: bool = False,
    tokenizer: Callable[[], PreTrainedTokenizerFast] | None = None,
    **options: Any,
) -> Path:
    """A folder with a model of a family, or a classifier of three classes, and its tokenizer."""
    made = tokenizer() if tokenizer is not None else byte_level(masked=name in MASKED)
    model = family(name, **options)
    if classifies:
        model.config.pad_token_id = made.pad_token_id
        model.config.num_labels = 3
        model = AutoModelForSequenceClassification.from_config(model.config)
    save_model(model, made, folder)
    return folder

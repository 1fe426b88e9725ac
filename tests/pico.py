"""Pico models and batches that tests share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from stlm_kd.data.batch import IGNORED, Batch

FAMILIES = ("gpt2", "llama", "qwen2")


def pico_model(
    family: str = "llama",
    *,
    vocabulary: int = 61,
    width: int = 16,
    layers: int = 2,
    tied: bool = True,
    seed: int = 0,
    attention: str = "sdpa",
) -> PreTrainedModel:
    """A causal model with weights wide enough that mistakes show."""
    torch.manual_seed(seed)
    common = {"vocab_size": vocabulary, "tie_word_embeddings": tied, "initializer_range": 0.2}
    special = {"bos_token_id": 0, "eos_token_id": 0}
    if family == "gpt2":
        config = GPT2Config(
            n_embd=width, n_layer=layers, n_head=2, n_positions=64, **common, **special,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        return GPT2LMHeadModel._from_config(config, attn_implementation=attention)
    sizes = {
        "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
    }  # fmt: skip
    if family == "llama":
        config = LlamaConfig(**sizes, **common, **special)
        return LlamaForCausalLM._from_config(config, attn_implementation=attention)
    config = Qwen2Config(**sizes, **common, **special)
    return Qwen2ForCausalLM._from_config(config, attn_implementation=attention)


def packed_batch(rows: Sequence[Sequence[int]], *, length: int, vocabulary: int = 61, seed: int = 0) -> Batch:
    """Random documents of the given lengths, row by row, padded to ``length``; labels by a plain loop."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(rows), length)
    input_ids = torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, IGNORED)
    document_ids = torch.zeros(shape, dtype=torch.int64)
    position_ids = torch.zeros(shape, dtype=torch.int64)
    for r, lengths in enumerate(rows):
        start = 0
        for number, size in enumerate(lengths, start=1):
            tokens = torch.randint(0, vocabulary, (size,), generator=generator)
            input_ids[r, start : start + size] = tokens
            labels[r, start : start + size - 1] = tokens[1:]
            document_ids[r, start : start + size] = number
            position_ids[r, start : start + size] = torch.arange(size)
            start += size
    return Batch(input_ids, document_ids > 0, labels, document_ids, position_ids, torch.arange(len(rows)))


def part(batch: Batch, rows: slice) -> Batch:
    """Some rows of a batch."""
    return Batch(*(getattr(batch, name)[rows] for name in Batch.__dataclass_fields__))

"""Pico models and batches that tests share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
)

from stlm_kd.data.batch import IGNORED, TENSORS, Batch
from stlm_kd.models.architectures import mobillama
from stlm_kd.models.architectures.mobillama import MobiLlamaConfig
from stlm_kd.models.families import ARCHITECTURES

mobillama.register()

FAMILIES = ("gpt2", "llama", "qwen2")
CAUSAL = tuple(name for name, row in ARCHITECTURES.items() if row.task == "clm")
MASKED = tuple(name for name, row in ARCHITECTURES.items() if row.task == "mlm")
ALL_FAMILIES = CAUSAL + MASKED

_DECODERS = {
    "llama": LlamaConfig,
    "mobillama": MobiLlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "phi3": Phi3Config,
    "gpt_neox": GPTNeoXConfig,
    "olmo2": Olmo2Config,
}
_ENCODERS = {"bert": BertConfig, "roberta": RobertaConfig}


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
    """A language model with weights wide enough that mistakes show, biases and norms too."""
    torch.manual_seed(seed)
    config = _pico_config(family, vocabulary=vocabulary, width=width, layers=layers, tied=tied)
    kind = AutoModelForMaskedLM if family in MASKED else AutoModelForCausalLM
    model = kind.from_config(config, attn_implementation=attention)
    if family in MASKED or family in ("phi3", "qwen3", "gpt_neox", "olmo2", "opt"):
        _disturb(model)
    return model


def _pico_config(family: str, *, vocabulary: int, width: int, layers: int, tied: bool) -> PretrainedConfig:
    common = {"vocab_size": vocabulary, "tie_word_embeddings": tied, "initializer_range": 0.2}
    special = {"bos_token_id": 0, "eos_token_id": 0}
    if family == "gpt2":
        return GPT2Config(
            n_embd=width, n_layer=layers, n_head=2, n_positions=64, **common, **special,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
    if family == "distilbert":
        return DistilBertConfig(
            dim=width, hidden_dim=2 * width, n_layers=layers, n_heads=2, max_position_embeddings=64,
            dropout=0.0, attention_dropout=0.0, **common,
        )  # fmt: skip
    if family == "opt":
        return OPTConfig(
            hidden_size=width, word_embed_proj_dim=width, ffn_dim=2 * width, num_hidden_layers=layers,
            num_attention_heads=2, max_position_embeddings=64, dropout=0.0, init_std=0.2,
            vocab_size=vocabulary, tie_word_embeddings=tied, **special,
        )  # fmt: skip
    sizes = {
        "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers,
        "num_attention_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    if family in _ENCODERS:
        config = _ENCODERS[family](
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes, **common
        )
        config.max_position_embeddings += 2 if family == "roberta" else 0
        return config
    heads = 2 if family == "mobillama" else 1
    own: dict[str, dict[str, int | None]] = {
        "phi3": {"pad_token_id": None},
        "gpt_neox": {"hidden_dropout": 0, "attention_dropout": 0},
        "olmo2": {"pad_token_id": None},
        "qwen3": {"head_dim": width // 2},
    }
    return _DECODERS[family](num_key_value_heads=heads, **sizes, **common, **special, **own.get(family, {}))


@torch.no_grad()
def _disturb(model: PreTrainedModel) -> None:
    """Biases and norms away from 0 and 1, at which they begin."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(0.2 * torch.randn_like(parameter))


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
    return Batch(*(getattr(batch, name)[rows] for name in TENSORS))

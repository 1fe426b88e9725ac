"""The published sizes on the meta device, counted by hand before and after another vocabulary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel

from stlm_kd.models.load import count_parameters, declared_task, model_class
from stlm_kd.models.vocabulary import is_tied, replace_vocabulary
from tests.support.vocab_pico import real_tokenizer

Numbers = Mapping[str, int]


def linear(inputs: int, outputs: int, *, bias: bool) -> int:
    return inputs * outputs + (outputs if bias else 0)


def llama_body(c: Numbers, *, bias: bool, networks: int) -> int:
    """Attention and two norms a layer, gated networks, the last norm; the bias is that of q, k and v."""
    width, layers = c["hidden_size"], c["num_hidden_layers"]
    keys = width // c["num_attention_heads"] * c["num_key_value_heads"]
    attention = linear(width, width, bias=bias) + 2 * linear(width, keys, bias=bias) + width * width
    return layers * (attention + 2 * width) + networks * 3 * width * c["intermediate_size"] + width


def qwen2_body(c: Numbers) -> int:
    return llama_body(c, bias=True, networks=c["num_hidden_layers"])


def phi3_body(c: Numbers) -> int:
    """One matrix for q, k and v, one for gate and up: as many numbers as in a Llama's."""
    return llama_body(c, bias=False, networks=c["num_hidden_layers"])


def mobillama_body(c: Numbers) -> int:
    return llama_body(c, bias=False, networks=1)


def gpt2_body(c: Numbers) -> int:
    """q, k, v and their projection, a network of four widths, two norms a layer; positions; the last norm."""
    width = c["n_embd"]
    attention = linear(width, 3 * width, bias=True) + linear(width, width, bias=True)
    network = linear(width, 4 * width, bias=True) + linear(4 * width, width, bias=True)
    return c["n_layer"] * (attention + network + 2 * 2 * width) + c["n_positions"] * width + 2 * width


def bert_body(c: Numbers) -> int:
    """Positions, token types and a norm; the layers; the head's transform and its norm."""
    width, inner = c["hidden_size"], c["intermediate_size"]
    embeddings = (c["max_position_embeddings"] + c["type_vocab_size"]) * width + 2 * width
    network = linear(width, inner, bias=True) + linear(inner, width, bias=True)
    layer = 4 * linear(width, width, bias=True) + network + 2 * 2 * width
    return embeddings + c["num_hidden_layers"] * layer + linear(width, width, bias=True) + 2 * width


def distilbert_body(c: Numbers) -> int:
    """As a BERT without token types."""
    names = {"hidden_size": "dim", "intermediate_size": "hidden_dim", "num_hidden_layers": "n_layers"}
    sizes = {name: c[own] for name, own in names.items()}
    positions = c["max_position_embeddings"]
    return bert_body({**sizes, "max_position_embeddings": positions, "type_vocab_size": 0})


PUBLISHED = {
    "qwen2-0.5b": (qwen2_body, "tied", 494_032_768),
    "qwen2-1.5b": (qwen2_body, "tied", 1_543_714_304),
    "phi-3-mini-4k": (phi3_body, "untied", 3_821_079_552),
    "gpt2": (gpt2_body, "tied", 124_439_808),
    "gpt2-large": (gpt2_body, "tied", 774_030_080),
    "mobillama-0.5b-paper-22layer": (mobillama_body, "untied", 534_865_920),
    "bert-base-cased": (bert_body, "tied with bias", 108_340_804),
    "bert-base-uncased": (bert_body, "tied with bias", 109_514_298),
    "distilbert-base-uncased": (distilbert_body, "tied with bias", 66_985_530),
}
"""Body, head, and the parameters that the published model has."""


def vocabulary(head: str, tokens: int, width: int) -> int:
    return {"tied": width, "untied": 2 * width, "tied with bias": width + 1}[head] * tokens


def config_of(folder: Path) -> tuple[PretrainedConfig, Numbers]:
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model_type = "mobillama" if "mobillama" in folder.name else fields["model_type"]
    given = {
        name: value for name, value in fields.items() if name not in ("model_type", "transformers_version")
    }
    return CONFIG_MAPPING[model_type](**given), fields


def on_meta(config: PretrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return model_class(declared_task(config)).from_config(config)


@pytest.mark.parametrize("student", ["llama-2", "bert-base-cased"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_parameters_before_and_after_another_vocabulary_are_those_counted_by_hand(
    name: str, student: str, shared_data: Path
) -> None:
    body, head, published = PUBLISHED[name]
    config, fields = config_of(shared_data / "configs" / name)
    model, width = on_meta(config), config.hidden_size
    assert (
        count_parameters(model) == body(fields) + vocabulary(head, fields["vocab_size"], width) == published
    )

    tokenizer = real_tokenizer(shared_data, student)
    size = {"llama-2": 32_000, "bert-base-cased": 28_996}[student]
    rows_VD = torch.empty(size, width, device="meta")
    bias_V = None if model.get_output_embeddings().bias is None else rows_VD[:, 0]
    replace_vocabulary(model, rows_VD, rows_VD if head == "untied" else None, bias_V, tokenizer=tokenizer)
    assert count_parameters(model) == body(fields) + vocabulary(head, size, width)
    assert is_tied(model) == (head != "untied")
    assert count_parameters(on_meta(model.config)) == count_parameters(model), (
        "built anew from its configuration"
    )


def test_a_mobillama_with_a_network_for_each_layer_would_be_more_than_twice_as_large(
    shared_data: Path,
) -> None:
    config, fields = config_of(shared_data / "configs" / "mobillama-0.5b-paper-22layer")
    plain = CONFIG_MAPPING["llama"](**{**config.to_dict(), "model_type": "llama"})
    unshared = llama_body(fields, bias=False, networks=22) + vocabulary("untied", 32_000, 2048)
    assert count_parameters(on_meta(plain)) == unshared == 1_261_529_088

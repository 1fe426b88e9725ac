from __future__ import annotations

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from stlm_kd.data.batch import Batch
from stlm_kd.errors import ModelError
from stlm_kd.models import forward
from stlm_kd.models.capabilities import check_forward
from stlm_kd.models.forward import head_of, last_hidden
from tests.support.pico import ALL_FAMILIES, packed_batch, pico_model

SIZES = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def built(family: str, *, attention: str = "sdpa", **changes: object) -> PreTrainedModel:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**{**SIZES, **changes})
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


@torch.no_grad()
def says_by_its_head(model: PreTrainedModel, batch: Batch, **named: torch.Tensor) -> bool:
    """Whether the model's own logits of one document are its head applied to the state that meets it."""
    head = head_of(model.eval())
    found = torch.nn.functional.linear(last_hidden(model, batch), head.weight, head.bias)
    return torch.allclose(found, model(input_ids=batch.input_ids, **named).logits, atol=2e-5)


@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("context", [2, 32])
def test_the_families_of_this_tool_are_accepted_and_left_as_they_were(
    family: str, attention: str, context: int
) -> None:
    model = pico_model(family, attention=attention).train()
    check_forward(model, context=context, name="teacher")
    assert model.training


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_document_in_a_packed_row_is_read_as_if_it_stood_alone(family: str, attention: str) -> None:
    """Also by a model that looks both ways, and by one that counts its positions from its padding id."""
    model = pico_model(family, attention=attention).eval()
    head = head_of(model)
    packed = packed_batch([[5, 7, 3], [9]], length=16)
    hidden_BTD = last_hidden(model, packed)
    for row, documents in enumerate(packed.document_ids):
        for number in set(documents.tolist()) - {0}:
            here = documents == number
            alone = model(input_ids=packed.input_ids[row, here][None]).logits[0]
            found = torch.nn.functional.linear(hidden_BTD[row, here], head.weight, head.bias)
            assert torch.allclose(found, alone, atol=2e-5)


def test_a_sliding_window_is_refused_where_it_is_shorter_than_the_context() -> None:
    model = built("qwen2", use_sliding_window=True, sliding_window=16, max_window_layers=0)
    check_forward(model, context=16, name="teacher")
    with pytest.raises(ModelError, match="sliding window"):
        check_forward(model, context=32, name="teacher")


def test_a_model_that_caps_its_logits_is_refused() -> None:
    model = built("gemma2", attention="eager", final_logit_softcapping=0.1, head_dim=8)
    with pytest.raises(ModelError, match="not its head applied"):
        check_forward(model, context=16, name="teacher")


@pytest.mark.parametrize(
    ("family", "changes"),
    [("cohere", {"logit_scale": 0.0625}), ("granite", {"logits_scaling": 8.0})],
)
def test_where_logits_are_scaled_the_state_that_meets_the_head_is(
    family: str, changes: dict[str, float]
) -> None:
    model = built(family, **changes)
    check_forward(model, context=16, name="teacher")
    assert says_by_its_head(model, packed_batch([[16]], length=16))


@pytest.mark.filterwarnings("ignore:If you want to use")
def test_a_model_that_looks_both_ways_is_refused() -> None:
    with pytest.raises(ModelError, match="look both ways"):
        check_forward(built("electra", embedding_size=16), context=16, name="student")


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_knows_no_mask_is_refused() -> None:
    torch.manual_seed(0)
    config = CONFIG_MAPPING["mamba"](vocab_size=61, hidden_size=16, num_hidden_layers=2, state_size=4)
    with pytest.raises(ModelError, match="attention mask per pair of positions"):
        check_forward(AutoModelForCausalLM.from_config(config), context=16, name="teacher")


def test_a_model_in_which_documents_see_each_other_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        forward, "attention_mask", lambda batch, model: torch.ones(1, 1, 16, 16, dtype=torch.bool).tril()
    )
    with pytest.raises(ModelError, match="a document attends to the one before it"):
        check_forward(pico_model("llama"), context=16, name="teacher")


@pytest.mark.parametrize("seed", range(3))
def test_a_roberta_is_accepted_whatever_ids_it_is_tried_with(seed: int) -> None:
    """Without a mask it derives positions from padding ids, of which a small vocabulary draws some."""
    model = pico_model("roberta", vocabulary=20 + seed)
    check_forward(model, context=48, name="teacher")
    padding = model.config.pad_token_id
    batch = packed_batch([[48]], length=48, vocabulary=20)
    assert (batch.input_ids == padding).any()
    positions = torch.arange(48)[None] + padding + 1
    assert says_by_its_head(model, batch, position_ids=positions)

"""Dropout of a student: in place the same as built with it."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from stlm_kd.models.dropout import set_dropout
from tests.support.pico import ALL_FAMILIES, pico_model


def _training_logits(model: PreTrainedModel, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return model.train()(input_ids=torch.arange(12).view(2, 6) + 2).logits


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_model_with_other_dropout_trains_as_one_built_with_it(family: str, attention: str) -> None:
    model = pico_model(family, attention=attention)
    certain = _training_logits(model, 0)
    set_dropout(model, 0.3)
    built = type(model)._from_config(
        type(model.config)(**model.config.to_dict()), attn_implementation=attention
    )
    built.load_state_dict(model.state_dict())
    drawn = _training_logits(model, 1)
    assert torch.equal(drawn, _training_logits(built, 1))
    assert not torch.allclose(drawn, certain)
    assert torch.allclose(model.eval()(input_ids=torch.arange(12).view(2, 6) + 2).logits, certain, atol=1e-5)


def test_all_of_a_classifiers_dropouts_are_set_and_saved_in_its_configuration() -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(vocab_size=11, **sizes))
    set_dropout(model, 0.3)
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.3}
    assert (model.config.hidden_dropout_prob, model.config.attention_probs_dropout_prob) == (0.3, 0.3)
    assert model.config.classifier_dropout is None

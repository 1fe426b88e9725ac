"""Convert a BERT into a DistilBERT, as in Sanh et al., "DistilBERT, a distilled version of BERT", 2019.

DistilBERT has no token types: the embedding of type 0 is added to the position embeddings, so that word
embeddings and a tied head stay unchanged. Its norms have a fixed epsilon of 1e-12, as in published BERTs. In
a classifier, the pooler becomes the layer before the classifier, with ReLU instead of tanh.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
)

from stlm_kd.errors import ModelError

_BLOCK = {
    "attention.q_lin": "attention.self.query",
    "attention.k_lin": "attention.self.key",
    "attention.v_lin": "attention.self.value",
    "attention.out_lin": "attention.output.dense",
    "sa_layer_norm": "attention.output.LayerNorm",
    "ffn.lin1": "intermediate.dense",
    "ffn.lin2": "output.dense",
    "output_layer_norm": "output.LayerNorm",
}
_NORM_EPSILON = 1e-12

_HEAD = {
    "vocab_transform": "cls.predictions.transform.dense",
    "vocab_layer_norm": "cls.predictions.transform.LayerNorm",
    "vocab_projector": "cls.predictions.decoder",
    "pre_classifier": "bert.pooler.dense",
    "classifier": "classifier",
}


def distilbert_config(teacher: BertConfig, num_layers: int) -> DistilBertConfig:
    """A DistilBERT configuration with the teacher's sizes; ``ModelError`` if the norms' epsilons differ."""
    if teacher.layer_norm_eps != _NORM_EPSILON:
        raise ModelError(
            f"student.init_from.model_type: the teacher's layer_norm_eps is {teacher.layer_norm_eps:g}, "
            f"but distilbert's is fixed at {_NORM_EPSILON:g}; remove model_type to keep the teacher's family"
        )
    of_head = teacher.classifier_dropout
    return DistilBertConfig(
        vocab_size=teacher.vocab_size,
        max_position_embeddings=teacher.max_position_embeddings,
        n_layers=num_layers,
        n_heads=teacher.num_attention_heads,
        dim=teacher.hidden_size,
        hidden_dim=teacher.intermediate_size,
        dropout=teacher.hidden_dropout_prob,
        attention_dropout=teacher.attention_probs_dropout_prob,
        activation=teacher.hidden_act,
        initializer_range=teacher.initializer_range,
        pad_token_id=teacher.pad_token_id,
        bos_token_id=teacher.bos_token_id,
        eos_token_id=teacher.eos_token_id,
        tie_word_embeddings=teacher.tie_word_embeddings,
        seq_classif_dropout=teacher.hidden_dropout_prob if of_head is None else of_head,
        id2label=copy(teacher.id2label),
        label2id=copy(teacher.label2id),
        problem_type=teacher.problem_type,
    )


def bert_name(name: str, layers: Sequence[int]) -> str:
    """The BERT tensor name of a DistilBERT tensor, given the BERT layers it was built from.

    >>> bert_name("distilbert.transformer.layer.1.ffn.lin2.bias", [0, 2])
    'bert.encoder.layer.2.output.dense.bias'
    >>> bert_name("vocab_projector.weight", [0, 2])
    'cls.predictions.decoder.weight'
    """
    module, _, kind = name.rpartition(".")
    if module in _HEAD:
        return f"{_HEAD[module]}.{kind}"
    prefix = "distilbert.transformer.layer."
    if not module.startswith(prefix):
        return f"{module.replace('distilbert', 'bert', 1)}.{kind}"
    index, _, part = module.removeprefix(prefix).partition(".")
    return f"bert.encoder.layer.{layers[int(index)]}.{_BLOCK[part]}.{kind}"


@torch.no_grad()
def copy_bert(
    student: DistilBertForMaskedLM | DistilBertForSequenceClassification,
    teacher: BertForMaskedLM | BertForSequenceClassification,
    layers: Sequence[int],
) -> None:
    """Copy the teacher's tensors of the given layers into the student."""
    source = teacher.state_dict()
    for name, value in student.state_dict().items():
        value.copy_(source[bert_name(name, layers)])
    positions_PD = student.distilbert.embeddings.position_embeddings.weight
    positions_PD.add_(teacher.bert.embeddings.token_type_embeddings.weight[0].to(positions_PD))

"""A classifier of two classes that adds up a number for each token, so that each word's part is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import SequenceClassifierOutput

SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]")


class PlantedConfig(PretrainedConfig):
    model_type = "planted"


class Planted(PreTrainedModel):
    """Its log-odds of the second class are the sum over the tokens that it attends to."""

    config_class = PlantedConfig

    def __init__(self, parts: Sequence[float]) -> None:
        super().__init__(PlantedConfig(num_labels=2))
        self.embedding = nn.Embedding(len(parts), 2)
        with torch.no_grad():
            self.embedding.weight.copy_(torch.tensor([[-part / 2, part / 2] for part in parts]))

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        embedded = self.embedding(input_ids) * attention_mask[..., None]
        return SequenceClassifierOutput(logits=embedded.sum(1))


def planted(parts: Mapping[str, float]) -> tuple[Planted, PreTrainedTokenizerFast]:
    """The model and its tokenizer, which knows these words, each a token; others are worth nothing."""
    names = [*SPECIAL, *parts]
    tokenizer = Tokenizer(models.WordLevel({name: place for place, name in enumerate(names)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", unk_token="[UNK]",
    )  # fmt: skip
    return Planted([0.0] * len(SPECIAL) + list(parts.values())).eval(), fast

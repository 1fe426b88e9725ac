"""Run a language model up to the state that meets its head, documents kept apart, and find that head.

Shapes: B rows, T positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stlm_kd.data.batch import Batch
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.models.families import ARCHITECTURES, Task
from stlm_kd.models.partial_forward import call
from stlm_kd.models.positions import first_position

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Head:
    """The vocabulary projection: weight (V, D) and bias (V,) or None."""

    weight: Tensor
    bias: Tensor | None

    @property
    def size(self) -> int:
        """Number of outcomes, padded entries included."""
        return int(self.weight.shape[0])

    def to(self, dtype: torch.dtype) -> Head:
        """The same head in a type; itself where it has that already."""
        return Head(self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype))


def head_of(model: PreTrainedModel) -> Head:
    """The model's own vocabulary projection (not a copy: gradients reach the parameters)."""
    layer = model.get_output_embeddings()
    assert isinstance(layer, nn.Linear), "checked when the model is loaded"
    return Head(layer.weight, layer.bias)


def vocabulary_head(model: PreTrainedModel) -> Head | None:
    """As ``head_of``; None of a model that predicts no tokens, a classifier."""
    return head_of(model) if isinstance(model.get_output_embeddings(), nn.Linear) else None


def task_of(model: PreTrainedModel) -> Task:
    """What a language model predicts: the next token, looking back, or masked tokens, looking both ways."""
    row = ARCHITECTURES.get(model.config.model_type)
    if row is not None:
        return row.task
    return "mlm" if type(model).__name__.endswith("ForMaskedLM") else "clm"


def last_hidden(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The state that meets the head (after the final norm, or BERT's transform), shape (B, T, D)."""
    with bypassed_head(model):
        hidden = call(model, model_inputs(batch, model))["logits"]
    assert isinstance(hidden, Tensor)
    return hidden


def model_inputs(batch: Batch, model: PreTrainedModel) -> dict[str, Tensor]:
    """What to call the model with for a batch, by name, so that its documents are kept apart."""
    return {
        "input_ids": batch.input_ids,
        "attention_mask": attention_mask(batch, model),
        "position_ids": position_ids(batch, model),
    }


def inputs_of(batch: AnyBatch, model: PreTrainedModel, *, reader: str = "") -> dict[str, Tensor]:
    """What to call a model with, by name: ``model_inputs``, or examples as the reader's tokenizer reads them.

    Token types are left out where the model knows none.
    """
    if isinstance(batch, Batch):
        return model_inputs(batch, model)
    encoded = batch.reading(reader)
    inputs = {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask}
    if encoded.token_type_ids is not None and getattr(model.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = encoded.token_type_ids
    return inputs


@contextmanager
def bypassed_head(model: PreTrainedModel) -> Iterator[None]:
    """While it is entered, the model's head is the identity: its ``logits`` are what the head would meet.

    So the model's own code runs whatever its family does between the last block and the head.
    """
    head: nn.Module = model.get_output_embeddings()
    head.forward = _identity
    try:
        yield
    finally:
        del head.forward


def _identity(hidden: Tensor) -> Tensor:
    return hidden


def position_ids(batch: Batch, model: PreTrainedModel) -> Tensor:
    """The batch's positions as the model's family counts them, (B, T)."""
    return batch.position_ids + first_position(model.config)


def attention_mask(batch: Batch, model: PreTrainedModel) -> Tensor:
    """Who may look at whom, (B, 1, T, T): the same document, for a causal model its earlier positions.

    Padding counts as a document of its own (0), so that no row of the mask is empty. sdpa takes booleans,
    eager attention numbers to add.
    """
    documents_BT = batch.document_ids
    length = documents_BT.shape[1]
    allowed_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    if task_of(model) == "clm":
        allowed_BTT &= torch.ones(length, length, dtype=torch.bool, device=documents_BT.device).tril()
    allowed = allowed_BTT[:, None]
    if model.config._attn_implementation != "eager":
        return allowed
    forbidden = torch.finfo(model.dtype).min
    return torch.zeros(allowed.shape, dtype=model.dtype, device=allowed.device).masked_fill(
        ~allowed, forbidden
    )

"""Run a causal model up to its last hidden state, documents kept apart, and find its head.

Shapes: B rows, T positions, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stlm_kd.data.batch import Batch


@dataclass(frozen=True, slots=True)
class Head:
    """The vocabulary projection: weight (V, D) and bias (V,) or None."""

    weight: Tensor
    bias: Tensor | None

    @property
    def size(self) -> int:
        """Number of outcomes, padded entries included."""
        return int(self.weight.shape[0])


def head_of(model: PreTrainedModel) -> Head:
    """The model's own vocabulary projection (not a copy: gradients reach the parameters)."""
    layer = model.get_output_embeddings()
    assert isinstance(layer, nn.Linear), "checked when the model is loaded"
    return Head(layer.weight, layer.bias)


def last_hidden(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The state that meets the head (after the final norm), shape (B, T, D)."""
    output = model.base_model(
        input_ids=batch.input_ids,
        attention_mask=attention_mask(batch, model),
        position_ids=batch.position_ids,
        use_cache=False,
    )
    hidden = output.last_hidden_state
    assert isinstance(hidden, Tensor)
    return hidden


def attention_mask(batch: Batch, model: PreTrainedModel) -> Tensor:
    """Who may look at whom, (B, 1, T, T): earlier positions of the same document and oneself.

    Padding counts as a document of its own (0), so that no row of the mask is empty. sdpa takes booleans,
    eager attention numbers to add.
    """
    documents_BT = batch.document_ids
    length = documents_BT.shape[1]
    same_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    causal_TT = torch.ones(length, length, dtype=torch.bool, device=documents_BT.device).tril()
    allowed = (same_BTT & causal_TT)[:, None]
    if model.config._attn_implementation != "eager":
        return allowed
    forbidden = torch.finfo(model.dtype).min
    return torch.zeros(allowed.shape, dtype=model.dtype, device=allowed.device).masked_fill(
        ~allowed, forbidden
    )
